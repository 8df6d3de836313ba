"""The audit log: durable or refused, whole after a crash, verified when it opens."""

import asyncio
import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.control.audit import log as module
from appliance.control.audit import witness
from appliance.control.audit.closed import files_of
from appliance.core.errors import AuditUnavailable, Stale, Tampered
from appliance.crypto import chain
from appliance.crypto.signing import SignedNote
from tests.fakes.audit import ENTRY, KEY, ORIGIN, fill, opened, verified
from tests.fakes.state import add_project, make_state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def test_records_are_in_the_file_when_the_future_resolves(folder: Path) -> None:
    log = opened(folder)
    for expected in range(5):
        assert log.append(ENTRY).result(10) == expected
        assert (folder / chain.segment_name(0)).read_bytes().count(b"\n") == expected + 1
    log.close()
    assert verified(folder).covered == 5


def test_files_are_private(folder: Path) -> None:
    fill(folder, 1)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"000000000000.log": 0o600, "checkpoints": 0o600, "reserve": 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_waits_together_is_made_durable_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(folder)
    gate, calls = threading.Event(), []
    real = os.fdatasync

    def slow(descriptor: int) -> None:
        calls.append(descriptor)
        gate.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    futures = [log.append(ENTRY) for _ in range(200)]
    gate.set()
    assert [future.result(10) for future in futures] == list(range(200))
    assert len(calls) <= 4
    log.close()


def test_many_threads_get_each_their_place(folder: Path) -> None:
    log = opened(folder)
    places: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: places.extend(log.append(ENTRY).result(30) for _ in range(25))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(places) == list(range(200))
    log.close()
    assert verified(folder).size == 200


async def test_a_caller_who_leaves_does_not_stop_the_log(folder: Path) -> None:
    log = opened(folder)
    for _ in range(50):
        task = asyncio.ensure_future(asyncio.wrap_future(log.append(ENTRY)))
        await asyncio.sleep(0)
        task.cancel()
    assert await asyncio.wrap_future(log.append(ENTRY)) == 50
    log.close()
    assert verified(folder).size == 51


def test_a_checkpoint_follows_after_so_many_records_and_at_the_end(folder: Path) -> None:
    log = opened(folder)
    assert log.checkpoint()[1] == 0
    for future in [log.append(ENTRY) for _ in range(300)]:
        future.result(10)
    log.close()
    note, covered = log.checkpoint()
    assert covered == 300
    assert SignedNote.open(note, KEY.verify_key, ORIGIN).size == 300


def test_a_checkpoint_that_is_asked_for_covers_all_that_is_durable(folder: Path) -> None:
    log = opened(folder)
    for size in range(1, 20):
        log.append(ENTRY).result(10)
        note, covered = log.checkpoint()
        assert covered == size
        assert SignedNote.open(note, KEY.verify_key, ORIGIN).size == size
    log.close()


def test_a_checkpoint_follows_after_a_while(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    signed = threading.Event()
    log = opened(folder)
    real = log._files.append_note

    def noted(note: bytes) -> None:
        real(note)
        signed.set()

    monkeypatch.setattr(log._files, "append_note", noted)
    log.append(ENTRY).result(10)
    assert signed.wait(10)
    log.close()


def test_files_follow_each_other_and_the_chain_goes_through(folder: Path) -> None:
    for _ in range(3):
        log = opened(folder, segment_records=7)
        for _ in range(20):
            log.append(ENTRY).result(10)
        log.close()
    assert len(files_of(folder)) > 3
    assert verified(folder).covered == 60
    log = opened(folder)
    assert [json.loads(line)["sequence"] for line in log.lines(7, 44)] == list(range(7, 44))
    assert [record["sequence"] for record in log.newest()] == list(range(59, -1, -1))
    assert [record["sequence"] for record in log.newest(before=3)] == [2, 1, 0]
    assert [list(log.lines(60)), list(log.lines(5, 5)), len(list(log.lines(-5, 99)))] == [
        [],
        [],
        60,
    ]
    log.close()


# --- the disk fails -------------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_when_the_disk_fails_nothing_is_acknowledged_and_nothing_is_tried_again(
    folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(folder)
    assert log.append(ENTRY).result(10) == 0
    calls = []

    def fail(*_: object) -> int:
        calls.append(1)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(AuditUnavailable, match="so nothing was done: repair the disk"):
        log.append(ENTRY).result(10)
    monkeypatch.undo()
    # The disk works again; the log still refuses: what became of the failed bytes is unknown.
    for _ in range(3):
        with pytest.raises(AuditUnavailable):
            log.append(ENTRY).result(10)
    assert (len(calls), log.size) == (1, 1)
    log.close()
    log = opened(folder)
    assert log.size in ({1} if call == "write" else {1, 2})
    assert log.append(ENTRY).result(10) == log.size - 1
    log.close()


@pytest.mark.attack
def test_everybody_who_waits_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(folder)
    gate = threading.Event()

    def fail(_descriptor: int) -> None:
        gate.wait(10)
        raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, "fdatasync", fail)
    futures = [log.append(ENTRY) for _ in range(50)]
    gate.set()
    for future in futures:
        with pytest.raises(AuditUnavailable):
            future.result(10)
    log.close()


