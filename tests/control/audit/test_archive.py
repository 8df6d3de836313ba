"""Closed segments leave: into a folder of somebody else, and by age out of that; always proved."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.cli.audit_folder import ArchiveFolder, AuditParts
from appliance.control.audit import segments
from appliance.control.audit.archive import Archive
from appliance.control.audit.closed import files_of
from appliance.control.audit.record import AuditEntry
from appliance.control.auth.scopes import PLATFORM
from appliance.core import files
from appliance.core.data_directory import DataDirectory
from appliance.core.errors import FailedPrecondition, InvalidInput, Tampered, Unavailable
from appliance.crypto.chain import CHECKPOINTS
from appliance.crypto.merkle import Tree
from appliance.crypto.proofs import ARCHIVED, PRUNED, SegmentProof
from tests.fakes import moved_clock
from tests.fakes.audit import KEY, ORIGIN, fill, opened, verified
from tests.fakes.site import Person, Said, Site, new_site

PART = 20
USAGE, NOT_ALLOWED = 2, 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of 95 records: four closed segments, and one of fifteen."""
    fill(tmp_path / "audit", 95, segment_records=PART)
    return tmp_path / "audit"


def moved(folder: Path, archive: Path, size: int) -> None:
    """Copy the closed segments up to a size, as the command does."""
    log, there = opened(folder, segment_records=PART), ArchiveFolder(archive)
    begin = log.closed.start
    for segment in log.closed.segments:
        if segment.end.size <= size:
            there.take_in(segment.proof(), begin, [segment.path.read_bytes()])
        begin = segment.end
    log.close()


def archived(folder: Path, size: int) -> None:
    log = opened(folder, segment_records=PART)
    end = next(each.end for each in log.closed.segments if each.end.size == size)
    assert log.leaving.archive(size, end.root()) == size
    log.close()


# --- the log --------------------------------------------------------------------------------------


def test_what_is_archived_is_gone_here_and_the_rest_is_still_proved(
    folder: Path, tmp_path: Path
) -> None:
    whole = verified(folder)
    moved(folder, tmp_path / "archive", 40)
    archived(folder, 40)
    assert [int(path.stem) for path in files_of(folder)] == [40, 60, 80]
    rest = verified(folder)
    assert (rest.first, rest.size, rest.root) == (40, 95, whole.root)
    assert verified(tmp_path / "archive", folder) == whole
    log = opened(folder, segment_records=PART)
    assert (log.first, log.size) == (40, 95)
    assert [record["sequence"] for record in log.newest()] == list(range(94, 39, -1))
    assert len(list(log.lines(40))) == 55
    for start in (0, 39):
        with pytest.raises(FailedPrecondition, match="was archived"):
            list(log.lines(start))
    # Once more, and further.
    assert log.leaving.archive(40, b"") == 40
    log.close()
    moved(folder, tmp_path / "archive", 60)
    archived(folder, 60)
    fill(folder, 60, segment_records=PART)
    assert verified(tmp_path / "archive", folder).size == 155


@pytest.mark.attack
def test_nothing_is_deleted_but_what_was_read_up_to_the_end_of_a_segment(folder: Path) -> None:
    log = opened(folder, segment_records=PART)
    roots = {each.end.size: each.end.root() for each in log.closed.segments}
    for size, root in ((40, roots[60]), (40, b""), (40, b"\0" * 32)):
        with pytest.raises(InvalidInput, match="not the root of these records"):
            log.leaving.archive(size, root)
    # Not in the middle of one; not the newest, whose last record the next one names; not the open.
    for size in (39, 41, 80, 95, 96):
        with pytest.raises(FailedPrecondition, match="no closed segment before the newest ends"):
            log.leaving.archive(size, roots.get(size, b""))
    assert log.first == 0
    log.close()
    assert verified(folder).size == 95


def test_archiving_that_was_broken_off_is_finished_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(folder, segment_records=PART)
    root = log.closed.segments[1].end.root()
    real, calls = Path.unlink, []

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(5, "injected")
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(Unavailable, match="injected"):
        log.leaving.archive(40, root)
    monkeypatch.undo()
    log.close()
    assert (folder / "000000000020.log").exists()
    log = opened(folder, segment_records=PART)
    assert (log.first, log.size) == (40, 95)
    log.close()
    assert sorted(path.name for path in folder.glob("0000000000[02]0.*")) == []
    assert verified(folder).first == 40


