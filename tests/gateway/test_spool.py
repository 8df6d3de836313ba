"""What becomes of calls is on the disk before it counts, whatever then happens to the process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import AuditUnavailable, FailedPrecondition
from appliance.gateway import boots, frames, spool
from appliance.gateway.boots import INTERRUPTED, Entry, Usage
from appliance.gateway.frames import Frame, FrameKind, frames_of
from appliance.gateway.spool import Spool
from tests.fakes.disk import filled, small_disk

KIBIBYTE = 1 << 10
Told = tuple[str, int, str, str]
"""Boot, number, request id and reason of an entry."""


def call(name: str, **more: object) -> Usage:
    return Usage(request_id=name, principal="users/alice", **more)  # type: ignore[arg-type]  # fields of Usage


def told(folder: Path) -> list[Told]:
    """What the next process has to report."""
    copy = folder.with_name(f"{folder.name}-{len(list(folder.parent.iterdir()))}")
    shutil.copytree(folder, copy)
    found = Spool(copy, file_bytes=16 * KIBIBYTE)
    waiting = [
        (boot.name, number, entry.usage.request_id, entry.usage.reason)
        for boot in found.older
        for number, entry in sorted(boot.waiting.items())
    ]
    found.close()
    shutil.rmtree(copy)
    return waiting


def names(folder: Path) -> list[tuple[int, str, str]]:
    return [each[1:] for each in told(folder)]


async def sent(made: Spool, most: int = 50) -> list[tuple[str, list[int], int]]:
    """Report everything: boot, numbers and last number of each batch."""
    found = []
    while (request := made.batch(most)) is not None:
        numbers = [entry.number for entry in request.entries]
        found.append((request.boot, numbers, request.last))
        await made.reported(request)
    return found


def refused(name: str) -> Entry:
    return Entry(usage=call(name, reason="RESOURCE_NOT_FOUND"))


def spools(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{boots.SUFFIX}"))


def test_what_ended_and_what_was_in_work_is_told_by_the_next_process(tmp_path: Path) -> None:
    made = Spool(tmp_path / "spool")
    first, second = made.begin(call("a")), made.begin(call("b", prompt_tokens=7))
    made.end(call("a", completion_tokens=3), first)
    assert made.add(refused("c"))
    assert made.add(Entry(refusals=routing_service_pb2.Refusals(source="10.0.0.7", count=3)))
    assert (first, second) == (1, 2)
    # Killed here. The one after that is killed, too, before it could report.
    for _ in range(2):
        expected = [
            (1, "a", ""),
            (2, "b", INTERRUPTED),
            (3, "c", "RESOURCE_NOT_FOUND"),
            (4, "", ""),
        ]
        assert names(tmp_path / "spool") == expected
    made.close()
    found = Spool(tmp_path / "spool")
    entries = found.older[0].waiting
    assert (entries[4].refusals.source, entries[4].refusals.count) == ("10.0.0.7", 3)
    assert (entries[1].usage.completion_tokens, entries[2].usage.prompt_tokens) == (3, 7)
    found.close()


async def test_what_was_reported_is_forgotten_and_its_files_go(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    made = Spool(folder, file_bytes=8 * KIBIBYTE)
    long = made.begin(call("long"))
    for number in range(300):
        made.end(call(f"c{number}"), made.begin(call(f"c{number}")))
        if not number % 20:
            await made.sync()
    await made.sync()
    assert len(spools(folder)) > 2
    await sent(made)
    assert len(made) == 0
    # The call that goes on stands in the file that is left, under its own number.
    assert len(spools(folder)) <= 2
    assert names(folder)[0] == (long, "long", INTERRUPTED)
    made.end(call("long"), long)
    assert names(folder)[0] == (long, "long", "")
    await sent(made)
    last = made.last_batch()
    assert last is not None
    assert (last.last, list(last.entries)) == (301, [])
    await made.reported(last)
    made.close()
    # A clean end leaves nothing to tell again.
    assert spools(folder) == []


async def test_what_is_left_is_reported_first_says_its_end_and_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    for name in ("a", "b"):
        made = Spool(folder)
        made.begin(call(name))
        made.end(call(name), made.begin(call(name)))
        made.close()
        await asyncio.sleep(0.02)
    made = Spool(folder)
    # The first left two, and the second, which reported nothing, two of its own.
    made.add(refused("c"))
    assert (len(made), made.left) == (1, 4)
    batches = await sent(made, 1)
    assert [(numbers, last) for _, numbers, last in batches] == [
        *(2 * [([2], 0), ([1], 2)]),
        ([1], 0),
    ]
    assert len(spools(folder)) == 1
    made.close()


async def test_a_second_kill_before_all_was_reported_loses_nothing(tmp_path: Path) -> None:
    """Also when the next file had been made, and holds nothing."""
    folder = tmp_path / "spool"
    made = Spool(folder, file_bytes=16 * KIBIBYTE)
    running = [made.begin(call(f"long-{number}")) for number in range(5)]
    while made._next is None:
        made.end(call("c"), made.begin(call("c")))
        await made.sync()
    assert len(spools(folder)) == 2
    shutil.copytree(folder, tmp_path / "killed")
    made.close()
    again = Spool(tmp_path / "killed")
    for _ in range(2):
        request = again.batch(21)
        assert request is not None
        await again.reported(request)
    again.close()
    left = {each[0] for each in names(tmp_path / "killed")}
    assert set(running) <= left


@pytest.mark.attack
async def test_a_missing_or_damaged_file_stops_no_report(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    made = Spool(folder, file_bytes=8 * KIBIBYTE)
    for number in range(400):
        made.end(call(f"c{number}"), made.begin(call(f"c{number}")))
        await made.sync()
    made.close()
    files = spools(folder)
    assert len(files) > 3
    files[1].unlink()
    data = bytearray(files[2].read_bytes())
    data[len(data) // 2] ^= 1
    files[2].write_bytes(data)
    (folder / f"backup-000001{boots.SUFFIX}").write_bytes(b"x")
    again = Spool(folder)
    ((_, numbers, last),) = await sent(again, 500)
    # One more than there is: what the damaged file held is missed.
    assert last == 401
    assert 200 < len(numbers) < 400
    assert len(set(numbers)) == len(numbers)
    again.close()
    assert [path.suffix for path in folder.glob("*.damaged")] == [".damaged"]


def test_one_process_uses_a_folder_at_a_time(tmp_path: Path) -> None:
    made = Spool(tmp_path / "spool")
    made.begin(call("a"))
    with pytest.raises(FailedPrecondition, match="another gateway uses"):
        Spool(tmp_path / "spool")
    assert names(tmp_path / "spool") == [(1, "a", INTERRUPTED)]
    made.close()


async def test_a_call_that_goes_on_is_kept_until_the_file_that_has_it_again_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a file is full while the one before is being made durable."""
    folder = tmp_path / "spool"
    made = Spool(folder, file_bytes=8 * KIBIBYTE)
    made.begin(call("long"))
    real = Spool._sync

    def fill() -> None:
        first = made._boot.files[-1]
        while made._boot.files[-1] is first:
            made.end(call("c"), made.begin(call("c")))

    def sync(self: Spool, files: list[frames.FrameFile]) -> None:
        real(self, files)
        monkeypatch.setattr(Spool, "_sync", real)
        fill()

    await made.sync()
    while made._next is None:
        made.end(call("c"), made.begin(call("c")))
        await made.sync()
    fill()
    made._make_next()
    monkeypatch.setattr(Spool, "_sync", sync)
    await made.sync()
    _, second, third = made._boot.files
    assert 1 in second.pending
    assert third.carried == {1}
    await made.sync()
    assert [1 in file.pending for file in made._boot.files] == [False, False, True]
    made.close()