@pytest.mark.attack
def test_a_queue_without_end_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(folder)
    gate, real = threading.Event(), os.fdatasync
    monkeypatch.setattr(module, "MAX_QUEUE", 10)

    def slow(descriptor: int) -> None:
        gate.wait(10)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    futures = [log.append(ENTRY) for _ in range(40)]
    refused = [future for future in futures if future.done() and future.exception()]
    gate.set()
    assert refused
    kept = [future.result(10) for future in futures if future not in refused]
    assert kept == list(range(len(kept)))
    log.close()


def test_a_closed_log_takes_nothing(folder: Path) -> None:
    log = opened(folder)
    log.close()
    with pytest.raises(AuditUnavailable, match="it is closed"):
        log.append(ENTRY).result(10)


# --- crashes --------------------------------------------------------------------------------------


def test_a_torn_end_loses_no_acknowledged_record(folder: Path) -> None:
    fill(folder, 3)
    path = folder / chain.segment_name(0)
    whole = path.read_bytes()
    log = opened(folder)
    log.append(ENTRY).result(10)
    log.close()
    longer = path.read_bytes()
    notes = folder / "checkpoints"
    signed_for_three = notes.read_bytes()[: notes.read_bytes().rfind(b"\n4\n")]
    signed_for_three = signed_for_three[: signed_for_three.rfind(b"\n\n") + 2]
    for end in (*range(len(whole), len(longer), 23), len(longer) - 1):
        for tail in (b"", b"\0" * 7, b"\0" * 5 + b"{}\n"):
            path.write_bytes(longer[:end] + tail)
            notes.write_bytes(signed_for_three + b"appliance/lab/au")
            log = opened(folder)
            assert log.size == 3
            log.close()
            assert path.read_bytes() == whole


CRASHING = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import AuditEntry
from appliance.crypto.signing import SigningKey
log = AuditLog.open(
    Path(sys.argv[1]), SigningKey(bytes([7]) * 32), "appliance/lab/audit",
    lambda: datetime.now(UTC), segment_records=50,
)
waiting = []
while True:
    waiting += [log.append(AuditEntry("intent")) for _ in range(5)]
    print(waiting.pop(0).result(), flush=True)
"""


@pytest.mark.attack
def test_kill_at_any_moment_loses_no_acknowledged_record(folder: Path) -> None:
    chance = random.Random(3)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", CRASHING, str(folder)], stdout=subprocess.PIPE, text=True
        )
        acknowledged = -1
        for _ in range(chance.randrange(1, 150)):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=30)
        acknowledged = max([acknowledged, *map(int, rest.split("\n")[:-1])])
        log = opened(folder)
        assert log.size > acknowledged
        log.close()
        assert verified(folder).covered == log.size


# --- changed while it was closed ------------------------------------------------------------------


def _flip(data: bytes) -> bytes:
    return data.replace(b"alice", b"malic", 1)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (_flip, Tampered),
        (lambda data: data[data.index(b"\n") + 1 :], Tampered),
        (lambda data: data[: data.rindex(b"\n", 0, -1) + 1], Stale),
        (lambda data: b"", Stale),
    ],
)
def test_a_log_that_was_changed_is_not_gone_on_with(
    folder: Path, change: Callable[[bytes], bytes], error: type[Tampered]
) -> None:
    fill(folder, 5)
    path = folder / chain.segment_name(0)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(error):
        opened(folder)


@pytest.fixture
def copies(folder: Path) -> tuple[Path, dict[str, bytes]]:
    fill(folder, 5)
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.attack
def test_an_older_copy_of_the_whole_log_contradicts_the_state(
    copies: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    folder, older = copies
    state = make_state(tmp_path)
    assert witness.known(state) == {}
    log = opened(folder)
    state.watch_log(log.head)
    log.append(ENTRY).result(10)
    add_project(state, "red")
    assert witness.known(state) == {6: log.head()[1]}
    log.close()
    for name, data in older.items():
        (folder / name).write_bytes(data)
    with pytest.raises(Stale, match="older copy"):
        opened(folder, known=witness.known(state))
    state.close()


def test_secrets_do_not_show_in_a_refusal(folder: Path) -> None:
    log = opened(folder)
    assert KEY.raw().hex() not in repr(vars(log))
    assert log.public_key_pem == KEY.verify_key.pem()
    log.close()
