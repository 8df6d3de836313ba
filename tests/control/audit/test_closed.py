"""A log that is closed in parts: flat to open, proved part by part, and changed nowhere unseen."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.api.audit.v1 import audit_service_pb2 as rpc
from appliance.control.audit import closed as module
from appliance.control.audit.checking import DAMAGED, AuditMetrics, Checking
from appliance.control.audit.closed import files_of
from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import AuditEntry
from appliance.control.audit.system import SystemRecords
from appliance.control.services.common.caller import Caller
from appliance.control.services.system.audit import Audit
from appliance.core import files
from appliance.core.errors import Tampered
from appliance.core.identity import ANONYMOUS
from appliance.crypto.chain import segment_name
from appliance.crypto.proofs import SegmentProof, notes_of, size_of
from tests.fakes.audit import ENTRY, fill, opened, verified
from tests.fakes.state import START

PART = 10
RESULT = AuditEntry("result", outcome="OK")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of 47 records: four closed segments, and one of seven."""
    fill(tmp_path / "audit", 47, segment_records=PART)
    return tmp_path / "audit"


def sequences(log: AuditLog, start: int, stop: int) -> list[int]:
    return [json.loads(line)["sequence"] for line in log.lines(start, stop)]


def as_before(folder: Path) -> None:
    """Leave a folder as 0.1.0 has it: segments of some size, one file of checkpoints, no proof."""
    notes: list[bytes] = []
    for path in sorted(folder.glob("*.proof")):
        notes += SegmentProof.loads(path.read_bytes(), path.name).notes
        path.unlink()
    rest = notes_of((folder / "checkpoints").read_bytes())
    kept = {size_of(note): note for note in [*notes, *rest]}
    (folder / "checkpoints").write_bytes(b"".join(kept[size] + b"\n" for size in sorted(kept)))


def test_a_segment_is_closed_at_so_many_records_with_a_proof(folder: Path) -> None:
    names = [path.name for path in files_of(folder)]
    assert names == [segment_name(first) for first in range(0, 50, PART)]
    found = [
        SegmentProof.loads(path.read_bytes(), path.name) for path in sorted(folder.glob("*.proof"))
    ]
    assert [(proof.first, proof.size) for proof in found] == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert [proof.length for proof in found] == [
        path.stat().st_size for path in files_of(folder)[:-1]
    ]
    # What a start reads does not grow: checkpoints of closed segments stand in their proofs.
    notes = [size_of(note) for note in notes_of((folder / "checkpoints").read_bytes())]
    assert notes[0] == 40
    assert notes[-1] == 47
    assert verified(folder).covered == 47