@pytest.mark.attack
def test_what_was_deleted_is_not_called_archived_by_anybody_else(folder: Path) -> None:
    proof = SegmentProof.loads((folder / "000000000020.proof").read_bytes(), "p")
    for first in (0, 20):
        for path in folder.glob(f"{first:012d}.*"):
            path.unlink()
    (folder / ARCHIVED).write_bytes(proof.dumps())
    for look in (opened, verified):
        with pytest.raises(Tampered):
            look(folder)
    (folder / ARCHIVED).write_bytes(proof.signed_as(PRUNED, KEY, ORIGIN).dumps())
    with pytest.raises(Tampered):
        opened(folder)
    (folder / ARCHIVED).unlink()
    with pytest.raises(Tampered, match="record 0 is not what was written"):
        opened(folder)
    with pytest.raises(FailedPrecondition, match="add --archive"):
        verified(folder)


# --- the archive ----------------------------------------------------------------------------------


def test_what_is_pruned_is_signed_and_the_rest_is_still_proved(
    folder: Path, tmp_path: Path
) -> None:
    moved(folder, tmp_path / "archive", 60)
    archived(folder, 60)
    there = ArchiveFolder(tmp_path / "archive")
    log = opened(folder, segment_records=PART)
    statement = log.leaving.prune(there.proofs()[0].dumps())
    assert there.prune(statement.dumps()) == 1
    found = verified(tmp_path / "archive", folder)
    assert (found.first, found.size) == (20, 95)
    # All of it.
    assert there.prune(log.leaving.prune(there.proofs()[-1].dumps()).dumps()) == 2
    assert verified(tmp_path / "archive", folder).first == 60
    log.close()


@pytest.mark.attack
def test_nothing_is_signed_as_pruned_that_is_not_archived_or_not_ours(folder: Path) -> None:
    archived(folder, 20)
    log = opened(folder, segment_records=PART)
    with pytest.raises(FailedPrecondition, match="archive them first"):
        log.leaving.prune((folder / "000000000020.proof").read_bytes())
    segment = log.closed.segments[0]
    for wrong in (b"", b"{}\n", segment.proof().signed_as(ARCHIVED, KEY, ORIGIN).dumps()):
        with pytest.raises(InvalidInput, match="not a proof of this log"):
            log.leaving.prune(wrong)
    stranger = Archive(log.closed, KEY, "appliance/other/audit")
    with pytest.raises(InvalidInput):
        stranger.prune(segment.proof().dumps())
    log.close()


@pytest.mark.attack
def test_a_change_in_an_archive_is_named_and_so_is_a_gap(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    moved(folder, archive, 60)
    archived(folder, 60)
    path = archive / "000000000020.log"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"alice", b"mallo", 1))
    with pytest.raises(Tampered) as raised:
        verified(archive, folder)
    assert raised.value.metadata["record"] == "20"
    path.unlink()
    with pytest.raises(Tampered) as raised:
        verified(archive, folder)
    assert raised.value.metadata["record"] == "20"
    path.write_bytes(data)
    assert verified(archive, folder).size == 95


def test_a_server_that_sends_other_records_is_not_believed(folder: Path, tmp_path: Path) -> None:
    log = opened(folder, segment_records=PART)
    first, second = log.closed.segments[:2]
    there = ArchiveFolder(tmp_path / "archive")
    with pytest.raises(Tampered, match="nothing was deleted there"):
        there.take_in(first.proof(), Tree(), [second.path.read_bytes()])
    assert there.proofs() == []
    assert not there.holds(first.proof(), Tree())
    log.close()


@pytest.mark.attack
def test_what_is_signed_as_archived_is_what_was_asked_for_whatever_lies_in_its_proof(
    folder: Path,
) -> None:
    log = opened(folder, segment_records=PART)
    first = log.closed.segments[0]
    first.proof_path.write_bytes(log.closed.segments[3].proof_path.read_bytes())
    assert log.leaving.archive(20, first.end.root()) == 20
    log.close()
    assert SegmentProof.loads((folder / ARCHIVED).read_bytes(), "p").size == 20
    assert verified(folder).first == 20


def test_a_later_call_that_archives_less_changes_nothing(folder: Path) -> None:
    log = opened(folder, segment_records=PART)
    roots = {each.end.size: each.end.root() for each in log.closed.segments}
    assert log.leaving.archive(60, roots[60]) == 60
    assert log.leaving.archive(40, roots[40]) == 60
    log.close()
    assert verified(folder).first == 60


