"""The watchdog finds what blocks a loop, says where, and finds nothing else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.fakes.gang import ROOT
from tests.fakes.watchdog import loop_watchdog
from tests.fakes.watchdog.loop_watchdog import Watchdog, findings, is_of_disk


@pytest.fixture
def watchdog(tmp_path: Path) -> Iterator[Watchdog]:
    found = Watchdog(tmp_path / "test.jsonl")
    found.start()
    yield found
    found.stop()


def found_in(
    folder: Path, work: Callable[[], object], loop: str = "asyncio"
) -> list[dict[str, Any]]:
    """What is found when a loop does this."""

    async def main() -> None:
        work()
        await asyncio.sleep(0.05)

    factory = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[loop]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    time.sleep(0.05)
    return findings(folder)


def sleeps() -> None:
    time.sleep(0.3)


def computes() -> None:
    end = time.thread_time() + 0.3
    while time.thread_time() < end:
        pass


def scans() -> None:
    end = time.thread_time() + 0.3
    while time.thread_time() < end:
        list(Path("/proc").glob("[0-9]*/stat"))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("work", "call", "of_disk"),
    [(sleeps, "nanosleep", False), (computes, "", False), (scans, "", True)],
)
def test_what_blocks_is_found_with_its_place(
    watchdog: Watchdog,
    tmp_path: Path,
    work: Callable[[], None],
    call: str,
    loop: str,
    *,
    of_disk: bool,
) -> None:
    (found,) = found_in(tmp_path, work, loop)
    assert found["ms"] > loop_watchdog.MAX_MS
    assert any(f" {work.__name__}: " in line for line in found["stack"])
    if call:
        assert max(found["calls"], key=found["calls"].get) in {call, "clock_nanosleep"}
    assert is_of_disk(found) is of_disk


def test_waiting_for_events_or_for_other_threads_is_nothing(
    watchdog: Watchdog, tmp_path: Path
) -> None:
    released = threading.Event()
    thread = threading.Timer(0.3, released.set)
    thread.start()
    assert found_in(tmp_path, lambda: released.wait(10)) == []
    thread.join()


def test_a_busy_machine_makes_no_finding(watchdog: Watchdog, tmp_path: Path) -> None:
    """The loop has little to do, and is often not let on the processor."""
    burn = "while True: pass"
    cpu = str(min(os.sched_getaffinity(0)))
    before = os.sched_getaffinity(0)
    others = [
        subprocess.Popen(["taskset", "-c", cpu, sys.executable, "-c", burn]) for _ in range(8)
    ]
    try:
        os.sched_setaffinity(0, {int(cpu)})

        async def main() -> None:
            for _ in range(20):
                # Some milliseconds of work, spread over whatever the others leave.
                end = time.thread_time() + 0.01
                while time.thread_time() < end:
                    pass
                await asyncio.sleep(0)

        asyncio.run(main())
    finally:
        os.sched_setaffinity(0, before)
        for other in others:
            other.kill()
            other.wait()
    assert findings(tmp_path) == []


def test_it_comes_from_outside_into_the_processes_that_are_watched(tmp_path: Path) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    package = tmp_path / "appliance.control"
    package.write_text(
        "import asyncio, time\nasyncio.run(asyncio.sleep(0))\n"
        "async def main():\n    time.sleep(0.3)\n    await asyncio.sleep(0.1)\n"
        "asyncio.run(main())\n"
    )
    environment = {
        "PYTHONPATH": str(ROOT / "tests/fakes/watchdog"),
        "LOOP_WATCHDOG": str(folder),
    }
    for name in ("appliance.control", "other"):
        script = package.rename(tmp_path / name) if name != package.name else package
        subprocess.run([sys.executable, script.name], cwd=tmp_path, env=environment, check=True)
    assert {found["process"].rpartition(".")[0][:17] for found in findings(folder)} == {
        "appliance.control"
    }
