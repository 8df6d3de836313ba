"""What becomes of calls is on the disk before it counts, whatever then happens to the process."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import AuditUnavailable
from appliance.gateway import frames, spool
from appliance.gateway.frames import Frame, Kind, frames_of
from appliance.gateway.spool import INTERRUPTED, Spool, Usage
from tests.fakes.disk import filled, small_disk

KIBIBYTE = 1 << 10
Told = tuple[str, int, str, str]
"""Boot, number, request id and reason of an entry."""


def call(name: str, **more: object) -> Usage:
    return Usage(request_id=name, principal="users/alice", **more)  # type: ignore[arg-type]  # fields of Usage


def told(folder: Path) -> list[Told]:
    """What the next process has to report."""
    found = Spool(folder, file_bytes=16 * KIBIBYTE)
    waiting = [
        (boot.name, entry.number, entry.usage.request_id, entry.usage.reason)
        for boot in found.boots
        for entry in boot.waiting
    ]
    found.close()
    return waiting


def names(folder: Path) -> list[tuple[int, str, str]]:
    return [each[1:] for each in told(folder)]


def spools(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{spool.SUFFIX}"))


def test_what_ended_and_what_was_in_work_is_told_by_the_next_process(tmp_path: Path) -> None:
    made = Spool(tmp_path)
    first, second = made.begin(call("a")), made.begin(call("b", prompt_tokens=7))
    made.end(call("a", completion_tokens=3), first)
    made.end(call("refused", reason="RESOURCE_NOT_FOUND"))
    assert made.count(routing_service_pb2.Refusals(source="10.0.0.7", count=3)) == 3
    assert (first, second) == (1, 2)
    # Killed here. The one after that is killed, too, before it could report.
    for _ in range(2):
        expected = [
            (1, "a", ""),
            (2, "refused", "RESOURCE_NOT_FOUND"),
            (3, "", ""),
            (4, "b", INTERRUPTED),
        ]
        assert names(tmp_path) == expected
    found = Spool(tmp_path)
    entries = list(found.boots[0].waiting)
    assert (entries[2].refusals.source, entries[2].refusals.count) == ("10.0.0.7", 3)
    assert (entries[0].usage.completion_tokens, entries[3].usage.prompt_tokens) == (3, 7)
    found.close()
    made.close()


async def test_what_was_reported_is_forgotten_and_its_files_go(tmp_path: Path) -> None:
    made = Spool(tmp_path, file_bytes=16 * KIBIBYTE)
    long = made.begin(call("long"))
    for number in range(300):
        made.end(call(f"c{number}"), made.begin(call(f"c{number}")))
        if not number % 20:
            await made.sync()
    await made.sync()
    assert len(spools(tmp_path)) > 2
    while True:
        boot, entries = made.batch(50)
        if not entries:
            break
        await made.reported(boot, entries[-1].number)
    assert len(made) == 0
    # The call that goes on stands in the file that is left, with the number it will get.
    assert len(spools(tmp_path)) <= 2
    assert names(tmp_path)[-1] == (301, "long", INTERRUPTED)
    made.end(call("long"), long)
    assert names(tmp_path)[-1] == (301, "long", "")
    assert [each[0] for each in names(tmp_path)] == list(range(names(tmp_path)[0][0], 302))
    made.close()


async def test_older_boots_are_reported_first_and_then_deleted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = Spool(tmp_path)
        made.begin(call(name))
        made.close()
        await asyncio.sleep(0.02)
    made = Spool(tmp_path)
    made.end(call("c"))
    await made.sync()
    seen = []
    while True:
        boot, entries = made.batch(10)
        if not entries:
            break
        seen += [(entry.number, entry.usage.request_id) for entry in entries]
        await made.reported(boot, entries[-1].number)
    assert seen == [(1, "a"), (1, "b"), (1, "c")]
    assert len(spools(tmp_path)) == 1
    made.close()
    # One that has nothing to tell leaves nothing.
    made = Spool(tmp_path)
    assert len(made) == 1
    made.close()


async def test_only_what_is_durable_is_reported(tmp_path: Path) -> None:
    """Else a power cut could give a number again, and its entry would be taken for a repeat."""
    made = Spool(tmp_path)
    made.end(call("a"))
    assert made.batch(10) == ("", [])
    await made.sync()
    made.end(call("b"))
    assert [entry.usage.request_id for entry in made.batch(10)[1]] == ["a"]
    made.close()


# --- killed ---------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from appliance.gateway.spool import Spool, Usage
spool = Spool(Path(sys.argv[1]), file_bytes=1 << 16, clock=lambda: 0.0)
running = []
for number in range(100_000):
    if spool._next is None:
        spool._sync([spool._current])
    running.append((number, spool.begin(Usage(request_id=f"c{number}", principal="users/alice"))))
    print("begun", number, flush=True)
    if len(running) > 5:
        number, call = running.pop(0)
        spool.end(Usage(request_id=f"c{number}", completion_tokens=1), call)
        print("ended", number, flush=True)
"""