@pytest.mark.attack
def test_an_archive_of_another_log_is_not_written_over(folder: Path, tmp_path: Path) -> None:
    archive, other = tmp_path / "archive", tmp_path / "other"
    moved(folder, archive, 60)
    fill(other, 45, segment_records=PART)
    another_life(other)
    log, there = opened(other, segment_records=PART), ArchiveFolder(archive)
    proof = log.closed.segments[0].proof()
    with pytest.raises(FailedPrecondition, match="choose another folder"):
        there.holds(proof, Tree())
    log.close()
    assert verified(archive).size == 60


def another_life(folder: Path) -> None:
    """Make the log in a folder another one, by a year that it has lived since."""
    for path in folder.iterdir():
        path.unlink()
    log = opened(folder, segment_records=PART)
    for _ in range(45):
        log.append(AuditEntry("intent", principal="users/mallory")).result(10)
    log.close()


def test_a_segment_that_was_copied_badly_is_copied_again(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    moved(folder, archive, 40)
    log, there = opened(folder, segment_records=PART), ArchiveFolder(archive)
    first = log.closed.segments[0]
    proof, path = first.proof(), there.path_of(first.proof())
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole.replace(b"alice", b"mallo"), b""):
        path.write_bytes(damaged)
        assert not there.holds(proof, Tree())
        there.take_in(proof, Tree(), [whole])
    # Its own proof is set right, too.
    there.proof_path_of(proof).write_bytes(SegmentProof.of(0, proof.length, first.end, ()).dumps())
    assert there.holds(proof, Tree())
    log.close()
    assert verified(archive).covered == 40
    leftovers = [each for each in archive.iterdir() if each.suffix == ".tmp"]
    assert leftovers == []


