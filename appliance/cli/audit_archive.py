"""`appliance audit archive` and `prune`: closed segments move into a folder, and leave it by age.

Rules kept here:
* each segment is read, made durable and proved here before anything is deleted there; what is in
  the folder from a run that was broken off is proved, and not read again;
* of an archive nothing is deleted before the server has signed that it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from appliance.cli.audit import EXPORT_SECONDS
from appliance.cli.audit_folder import Archive, begins_of
from appliance.cli.prompts import agree
from appliance.cli.session import Session
from appliance.core.errors import FailedPrecondition
from appliance.crypto.proofs import Proof


def move(session: Session, out: Path, days: int, *, yes: bool) -> None:
    """Archive what is older than so many days."""
    segments, archived = _listed(session)
    begins = begins_of(archived, (Proof.loads(each.proof, "segment") for each in segments))
    until = datetime.now(UTC) - timedelta(days=days)
    # The newest closed one stays; times rise as records do.
    chosen = [
        (proof, begin)
        for (proof, begin), each in zip(begins[:-1], segments, strict=False)
        if each.close_time.ToDatetime(UTC) <= until
    ]
    if not chosen:
        click.echo("no segment to archive: the newest closed one and the open one stay", err=True)
        return
    archive, last = Archive(out), chosen[-1][0]
    for number, (proof, begin) in enumerate(chosen, 1):
        name = archive.path_of(proof).name
        if archive.holds(proof, begin):
            click.echo(f"{number}/{len(chosen)} {name} is there already", err=True)
            continue
        archive.take_in(proof, begin, _pieces(session, proof))
        click.echo(f"{number}/{len(chosen)} {name} is proved", err=True)
    if not yes:
        agree(f"Delete records {chosen[0][0].first} to {last.size - 1} on the server?")
    done = session.call(
        "AuditService.ArchiveSegments", size=last.size, root=last.tree().root(), timeout=60.0
    )
    session.show({"archived": len(chosen), "first_record": int(done.first_record)})


def prune(session: Session, folder: Path, days: int, *, yes: bool) -> None:
    """Delete what is older than so many days from an archive."""
    archive = Archive(folder)
    until = datetime.now(UTC) - timedelta(days=days)
    last: Proof | None = None
    for proof in archive.proofs():
        if datetime.fromisoformat(archive.last_time(proof)) > until:
            break
        last = proof
    if last is None:
        click.echo(f"no segment in {folder} is {days} days old", err=True)
        return
    if not yes:
        agree(f"Delete records up to {last.size - 1} in {folder} for ever?")
    done = session.call(
        "AuditService.PruneArchive", proof=last.dumps(), older_than_days=days, timeout=60.0
    )
    if done.size != last.size:
        raise FailedPrecondition("the server signed something else: nothing was deleted")
    session.show({"pruned": archive.prune(done.statement), "first_record": last.size})


def _listed(session: Session) -> tuple[list[Any], bytes]:
    """All closed segments of the server, and what it says of those before."""
    segments: list[Any] = []
    archived, token = b"", ""
    while True:
        page = session.call("AuditService.ListSegments", page_token=token)
        archived = archived if segments else page.archived
        segments += page.segments
        if not (token := page.next_page_token):
            return segments, archived


def _pieces(session: Session, proof: Proof) -> Iterator[bytes]:
    span: dict[str, Any] = {"from_sequence": proof.first, "to_sequence": proof.size}
    for piece in session.stream("AuditService.ExportRecords", timeout=EXPORT_SECONDS, **span):
        yield piece.lines