@pytest.mark.attack
def test_kill_at_any_moment_loses_no_call(tmp_path: Path) -> None:
    chance = random.Random(5)
    for round_ in range(4):
        folder = tmp_path / str(round_)
        out, least = tmp_path / f"{round_}.out", chance.randrange(1, 60_000)
        with out.open("wb") as file:
            process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=file)
            while out.stat().st_size < least:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        said: dict[str, set[str]] = {"begun": set(), "ended": set()}
        for line in out.read_text().split("\n")[:-1]:
            word, _, number = line.partition(" ")
            said[word].add(f"c{number}")
        found = told(folder)
        assert len({each[2] for each in found}) == len(found)
        assert [each[1] for each in found] == list(range(1, len(found) + 1))
        assert {each[2] for each in found} >= said["begun"]
        assert {each[2] for each in found if each[3] != INTERRUPTED} >= said["ended"]


async def test_a_power_cut_takes_what_was_written_in_the_last_hundred_milliseconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files as a disk has them that keeps nothing but what was synced, at every moment."""
    durable: list[tuple[float, dict[str, bytes]]] = []
    written: list[tuple[float, str]] = []
    real = frames.FrameFile.sync

    def sync(file: frames.FrameFile) -> None:
        data = file.path.read_bytes()
        real(file)
        kept = dict(durable[-1][1]) if durable else {}
        durable.append((time.monotonic(), kept | {file.path.name: data}))

    monkeypatch.setattr(frames.FrameFile, "sync", sync)
    made = Spool(tmp_path / "spool", file_bytes=64 * KIBIBYTE)
    syncing = asyncio.create_task(made.run())
    for number in range(400):
        made.end(call(f"c{number}"), made.begin(call(f"c{number}")))
        written.append((time.monotonic(), f"c{number}"))
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.2)
    syncing.cancel()
    made.close()
    # Each sync is a moment at which the power may be cut just before the next one.
    for number, (_, files) in enumerate(durable[:-1]):
        cut, until = tmp_path / f"cut-{number}", durable[number + 1][0]
        cut.mkdir(mode=0o700)
        for name, data in files.items():
            (cut / name).write_bytes(data)
        left = {each[2] for each in told(cut)}
        before = {name for at, name in written if at < until - 0.1}
        assert before <= left, number


# --- the disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"\xff" * 40, b"\0\0\0\x20abcd" + b"x" * 32])
def test_frames_are_read_up_to_the_first_that_is_not_whole(damage: bytes) -> None:
    some = [Frame(Kind.END, number, 0, b"m" * number) for number in range(1, 6)]
    data = b"".join(frame.packed() for frame in some)
    assert list(frames_of(data + damage)) == some
    for cut in range(len(data)):
        found = list(frames_of(data[:cut] + damage))
        assert found == some[: len(found)]
        assert len(b"".join(frame.packed() for frame in found)) <= cut


@pytest.mark.attack
def test_a_changed_byte_ends_the_reading(tmp_path: Path) -> None:
    some = [Frame(Kind.END, number, 0, b"abc") for number in range(1, 4)]
    data = b"".join(frame.packed() for frame in some)
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        found = list(frames_of(changed))
        assert found == some[: len(found)]
        assert len(found) < 3


async def test_a_full_disk_refuses_new_calls_and_keeps_the_ends_of_those_begun(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:
        made = Spool(disk / "spool", file_bytes=64 * KIBIBYTE)
        running: list[tuple[str, int]] = []
        with filled(disk):
            refused = ""
            while not refused:
                name = f"c{len(running)}"
                try:
                    running.append((name, made.begin(call(name))))
                except AuditUnavailable as error:
                    refused = error.message
                await made.sync()
            assert "no room to record calls" in refused
            assert len(running) > 10
            for name, number in running:
                made.end(call(name), number)
        await made.sync()
        # There is room again: the next file is made, and calls go on.
        await made.sync()
        assert made.begin(call("late"))
        found = names(disk / "spool")
        assert [each[1] for each in found] == [*(name for name, _ in running), "late"]
        assert {each[2] for each in found[:-1]} == {""}
        made.close()


async def test_a_disk_that_fails_takes_no_more_calls_and_what_ended_is_reported_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Spool(tmp_path)
    number = made.begin(call("a"))

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    await made.sync()
    with pytest.raises(AuditUnavailable, match="repair it, then restart the gateway"):
        made.begin(call("b"))
    made.end(call("a", completion_tokens=2), number)
    assert [entry.usage.completion_tokens for entry in made.batch(10)[1]] == [2]
    monkeypatch.undo()
    await made.sync()
    with pytest.raises(AuditUnavailable):
        made.check()
    made.close()


def test_a_disk_that_is_too_slow_takes_no_new_calls(tmp_path: Path) -> None:
    now = [0.0]
    made = Spool(tmp_path, clock=lambda: now[0])
    made.begin(call("a"))
    now[0] = spool.SLOWEST_SECONDS
    made.begin(call("b"))
    now[0] += 0.1
    with pytest.raises(AuditUnavailable, match="too slow to record calls"):
        made.begin(call("c"))
    asyncio.run(made.sync())
    made.begin(call("d"))
    made.close()


async def test_many_calls_at_once_go_over_from_file_to_file(tmp_path: Path) -> None:
    made = Spool(tmp_path, file_bytes=256 * KIBIBYTE)
    running = {}
    for number in range(100):
        running[number] = made.begin(call(f"c{number}"))
    for number in range(100, 3000):
        running[number] = made.begin(call(f"c{number}"))
        made.end(call(f"c{number - 100}"), running.pop(number - 100))
        if not number % 50:
            await made.sync()
    found = names(tmp_path)
    assert [each[1] for each in found] == [f"c{number}" for number in range(3000)]
    assert [each[2] for each in found] == [""] * 2900 + [INTERRUPTED] * 100
    made.close()