@pytest.mark.attack
def test_what_is_missing_in_an_archive_is_missed_whatever_lies_beside_it(
    folder: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    moved(folder, archive, 60)
    archived(folder, 20)
    statement = (folder / ARCHIVED).read_bytes()
    archived(folder, 60)
    for name in ("000000000000.log", "000000000000.proof"):
        (archive / name).unlink()
    (archive / ARCHIVED).write_bytes(statement)
    for folders in ((archive,), (archive, folder)):
        with pytest.raises(FailedPrecondition, match="records from 0 on are missing"):
            verified(*folders)
    for path in archive.iterdir():
        path.unlink()
    with pytest.raises(FailedPrecondition, match="holds no part"):
        verified(archive, folder)


@pytest.mark.attack
def test_records_that_nobody_signed_are_no_part_of_an_archive(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    moved(folder, archive, 40)
    # One that was being copied is no part of it.
    extra = archive / "000000000040.log"
    extra.write_bytes((folder / "000000000040.log").read_bytes())
    (archive / "app.log").write_text("something else")
    assert verified(archive).size == 40
    extra.unlink()
    path = archive / "000000000020.log"
    path.write_bytes(path.read_bytes() + (folder / "000000000040.log").read_bytes())
    # Whatever lies beside it, also a file of checkpoints.
    for _ in range(2):
        parts = AuditParts()
        parts.add_archive(archive)
        with pytest.raises(Tampered, match="records from 40 on are not signed"):
            parts.verify(KEY.verify_key, None)
        (archive / CHECKPOINTS).touch()


@pytest.mark.attack
def test_two_copies_that_differ_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        moved(folder, tmp_path / name, 40)
    path = tmp_path / "a" / "000000000000.log"
    path.write_bytes(path.read_bytes().replace(b"alice", b"mallo", 1))
    for order in (("a", "b"), ("b", "a")):
        with pytest.raises(Tampered, match="differ"):
            verified(*(tmp_path / name for name in order))


def test_pruning_that_was_broken_off_is_finished_by_the_next(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    moved(folder, archive, 60)
    archived(folder, 60)
    log, there = opened(folder, segment_records=PART), ArchiveFolder(archive)
    statement = log.leaving.prune(there.proofs()[1].dumps()).dumps()
    log.close()
    (archive / PRUNED).write_bytes(statement)
    (archive / "000000000000.log").unlink()
    assert verified(archive, folder).first == 40
    assert [proof.size for proof in there.proofs()] == [60]
    there.prune(statement)
    assert sorted(path.name for path in archive.iterdir()) == [
        "000000000040.log",
        "000000000040.proof",
        PRUNED,
    ]


def test_what_other_records_left_behind_is_not_taken_for_pruned(
    folder: Path, tmp_path: Path
) -> None:
    """A server that was restored from a backup archives into the folder of before."""
    archive = tmp_path / "archive"
    moved(folder, archive, 60)
    archived(folder, 60)
    log, there = opened(folder, segment_records=PART), ArchiveFolder(archive)
    statement = log.leaving.prune(there.proofs()[-1].dumps())
    log.close()
    there.prune(statement.dumps())
    assert there.pruned_size() == 60
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    another_life(other)
    moved(other, archive, 40)
    with pytest.raises(FailedPrecondition, match="not those that were pruned"):
        there.finish_pruning(statement)
    assert len(list(archive.glob("*.log"))) == 2


@pytest.mark.parametrize("again", [True, False])
def test_archiving_that_is_not_known_to_be_durable_counts_and_deletes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, again: bool
) -> None:
    log = opened(folder, segment_records=PART)
    root, real = log.closed.segments[1].end.root(), files.sync_dir

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync_dir", full)
    with pytest.raises(Unavailable, match="repeat it"):
        log.leaving.archive(40, root)
    monkeypatch.setattr(files, "sync_dir", real)
    assert len(files_of(folder)) == 5
    assert (log.first, SegmentProof.loads(log.closed.statement, "p").size) == (40, 40)
    if again:
        assert log.leaving.archive(40, root) == 40
    log.close()
    log = opened(folder, segment_records=PART)
    assert (log.first, len(files_of(folder))) == (40, 3)
    log.close()


def test_an_export_that_an_archive_holds_too_is_verified_alone(
    folder: Path, tmp_path: Path
) -> None:
    export = tmp_path / "export"
    export.write_bytes(b"".join(path.read_bytes() for path in files_of(folder)))
    moved(folder, tmp_path / "archive", 40)
    parts = AuditParts()
    parts.add_archive(tmp_path / "archive")
    with pytest.raises(FailedPrecondition, match="verify each alone"):
        parts.add_export(export)


def test_each_folder_holds_a_part_also_a_second_one(folder: Path, tmp_path: Path) -> None:
    """Of the first a statement says that records were archived; that excuses no other."""
    moved(folder, tmp_path / "archive", 40)
    archived(folder, 40)
    parts = AuditParts()
    parts.add_folder(folder)
    (tmp_path / "mistyped").mkdir()
    with pytest.raises(FailedPrecondition, match="mistyped holds no part of an audit log"):
        parts.add_archive(tmp_path / "mistyped")


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(segments, "SEGMENT_RECORDS", PART)
    async with new_site(tmp_path) as made:
        yield made


async def grown(site: Site, who: Person, records: int) -> None:
    while site.appliance.control.base.opened.log.size < records:
        assert (await who.type("whoami")).code == 0


async def in_two_days(folder: Path, who: Person, *arguments: str) -> Said:
    """Type a command when it is two days later for whoever types."""
    around = moved_clock.surroundings(moved_clock.build(folder), timedelta(days=2))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appliance.cli.main", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "XDG_CONFIG_HOME": str(who.home), **around},
    )
    out, err = await process.communicate()
    return Said(process.returncode or 0, out.decode(), err.decode())


async def test_from_the_log_into_an_archive_and_out_of_it_by_age(
    site: Site, tmp_path: Path
) -> None:
    alice, archive = site.person("alice"), tmp_path / "archive"
    key, note = tmp_path / "key.pem", tmp_path / "note"
    await alice.type("audit", "checkpoint", "--public-key-out", str(key), "--out", str(note))
    await grown(site, alice, 4 * PART + 5)
    data = DataDirectory(site.appliance.folder)
    verify = ("audit", "verify", "--public-key", str(key), "-o", "json")

    first = await moved_into(archive, data, alice)
    await whole_with(archive, data, alice, first, verify=verify, note=note)
    prune = ("audit", "prune", "--archive", str(archive), "--older-than", "1", "--yes")
    young = await alice.type(*prune)
    assert (young.code, "is 1 days old" in young.err) == (0, True)
    # A clock of this machine that is ahead deletes nothing.
    ahead = await in_two_days(tmp_path, alice, *prune)
    assert (ahead.code, "is 1 days old" in ahead.err) == (0, True), ahead.err
    site.appliance.clock.forward(days=2)
    alice = site.person("alice")
    pruned = await in_two_days(tmp_path, alice, *prune, "-o", "json")
    assert pruned.code == 0, pruned.err
    assert json.loads(pruned.out) == {"pruned": first // PART, "first_record": first}
    assert sorted(path.name for path in archive.iterdir()) == [PRUNED]
    last = await alice.type(*verify, "--archive", str(archive), "--data-dir", str(data.path))
    assert json.loads(last.out)["first"] == first

    made = [
        (each["method"].rpartition("/")[2], each["kind"], each["details"].get("made"))
        for each in site.appliance.records()
        if each["method"].endswith(("/ArchiveSegments", "/PruneArchive"))
    ]
    assert made == [
        *(
            2
            * [
                ("ArchiveSegments", "intent", None),
                ("ArchiveSegments", "result", {"first_record": 0}),
            ]
        ),
        ("ArchiveSegments", "intent", None),
        ("ArchiveSegments", "result", {"first_record": first}),
        ("PruneArchive", "intent", None),
        ("PruneArchive", "result", {"size": first}),
    ]


async def moved_into(archive: Path, data: DataDirectory, alice: Person) -> int:
    """Archive what is closed; the first record that is left."""
    early = await alice.type(
        *("audit", "archive", "--out", str(archive), "--older-than", "1", "-o", "json")
    )
    assert (early.code, "nothing to do" in early.err) == (0, True)
    assert json.loads(early.out) == {"archived": 0, "first_record": 0}
    asked = await alice.type("audit", "archive", "--out", str(archive))
    assert (asked.code, files_of(data.audit)[0].name) == (3, "000000000000.log")
    # What is there from the run before is proved and not read again.
    done = await alice.type("audit", "archive", "--out", str(archive), "--yes", "-o", "json")
    assert done.code == 0, done.err
    assert done.err.count("is there already") >= 3
    first = json.loads(done.out)["first_record"]
    assert json.loads(done.out)["archived"] == first // PART >= 3
    assert int(files_of(data.audit)[0].stem) == first
    return first


async def whole_with(
    archive: Path,
    data: DataDirectory,
    alice: Person,
    first: int,
    *,
    verify: tuple[str, ...],
    note: Path,
) -> None:
    """The log is verified with its archive, and as far as it goes without."""
    export, late = note.with_name("export"), note.with_name("late")
    both = ("--archive", str(archive), "--data-dir", str(data.path), "--checkpoint", str(note))
    found = await alice.type(*verify, *both)
    assert (found.code, json.loads(found.out)["first"]) == (0, 0), found.err
    rest = await alice.type(*verify, "--data-dir", str(data.path))
    assert (json.loads(rest.out)["first"], "archived or pruned" in rest.err) == (first, True)
    older = await alice.type(*verify, "--data-dir", str(data.path), "--checkpoint", str(note))
    assert (older.code, "add --archive with the folder of those before" in older.err) == (1, True)
    await alice.type("audit", "export", "--out", str(export))
    records = ("--records", str(export), "--checkpoint", str(note))
    assert (await alice.type(*verify, *records, "--archive", str(archive))).code == 0
    # What says that the rest was archived was written beside the export.
    await alice.type("audit", "checkpoint", "--out", str(late))
    await alice.type("audit", "export", "--out", str(export))
    lone = await alice.type(*verify, "--records", str(export), "--checkpoint", str(late))
    assert (lone.code, json.loads(lone.out)["first"]) == (0, first), lone.err
    newer = await alice.type(*verify, "--archive", str(archive), "--checkpoint", str(late))
    assert (newer.code, "add --data-dir or --records" in newer.err) == (1, True)
    assert (await alice.type(*verify)).code == USAGE
    wrong = await alice.type(*verify, "--data-dir", str(note.parent))
    assert (wrong.code, "holds no part of an audit log" in wrong.err) == (1, True)
    # Lists come to their end, and exports too.
    listed = await alice.type("audit", "list", "--limit", "0", "--outcome", "nothing-of-it")
    assert listed.code in {0, 1}


async def test_who_may_archive(site: Site, tmp_path: Path) -> None:
    alice = site.person("alice")
    await grown(site, alice, 3 * PART)
    olga = site.person("olga", ("auditor", PLATFORM))
    command = ("audit", "archive", "--out", str(tmp_path / "archive"), "--yes")
    refused = await olga.type(*command)
    assert (refused.code, "audit.archive" in refused.err) == (NOT_ALLOWED, True)
    # Said before anything was read.
    assert not (tmp_path / "archive").exists()
    assert site.appliance.control.base.opened.log.first == 0
    exported = await alice.type("audit", "export", "--out", str(tmp_path / "export"))
    assert exported.code == 0
