"""`appliance audit archive` and `prune`: closed segments move into a folder, and leave it by age.

Rules kept here:
* each segment is read, made durable and proved here, with the server's key, before anything is
  deleted there; what is in the folder from a run that was broken off is proved, and not read again;
* permission and second factor are asked for before anything is read;
* of an archive nothing is deleted before the server has signed that it is; how old records are is
  seen by the server's clock and by this machine's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from appliance.cli.audit import EXPORT_SECONDS
from appliance.cli.audit_folder import ArchiveFolder, begins_of
from appliance.cli.prompts import agree
from appliance.cli.session import CommandSession
from appliance.core.errors import FailedPrecondition
from appliance.crypto.merkle import Tree
from appliance.crypto.proofs import PRUNED, SegmentProof
from appliance.crypto.signing import VerifyKey

CALL_SECONDS = 60.0


def archive_segments(session: CommandSession, out: Path, days: int, *, yes: bool) -> None:
    """Archive what is older than so many days."""
    segments, archived = _listed(session)
    begins = begins_of(archived, (SegmentProof.loads(each.proof, "segment") for each in segments))
    until = datetime.now(UTC) - timedelta(days=days)
    # The newest closed one stays; what is deleted has no gap.
    old = itertools.takewhile(
        lambda pair: pair[1].close_time.ToDatetime(UTC) <= until,
        zip(begins[:-1], segments, strict=False),
    )
    chosen = [pair for pair, _ in old]
    if not chosen:
        younger = f", and is {days} days old" if days else ""
        click.echo(f"no segment is closed, but the newest{younger}: nothing to do", err=True)
        session.show({"archived": 0, "first_record": begins[0][0].first if begins else 0})
        return
    # As one who may, and with a fresh second factor: nothing ends at size 0.
    session.call("AuditService.ArchiveSegments", size=0, root=b"", timeout=CALL_SECONDS)
    key, origin, _ = _known(session)
    archive, last = ArchiveFolder(out), chosen[-1][0]
    if archive.pruned_size() > chosen[0][0].first:
        raise FailedPrecondition(
            f"in {out} records up to {archive.pruned_size() - 1} were pruned, and what is to be "
            f"archived begins with record {chosen[0][0].first}: choose another folder"
        )
    for number, (proof, begin) in enumerate(chosen, 1):
        proof.check(key, origin)
        name = archive.path_of(proof).name
        if archive.holds(proof, begin):
            click.echo(f"{number}/{len(chosen)} {name} is there already", err=True)
            continue
        archive.take_in(proof, begin, _pieces(session, proof))
        click.echo(f"{number}/{len(chosen)} {name} is proved", err=True)
    if not yes:
        agree(f"Delete records {chosen[0][0].first} to {last.size - 1} on the server?")
    done = session.call(
        "AuditService.ArchiveSegments",
        size=last.size,
        root=last.tree().root(),
        timeout=CALL_SECONDS,
    )
    if done.first_record < last.size:
        raise FailedPrecondition("the server deleted something else: look at its log")
    session.show({"archived": len(chosen), "first_record": int(done.first_record)})


def prune_archive(session: CommandSession, folder: Path, days: int, *, yes: bool) -> None:
    """Delete what is older than so many days from an archive."""
    archive = ArchiveFolder(folder)
    found, statement = archive.proofs(), archive.pruned()
    if not found and not statement:
        raise FailedPrecondition(f"{folder} holds no archive: check the folder")
    key, origin, now = _known(session)
    begin = Tree()
    if statement:
        before = SegmentProof.loads(statement, PRUNED)
        before.check(key, f"{origin}/{PRUNED}")
        # The pruning of before may not have come to its end.
        archive.finish_pruning(before)
        begin = before.tree()
    until = min(now, datetime.now(UTC)) - timedelta(days=days)
    old = list(itertools.takewhile(lambda proof: archive.last_time(proof) <= until, found))
    if not old:
        click.echo(f"no segment in {folder} is {days} days old: nothing to do", err=True)
        session.show({"pruned": 0, "first_record": found[0].first if found else begin.size})
        return
    last = old[-1]
    for proof in old:
        # Their own last records say how old they are: only when they are what was signed.
        proof.check(key, origin)
        if proof.first != begin.size or not archive.holds(proof, begin):
            raise FailedPrecondition(
                f"{archive.path_of(proof)} is not what was signed, or what comes before it is "
                "missing: nothing was deleted; look with `appliance audit verify`"
            )
        begin = proof.tree()
    if not yes:
        agree(f"Delete records up to {last.size - 1} in {folder} for ever?")
    done = session.call(
        "AuditService.PruneArchive",
        proof=last.dumps(),
        older_than_days=days,
        timeout=CALL_SECONDS,
    )
    signed = SegmentProof.loads(done.statement, PRUNED)
    signed.check(key, f"{origin}/{PRUNED}")
    if (signed.size, signed.peaks) != (last.size, last.peaks):
        raise FailedPrecondition("the server signed something else: nothing was deleted")
    session.show({"pruned": archive.prune(done.statement), "first_record": last.size})


def _listed(session: CommandSession) -> tuple[list[Any], bytes]:
    """All closed segments of the server, and what it says of those before."""
    segments: list[Any] = []
    archived, token = b"", ""
    while True:
        page = session.call("AuditService.ListSegments", page_token=token)
        archived = archived if segments else page.archived
        segments += page.segments
        if not (token := page.next_page_token):
            return segments, archived


def _known(session: CommandSession) -> tuple[VerifyKey, str, datetime]:
    """The key of the server's checkpoints, the name of its log, and its time."""
    found = session.call("AuditService.GetCheckpoint")
    origin = found.checkpoint.note.partition("\n")[0]
    return VerifyKey.from_pem(found.public_key.encode()), origin, found.time.ToDatetime(UTC)


def _pieces(session: CommandSession, proof: SegmentProof) -> Iterator[bytes]:
    span: dict[str, Any] = {"from_sequence": proof.first, "to_sequence": proof.size}
    for piece in session.stream("AuditService.ExportRecords", timeout=EXPORT_SECONDS, **span):
        yield piece.lines
