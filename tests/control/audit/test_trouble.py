"""The audit log while its disk is full, and while somebody takes its files away."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.control.audit import closed, segments
from appliance.control.audit import log as module
from appliance.control.audit.growing_file import MIN_RESERVE, FileIdentity
from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import AuditEntry
from appliance.core.errors import AuditUnavailable, Tampered
from appliance.crypto import chain
from tests.fakes.audit import ENTRY, KEY, ORIGIN, fill, opened, verified
from tests.fakes.disk import filled, small_disk

RESULT = AuditEntry("result", principal="users/alice", method="/x.Jobs/CreateJob", outcome="OK")
Opened = Callable[..., AuditLog]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look each 10 ms, so that a test waits for what happens and not for a second."""
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(segments, "LOOK_SECONDS", 0.0)


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def refused(log: AuditLog, entry: AuditEntry = ENTRY) -> str:
    with pytest.raises(AuditUnavailable) as raised:
        log.append(entry).result(10)
    return raised.value.message


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.attack
def test_a_full_disk_refuses_keeps_results_and_goes_on_by_itself(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 24) as disk:
        folder = disk / "audit"
        log = opened(folder)
        assert log.append(ENTRY).result(10) == 0
        with filled(disk):
            # A page may still have room for some small records.
            said = ""
            while not said:
                future = log.append(ENTRY)
                error = future.exception(10)
                said = "" if error is None else str(error)
            assert "the disk of the control plane is full" in said
            assert "free some space there; it goes on by itself" in said
            assert str(tmp_path) not in said
            assert log.trouble == said
            size = log.size
            # What has happened already is kept in the reserve, also a thousand of them.
            results = [log.append(RESULT) for _ in range(1000)]
            assert [each.result(10) for each in results] == list(range(size, size + 1000))
            assert "is full" in refused(log)
        wait_until(lambda: not log.trouble, "the log to go on")
        assert log.append(ENTRY).result(10) == size + 1000
        log.close()
        found = verified(folder)
        assert found.size == found.covered == size + 1001
        assert (folder / "reserve").stat().st_size == MIN_RESERVE