@pytest.mark.attack
@pytest.mark.parametrize("place", [9, 200])
async def test_what_is_damaged_is_kept_and_missed(tmp_path: Path, place: int) -> None:
    folder = tmp_path / "spool"
    made = Spool(folder, file_bytes=8 * KIBIBYTE)
    for number in range(10):
        made.end(call(f"c{number}"), made.begin(call(f"c{number}")))
    made.close()
    (path,) = spools(folder)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    again = Spool(folder)
    ((_, numbers, last),) = await sent(again, 500)
    assert last == len(numbers) + 1
    again.close()
    (kept,) = folder.glob("*.damaged")
    assert kept.read_bytes() == bytes(data)


async def test_boots_are_told_in_their_order_whatever_the_clock_says(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    boots = []
    for at in (3000, 2000, 1000):
        made = Spool(folder)
        made.begin(call("a"))
        boots.append(made._boot.name)
        made.close()
        for path in spools(folder):
            if made._boot.name in path.name:
                os.utime(path, (at, at))
    again = Spool(folder)
    assert [boot.name for boot in again.older] == boots
    again.close()


async def test_room_that_is_looked_for_in_vain_is_said_once_and_names_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        made = Spool(disk / "spool", file_bytes=2 << 20)
        for _ in range(5):
            await made.sync()
        assert [each.levelname for each in caplog.records] == ["WARNING"]
        assert made._made == 0
        made.close()


# --- killed ---------------------------------------------------------------------------------------

KILLED = """
import sys
from pathlib import Path
from appliance.gateway.boots import Usage
from appliance.gateway.spool import Spool
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
    assert len(durable) > 2
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
    some = [Frame(FrameKind.END, number, b"m" * number) for number in range(1, 6)]
    data = b"".join(frame.packed() for frame in some)
    assert list(frames_of(data + damage)) == some
    for cut in range(len(data)):
        found = list(frames_of(data[:cut] + damage))
        assert found == some[: len(found)]
        assert len(b"".join(frame.packed() for frame in found)) <= cut


@pytest.mark.attack
def test_a_changed_byte_ends_the_reading(tmp_path: Path) -> None:
    some = [Frame(FrameKind.END, number, b"abc") for number in range(1, 4)]
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
        syncing = asyncio.create_task(made.run())
        running: list[tuple[str, int]] = []
        with filled(disk):
            said = ""
            while not said:
                name = f"c{len(running)}"
                try:
                    running.append((name, made.begin(call(name))))
                except AuditUnavailable as error:
                    said = error.message
            assert "no room to record calls" in said
            assert len(running) > 10
            # What else is told takes no room of theirs.
            while made.add(refused("x")):
                pass
            for name, number in running:
                made.end(call(name), number)
            await asyncio.sleep(0.2)
        # There is room again: the next file is made by itself, and calls go on.
        late = 0
        async with asyncio.timeout(10):
            while not late:
                with contextlib.suppress(AuditUnavailable):
                    late = made.begin(call("late"))
                await asyncio.sleep(0.05)
        syncing.cancel()
        shutil.copytree(disk / "spool", tmp_path / "spool")
        made.close()
    found = names(tmp_path / "spool")
    kept = [each for each in found if each[1] != "x"]
    assert [each[1:] for each in kept] == [
        *((name, "") for name, _ in running),
        ("late", INTERRUPTED),
    ]


async def test_a_start_on_a_full_disk_reports_what_is_left_and_waits_for_room(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        made = Spool(disk / "spool", file_bytes=64 * KIBIBYTE)
        made.begin(call("a"))
        made.close()
        with filled(disk):
            again = Spool(disk / "spool", file_bytes=1 << 20)
            with pytest.raises(AuditUnavailable, match="no room to record calls"):
                again.begin(call("b"))
            assert [numbers for _, numbers, _ in await sent(again)] == [[1]]
        again.close()


@pytest.mark.parametrize("failing", ["fdatasync", "pwrite"])
async def test_a_disk_that_fails_takes_no_more_calls_and_what_ended_is_reported_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    folder = tmp_path / "spool"
    made = Spool(folder)
    calls = [made.begin(call(name)) for name in ("a", "b")]

    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, failing, fails)
    await made.sync()
    made.end(call("a", completion_tokens=2), calls[0])
    with pytest.raises(AuditUnavailable, match="repair it, then restart the gateway"):
        made.begin(call("c"))
    assert not made.add(refused("d"))
    request = made.batch(10)
    assert request is not None
    assert [entry.usage.completion_tokens for entry in request.entries] == [2]
    await made.reported(request)
    monkeypatch.undo()
    await made.sync()
    with pytest.raises(AuditUnavailable):
        made.check()
    # Killed: each has its own number, also what the disk never heard of.
    assert [each[:2] for each in names(folder)] == [(1, "a"), (2, "b")]
    made.close()


async def test_a_file_that_cannot_be_deleted_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Spool(tmp_path / "spool")
    made.begin(call("a"))
    made.close()
    again = Spool(tmp_path / "spool")

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", unlink)
    assert len(await sent(again)) == 1
    monkeypatch.undo()
    again.close()


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
    folder = tmp_path / "spool"
    made = Spool(folder, file_bytes=256 * KIBIBYTE)
    running = {}
    for number in range(100):
        running[number] = made.begin(call(f"c{number}"))
    for number in range(100, 3000):
        running[number] = made.begin(call(f"c{number}"))
        made.end(call(f"c{number - 100}"), running.pop(number - 100))
        if not number % 50:
            await made.sync()
    found = names(folder)
    assert [each[1] for each in found] == [f"c{number}" for number in range(3000)]
    assert [each[2] for each in found] == [""] * 2900 + [INTERRUPTED] * 100
    # What was told and carried over is in no earlier file any more.
    while (request := made.batch(500)) is not None:
        await made.reported(request)
    assert len(spools(folder)) <= 2
    assert {each[1] for each in names(folder)} >= {f"c{number}" for number in range(2900, 3000)}
    made.close()