def test_it_is_opened_without_reading_closed_segments(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for _ in range(2):
        log = opened(folder, segment_records=PART)
        assert log.size == 47
        log.close()
    assert {name for name in read if name.endswith(".log")} == {segment_name(40)}


def test_lines_are_found_in_every_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INDEXED", 2)
    log = opened(folder, segment_records=PART)
    for start, stop in ((0, 47), (9, 11), (10, 20), (39, 41), (40, 47), (5, 5), (46, 47), (3, 38)):
        assert sequences(log, start, stop) == list(range(start, stop))
    assert [record["sequence"] for record in log.newest()] == list(range(46, -1, -1))
    assert len(log.closed._starts) == 2
    log.close()


def test_readers_find_every_record_while_segments_are_closed(folder: Path) -> None:
    log = opened(folder, segment_records=PART)
    stop, failures = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            size = log.size
            if sequences(log, size - 25, size) != list(range(size - 25, size)):
                failures.append(size)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(300):
        log.append(ENTRY).result(10)
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []
    log.close()
    assert verified(folder).covered == 347


# --- what was left --------------------------------------------------------------------------------


def test_a_log_of_before_is_verified_once_and_closed_where_its_files_end(folder: Path) -> None:
    as_before(folder)
    assert verified(folder).covered == 47
    fill(folder, 5, segment_records=20)
    assert [path.stem for path in sorted(folder.glob("*.proof"))] == [
        f"{first:012d}" for first in range(0, 40, PART)
    ]
    # The open one is filled up.
    fill(folder, 20, segment_records=20)
    assert [path.name for path in files_of(folder)][-2:] == [segment_name(40), segment_name(60)]
    assert verified(folder).covered == 72


@pytest.mark.attack
@pytest.mark.parametrize("at", range(0, 47, 5))
def test_in_a_log_of_before_a_changed_record_is_named(folder: Path, at: int) -> None:
    as_before(folder)
    change(folder, at, lambda line: line.replace(b"alice", b"mallo"))
    with pytest.raises(Tampered) as raised:
        opened(folder)
    assert raised.value.metadata["record"] == str(at)


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_closing_that_was_broken_off_is_done_at_the_next_start(
    folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of its steps: as if the process had been killed there."""
    for number in range(8):
        copy = folder.with_name(f"copy-{number}")
        os.system(f"cp -r {folder} {copy}")
        log = opened(copy, segment_records=PART)
        for _ in range(3):
            log.append(ENTRY).result(10)
        broken = Broken(call, number)
        with monkeypatch.context() as patched:
            patched.setattr(os if call != "rename" else Path, call, broken.instead(call))
            log.append(ENTRY).exception(10)
            log.close()
        log = opened(copy, segment_records=PART)
        assert log.size >= 50
        for _ in range(12):
            log.append(ENTRY).result(10)
        size = log.size
        assert sequences(log, 0, size) == list(range(size))
        log.close()
        assert verified(copy).covered == size
        if not broken.happened:
            return
    raise AssertionError("there are more steps than these")


class Broken:
    """A call that fails the n-th time and from then on."""

    def __init__(self, call: str, number: int) -> None:
        self._real = getattr(os if call != "rename" else Path, call)
        self._left = number
        self.happened = False

    def instead(self, call: str) -> Callable[..., Any]:
        def does(*arguments: Any) -> Any:
            if self._left == 0:
                self.happened = True
                raise OSError(5, "injected")
            self._left -= 1
            return self._real(*arguments)

        return does


@pytest.mark.parametrize("place", ["proof", "checkpoints"])
def test_a_disk_that_is_full_when_a_segment_is_closed_is_waited_for(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had done is in its place, and not known to be durable; results go on meanwhile."""
    monkeypatch.setattr("appliance.control.audit.log.CHECK_SECONDS", 0.01)
    log = opened(folder, segment_records=PART)
    real, failed = files.sync_dir, []

    def full(path: Path) -> None:
        if len(failed) < 3 and sys._getframe(3).f_locals.get("path", path).name.endswith(place):
            failed.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(files, "sync_dir", full)
    for _ in range(3):
        log.append(ENTRY).result(10)
    end = time.monotonic() + 20
    while len(files_of(folder)) < 6 or not (folder / "000000000040.proof").exists() or log.trouble:
        assert time.monotonic() < end
        log.append(RESULT).exception(10)
    assert failed
    size = log.size
    log.close()
    assert verified(folder).covered == size
    again = opened(folder, segment_records=PART)
    assert again.size == size
    again.close()


@pytest.mark.parametrize("place", ["newest", "older"])
def test_a_log_that_went_on_in_a_segment_with_a_proof_is_opened(folder: Path, place: str) -> None:
    """A proof that was not known to be durable, and records after it."""
    first = 30 if place == "newest" else 10
    if place == "newest":
        path = folder / segment_name(30)
        path.write_bytes(path.read_bytes() + (folder / segment_name(40)).read_bytes())
        (folder / segment_name(40)).unlink()
    else:
        (folder / f"{first:012d}.proof").unlink()
    log = opened(folder, segment_records=PART)
    assert log.size == 47
    log.close()
    assert verified(folder).covered == 47


# --- changed --------------------------------------------------------------------------------------


def change(folder: Path, at: int, how: Callable[[bytes], bytes]) -> None:
    """Change a record."""
    path = max(path for path in files_of(folder) if int(path.stem) <= at)
    lines = path.read_bytes().splitlines()
    lines[at - int(path.stem)] = how(lines[at - int(path.stem)])
    path.write_bytes(b"".join(line + b"\n" for line in lines))


class Noted:
    """Records what is said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, object]]] = []

    def check(self) -> None:
        raise AssertionError("nothing appears")

    def record(self, what: str, resource: str, **made: object) -> None:
        raise AssertionError(what)

    def note(self, what: str, resource: str, outcome: str, **made: object) -> None:
        del resource, outcome
        self.said.append((what, made))


@pytest.mark.attack
@pytest.mark.parametrize("at", [0, 1, 9, 10, 25, 38, 39])
def test_a_changed_record_of_a_closed_segment_is_named_in_the_background(
    folder: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.control.audit.checking.PAUSE_SECONDS", 0.0)
    change(folder, at, lambda line: line.replace(b"alice", b"mallo"))
    log, noted = opened(folder, segment_records=PART), Noted()
    checking = Checking(log, noted)
    for _ in range(2):
        checking.verify_all()
    name = segment_name(at // PART * PART)
    assert noted.said == [(DAMAGED, {"segment": name, "record": str(at)})]
    assert checking.verified == 30
    assert list(checking.damaged) == [name]
    gauges = {each.name: each.samples[0].value for each in AuditMetrics(log, checking).collect()}
    assert gauges["appliance_audit_damaged_segments"] == 1
    assert (gauges["appliance_audit_records"], gauges["appliance_audit_verified_records"]) == (
        47,
        30,
    )
    assert gauges["appliance_audit_free_bytes"] > 0
    log.close()
    with pytest.raises(Tampered) as raised:
        verified(folder)
    assert raised.value.metadata["record"] == str(at)


async def test_what_is_found_is_in_the_log(folder: Path) -> None:
    change(folder, 3, lambda line: line.replace(b"alice", b"mallo"))
    log = opened(folder, segment_records=PART)
    Checking(log, SystemRecords(log)).verify_all()
    (record,) = list(log.lines(47))
    found = json.loads(record)
    assert (found["kind"], found["method"], found["details"]) == (
        "event",
        DAMAGED,
        {"made": {"segment": segment_name(0), "record": "3"}},
    )
    log.close()


@pytest.mark.attack
@pytest.mark.parametrize("at", [0, 15, 39])
@pytest.mark.parametrize(
    "how", [lambda line: line.replace(b"alice", b"al"), lambda line: line + b"\n" + line]
)
def test_a_closed_segment_of_another_length_stops_the_start_and_is_named(
    folder: Path, at: int, how: Callable[[bytes], bytes]
) -> None:
    change(folder, at, how)
    with pytest.raises(Tampered) as raised:
        opened(folder)
    assert raised.value.metadata["record"] in {str(at), str(at + 1)}


@pytest.mark.attack
@pytest.mark.parametrize("first", [0, 10, 30, 40])
def test_a_segment_that_is_missing_stops_the_start(folder: Path, first: int) -> None:
    (folder / segment_name(first)).unlink()
    with pytest.raises(Tampered) as raised:
        opened(folder)
    assert raised.value.metadata["record"] == str(first)


@pytest.mark.attack
def test_a_changed_last_record_is_not_linked_to_and_not_believed(folder: Path) -> None:
    """Nothing is signed after it: it is in the newest closed segment, and none is open."""
    (folder / segment_name(40)).unlink()
    path = folder / "000000000030.proof"
    notes = SegmentProof.loads(path.read_bytes(), "p").notes
    (folder / "checkpoints").write_bytes(notes[-1] + b"\n")
    opened(folder, segment_records=PART).close()
    change(folder, 39, lambda line: line.replace(b"alice", b"mallo"))
    with pytest.raises(Tampered) as raised:
        opened(folder, segment_records=PART)
    assert raised.value.metadata["record"] == "39"


@pytest.mark.attack
@pytest.mark.parametrize("generation", [b"-1", b"1e400", b"9223372036854775808", b'"7"', b"true"])
def test_a_number_of_changes_that_is_none_is_refused(tmp_path: Path, generation: bytes) -> None:
    folder = tmp_path / "audit"
    fill(folder, 1)
    (folder / "checkpoints").write_bytes(b"")
    change(folder, 0, lambda line: line.replace(b'"generation":0', b'"generation":' + generation))
    with pytest.raises(Tampered, match="record 0"):
        opened(folder)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"details"', b'"DETAILS"'),
        (b'"sequence":25', b'"sequence":95'),
        (b'"sequence":25', b'"sequence":10'),
        (b"{", b"x"),
        (b'"kind"', b'"KIND"'),
    ],
)
def test_a_damaged_record_hides_no_other(folder: Path, old: bytes, new: bytes) -> None:
    change(folder, 25, lambda line: line.replace(old, new, 1))
    log = opened(folder, segment_records=PART)
    found = [(record["sequence"], record["kind"]) for record in log.newest()]
    assert [each[0] for each in found] == list(range(46, -1, -1))
    assert [each[0] for each in found if each[1] == "damaged"] == [25]
    service = Audit(log, lambda: START)
    pages, token = [], ""
    while True:
        page = service.list(
            Caller(ANONYMOUS), rpc.ListRecordsRequest(page_size=20, page_token=token)
        )
        pages += [record.sequence for record in page.records]
        if not (token := page.next_page_token):
            break
    assert pages == list(range(46, -1, -1))
    log.close()


@pytest.mark.attack
def test_a_damaged_segment_is_listed_with_the_others(folder: Path) -> None:
    change(folder, 9, lambda line: line.replace(b'"time"', b'"TIME"'))
    log = opened(folder, segment_records=PART)
    log.closed.segments[2].proof_path.write_bytes(b"x")
    listed = Audit(log, lambda: START).segments(Caller(ANONYMOUS), rpc.ListSegmentsRequest())
    assert [each.first_record for each in listed.segments] == [0, 10, 20, 30]
    assert [each.HasField("close_time") for each in listed.segments] == [False, True, True, True]
    assert [bool(each.proof) for each in listed.segments] == [True, True, False, True]
    log.close()


def test_a_number_of_changes_has_an_end(folder: Path) -> None:
    """Whoever writes a huge one into the state makes no log that cannot be opened."""
    fill(folder, 1, segment_records=PART, generation=lambda: 1 << 60)
    log = opened(folder, segment_records=PART, generation=lambda: (1 << 60) + 1)
    log.append(ENTRY).result(10)
    log.close()
    opened(folder, segment_records=PART).close()


@pytest.mark.attack
def test_what_the_state_remembers_is_no_signature(folder: Path) -> None:
    """Whoever can write log and state, and has no key, does not get a broken link signed."""
    path = folder / segment_name(40)
    line = path.read_bytes().splitlines()[-1]
    path.write_bytes(path.read_bytes() + line + b"\n")
    tree = SegmentProof.loads((folder / "000000000030.proof").read_bytes(), "p").tree()
    tree.extend(path.read_bytes().splitlines(keepends=True))
    with pytest.raises(Tampered, match="record 47"):
        opened(folder, known={48: tree.root()})


@pytest.mark.attack
def test_no_checkpoint_that_is_not_signed_gets_into_a_proof(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.crypto.proofs.NOTE_RECORDS", 1)
    notes = folder / "checkpoints"
    forged = b"appliance/lab/audit\n43\nAAAA\n\n\xe2\x80\x94 appliance/lab/audit AAAA\n\n"
    notes.write_bytes(forged + notes.read_bytes())
    fill(folder, 10, segment_records=PART)
    kept = SegmentProof.loads((folder / "000000000040.proof").read_bytes(), "p").notes
    assert 43 not in {size_of(note) for note in kept}
    assert verified(folder).covered == 57


def test_what_is_archived_while_it_is_verified_is_not_missed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, noted = opened(folder, segment_records=PART), Noted()
    checking = Checking(log, noted)
    real, root = log.closed.verify, log.closed.segments[1].end.root()

    def verify(segment: module.Segment, pause: Callable[[], None]) -> None:
        log.leaving.archive(20, root)
        real(segment, pause)

    monkeypatch.setattr(log.closed, "verify", verify)
    checking.verify_all()
    assert (noted.said, checking.damaged, checking.verified) == ([], {}, 20)
    log.close()


def test_one_that_cannot_be_verified_hides_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(folder, 35, lambda line: line.replace(b"alice", b"mallo"))
    log, noted = opened(folder, segment_records=PART), Noted()
    checking, real = Checking(log, noted), log.closed.verify

    def verify(segment: module.Segment, pause: Callable[[], None]) -> None:
        if segment.first == 10:
            raise ValueError("something")
        real(segment, pause)

    monkeypatch.setattr(log.closed, "verify", verify)
    checking.verify_all()
    assert list(checking.damaged) == [segment_name(10), segment_name(30)]
    assert "cannot be read: something" in checking.damaged[segment_name(10)]
    log.close()


@pytest.mark.attack
def test_no_proof_makes_a_changed_segment_right(folder: Path) -> None:
    """Whoever can write every file, and has no key, writes a segment and its proof anew."""
    change(folder, 25, lambda line: line.replace(b"alice", b"mallo"))
    path = folder / "000000000020.proof"
    proof = SegmentProof.loads(path.read_bytes(), path.name)
    tree = SegmentProof.loads((folder / "000000000010.proof").read_bytes(), "p").tree()
    for line in (folder / segment_name(20)).read_bytes().splitlines():
        tree.append(module.leaf_hash(line))
    path.write_bytes(SegmentProof.of(20, proof.length, tree, proof.notes).dumps())
    # Its own signature is not over that: what comes from there on is verified, the record named.
    for look in (opened, verified):
        with pytest.raises(Tampered) as raised:
            look(folder)
        assert raised.value.metadata["record"] == "25"


@pytest.mark.parametrize("first", [0, 20, 30])
@pytest.mark.parametrize(
    "how",
    [
        Path.unlink,
        lambda path: path.write_bytes(b"x"),
        lambda path: path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(path.read_bytes()[:-4] + "\xe9\n\n".encode()),
    ],
)
def test_a_lost_proof_is_made_anew(folder: Path, first: int, how: Callable[[Path], object]) -> None:
    how(folder / f"{first:012d}.proof")
    log = opened(folder)
    assert [segment.first for segment in log.closed.segments] == [0, 10, 20, 30]
    for segment in log.closed.segments:
        log.closed.verify(segment)
    log.close()
    assert verified(folder).covered == 47


@pytest.mark.attack
@pytest.mark.parametrize("size", [1, 10, 11, 25, 40, 44])
def test_what_was_seen_elsewhere_is_compared_wherever_it_lies(folder: Path, size: int) -> None:
    log = opened(folder)
    root = log.closed.root_at(size) if size <= 40 else None
    log.close()
    if root is not None:
        opened(folder, known={size: root}).close()
    with pytest.raises(Tampered, match=r"another one in its place|not what the signed"):
        opened(folder, known={size: b"\1" * 32})