@pytest.mark.attack
@pytest.mark.parametrize("call", ["write", "fdatasync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_failed_is_cut_off_and_never_synced_again(
    tmp_path: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that came half, and a sync whose bytes are in the file although it failed."""
    log = opened(tmp_path / "audit")
    assert log.append(ENTRY).result(10) == 0
    path = tmp_path / "audit" / chain.segment_name(0)
    durable = path.read_bytes()
    real = getattr(os, call)

    torn: list[int] = []

    def fail(descriptor: int, *data: bytes) -> int:
        if data:
            real(descriptor, bytes(data[0])[:20])
        torn.append(path.stat().st_size)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    assert "is full" in refused(log)
    assert torn[0] > len(durable)
    monkeypatch.undo()
    wait_until(lambda: not log.trouble, "the log to go on")
    assert path.read_bytes() == durable
    assert log.append(ENTRY).result(10) == 1
    log.close()
    assert verified(tmp_path / "audit").covered == 2


@pytest.mark.attack
def test_a_disk_too_full_to_cut_a_torn_write_off_is_waited_for_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a failed write has left is ours: it is no sign of a change by somebody else."""
    log = opened(tmp_path / "audit")
    assert log.append(ENTRY).result(10) == 0
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        real(descriptor, bytes(data)[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(log._files, "roll_back", _no_space)
    with monkeypatch.context() as torn:
        torn.setattr(os, "write", half)
        assert "is full" in refused(log)
    # The disk takes writes again, but the torn one is still there.
    assert "is full" in refused(log, RESULT)
    assert "is full" in log.trouble
    monkeypatch.undo()
    wait_until(lambda: not log.trouble, "the log to go on")
    assert log.append(RESULT).result(10) == 1
    log.close()
    assert verified(tmp_path / "audit").covered == 2


@pytest.mark.attack
def test_what_waited_when_the_disk_became_full_takes_nothing_of_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody looks before the first record does.
    monkeypatch.setattr(module, "CHECK_SECONDS", 3600.0)
    log = opened(tmp_path / "audit")
    monkeypatch.setattr(log._files.reserve, "is_needed", lambda: True)
    monkeypatch.setattr(log._files.reserve, "take", _no_space)
    with log._changed:
        intent, result = log.append(ENTRY), log.append(RESULT)
    assert "is full" in str(intent.exception(10))
    assert result.result(10) == 0
    log.close()


@pytest.mark.attack
def test_a_disk_that_lost_what_it_had_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed sync the file is read again: other bytes than were written end the log."""
    log = opened(tmp_path / "audit")
    for _ in range(3):
        log.append(ENTRY).result(10)
    path = tmp_path / "audit" / chain.segment_name(0)

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdatasync", fail)
    assert "is full" in refused(log)
    data = bytearray(path.read_bytes())
    data[data.index(b"users/alice")] ^= 1
    path.write_bytes(data)
    monkeypatch.undo()
    wait_until(lambda: "closed" in log.trouble, "the log to notice")
    assert "is not what was written" in refused(log, RESULT)
    log.close()


def test_an_error_of_the_disk_stays_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path / "audit")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    assert "(Input/output error), so nothing was done: repair the disk" in refused(log)
    monkeypatch.undo()
    assert "restart the control plane" in log.trouble
    assert "restart the control plane" in refused(log, RESULT)
    log.close()


def test_a_start_on_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 24) as disk:
        opened(disk / "audit").close()
        (disk / "audit" / "reserve").unlink()
        with filled(disk):
            log = opened(disk / "audit")
            assert "is full" in log.trouble
            assert log.checkpoint() == (b"", -1)
        wait_until(lambda: not log.trouble, "the log to go on")
        assert log.append(ENTRY).result(10) == 0
        log.close()


def test_a_checkpoint_is_not_waited_for_while_none_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tmp_path / "audit")
    log.append(ENTRY).result(10)
    note, covered = log.checkpoint()
    monkeypatch.setattr(log._files, "append_note", _no_space)
    log.append(ENTRY).result(10)
    assert log.checkpoint() == (note, covered)
    monkeypatch.undo()
    wait_until(lambda: not log.trouble, "the log to go on")
    assert log.checkpoint()[1] == 2
    log.close()


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- files taken away -----------------------------------------------------------------------------


def _unlink(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def _edit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    with path.open("r+b") as file:
        file.write(data)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"{}\n")


@pytest.mark.attack
@pytest.mark.parametrize("idle", [True, False])
@pytest.mark.parametrize("does", [_unlink, _cut, _empty, _replace, _edit, _append])
@pytest.mark.parametrize("which", ["first", "last", "checkpoints"])
def test_what_somebody_else_does_to_a_file_is_noticed_and_nothing_more_is_taken(
    tmp_path: Path,
    which: str,
    does: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    idle: bool,
) -> None:
    """The first segment was closed long ago, the last one is written; the log waits or works."""
    folder = tmp_path / "audit"
    log = opened(folder, segment_records=3)
    for _ in range(10):
        log.append(ENTRY).result(10)
    log.checkpoint()
    if not idle:
        # Nobody looks in between: the next write does.
        monkeypatch.setattr(module, "CHECK_SECONDS", 3600.0)
        log.append(ENTRY).result(10)
        log.checkpoint()
    paths = sorted(folder.glob("*.log"))
    assert len(paths) > 2
    path = {"first": paths[0], "last": paths[-1], "checkpoints": folder / "checkpoints"}[which]
    with caplog.at_level(logging.CRITICAL):
        does(path)
        if idle:
            wait_until(lambda: log.trouble, "the log to notice by itself")
        size = log.size
        said = refused(log)
    assert path.name in said
    assert "keep the data directory as it is, find out who did it" in said
    assert str(tmp_path) not in said
    assert log.size == size
    assert [each.levelname for each in caplog.records] == ["CRITICAL"]
    assert "reserve" not in refused(log, RESULT)
    log.close()


def test_each_look_is_at_some_closed_segments_and_all_get_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are as many as the log is old."""
    monkeypatch.setattr(closed, "LOOKED_AT", 3)
    fill(tmp_path / "audit", 9, segment_records=1)
    files = segments.Segments(tmp_path / "audit", KEY.verify_key, ORIGIN)
    looked: list[str] = []
    real = closed.expect

    def expect(path: Path, known: FileIdentity) -> None:
        looked.append(path.stem.lstrip("0") or "0")
        real(path, known)

    monkeypatch.setattr(closed, "expect", expect)
    for _ in range(3):
        files.check()
    assert looked == ["0", "1", "2", "3", "4", "5", "6", "7", "0"]
    monkeypatch.setattr(segments, "LOOK_SECONDS", 1000.0)
    files.check()
    assert len(looked) == 9
    files.close()


@pytest.mark.attack
def test_a_folder_that_was_moved_away_is_noticed(tmp_path: Path) -> None:
    log = opened(tmp_path / "audit")
    log.append(ENTRY).result(10)
    (tmp_path / "audit").rename(tmp_path / "elsewhere")
    wait_until(lambda: log.trouble, "the log to notice")
    assert "the folder audit was removed or replaced" in refused(log)
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "audit")
    assert "was removed or replaced" in refused(log)
    log.close()


@pytest.mark.attack
def test_what_stands_beside_the_log_is_asked_about_too(tmp_path: Path) -> None:
    def guard() -> None:
        if (tmp_path / "gone").exists():
            raise Tampered("state.db was removed or replaced")

    log = opened(tmp_path / "audit", guard=guard)
    log.append(ENTRY).result(10)
    (tmp_path / "gone").touch()
    wait_until(lambda: log.trouble, "the log to notice")
    assert "(state.db was removed or replaced)" in refused(log)
    log.close()


def test_nothing_is_noticed_when_nothing_happens(tmp_path: Path) -> None:
    """Segments follow each other, checkpoints are made, and others read."""
    log = opened(tmp_path / "audit", segment_records=3)
    for expected in range(50):
        assert log.append(ENTRY).result(10) == expected
        if expected % 10 == 0:
            log.checkpoint()
            assert verified(tmp_path / "audit").size == expected + 1
    assert log.trouble == ""
    log.close()
    assert verified(tmp_path / "audit").covered == 50
