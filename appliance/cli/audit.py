"""`appliance audit`: read the chain of records, export it, verify it offline."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import output
from appliance.cli.command import command as make
from appliance.cli.command import output_option
from appliance.cli.files import private_file, write_public
from appliance.cli.output import age, field, moment, wide
from appliance.cli.prompts import yes_option
from appliance.core import names
from appliance.core.errors import BY_REASON, InvalidInput
from appliance.core.identity import parse_name

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession
    from appliance.crypto.chain import Verified

EXPORT_SECONDS = 3600.0
SYSTEM = "control"
"""Who records have for what the appliance did by itself."""
FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
NEW_FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
EXISTING = click.Path(path_type=Path, dir_okay=False, exists=True)
COLUMNS = [
    ("RECORD", field("sequence")),
    ("WHEN", age("time")),
    ("PRINCIPAL", lambda row: row["principal"] or _offline(row["details"])),
    ("METHOD", lambda row: row["method"].rpartition("/")[2]),
    ("RESOURCE", field("resource")),
    ("OUTCOME", field("outcome")),
    wide("TIME", moment("time")),
    wide("KIND", field("kind")),
    wide("FROM", field("source")),
    ("DETAILS", lambda row: details_of(row["details"])),
]


def details_of(text: str) -> str:
    """What a call was asked and what it made, as `field=value`; the last part of each path."""
    facts = _facts(text)
    said: dict[str, str] = {}
    for part in ("asked", "made"):
        found = facts.get(part)
        for path, value in found.items() if isinstance(found, dict) else ():
            said[path.rpartition(".")[2]] = _value(value)
    return " ".join(f"{name}={value}" for name, value in said.items())


def _offline(text: str) -> str:
    """`offline`, with the user of the machine, when the control plane was stopped; else empty."""
    return str(_facts(text).get("by", ""))


def _facts(text: str) -> dict[str, Any]:
    try:
        facts = json.loads(text or "{}")
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _value(value: object) -> str:
    return ",".join(str(each) for each in value) if isinstance(value, (list, dict)) else str(value)


command = click.Group("audit", help="Read, verify and archive the audit chain.")


@make("list", "AuditService.ListRecords", group=command, limit=100)
@click.option(
    "--principal",
    default="",
    metavar="NAME",
    help="Only of a user, or of serviceAccounts/A and the like.",
)
@click.option("--outcome", default="", help="Only with this outcome, such as PERMISSION_DENIED.")
@click.option("--resource", default="", metavar="NAME", help="Only about this and what is below.")
def list_(session: CommandSession, principal: str, outcome: str, resource: str) -> None:
    """List records, newest first."""
    only: dict[str, Any] = {
        "principal": _principal(session, principal),
        "outcome": outcome.upper(),
        "resource": _resource(resource),
    }
    rows = session.rows("AuditService.ListRecords", "records", **only)
    first = next(rows, None)
    if first is None and only["outcome"] not in {"", "OK", *BY_REASON}:
        # A job can end for a reason that is none of these: only what was not found is refused.
        raise InvalidInput(
            f"no record has the outcome {names.shown(outcome)}: take OK, or a reason such as "
            f"{', '.join(list(BY_REASON)[:5])}, as a record or an error shows it"
        )
    session.show(itertools.chain([first] if first else [], rows), COLUMNS)


def _principal(session: CommandSession, text: str) -> str:
    """The name of a caller as records have it; a word alone is a person."""
    if text in {"", SYSTEM}:
        return text
    return parse_name(text).name if "/" in text else session.name("user", text)


def _resource(text: str) -> str:
    if text and "/" not in text:
        raise InvalidInput(
            f"{names.shown(text)} is no resource's name: write projects/{text}, users/{text} or "
            "the like; what is below it is found too"
        )
    return text


@make("export", "AuditService.ExportRecords", "AuditService.ListSegments", group=command)
@click.option("--out", required=True, type=FILE, help="File for the records.")
def export(session: CommandSession, out: Path) -> None:
    """Write the chain to a file of yours alone, as it is stored, but for what is archived.

    What says that earlier records were archived is written beside it, for `verify`.
    """
    from appliance.cli.audit_folder import statement_beside  # noqa: PLC0415 - imports cryptography

    written = 0
    with private_file(out) as file:
        for piece in session.stream("AuditService.ExportRecords", timeout=EXPORT_SECONDS):
            written += file.write(piece.lines)
    archived = session.call("AuditService.ListSegments", page_size=1).archived
    if archived:
        write_public(statement_beside(out), archived)
    else:
        statement_beside(out).unlink(missing_ok=True)
    click.echo(f"{written} bytes in {out}", err=True)


@make("checkpoint", "AuditService.GetCheckpoint", group=command)
@click.option("--out", type=FILE, help="File for the signed checkpoint.")
@click.option("--public-key-out", type=FILE, help="File for the key to verify it with.")
def checkpoint(session: CommandSession, out: Path | None, public_key_out: Path | None) -> None:
    """Show the newest signed checkpoint; keep it elsewhere to notice a replaced chain."""
    found = session.call("AuditService.GetCheckpoint")
    if out is not None:
        write_public(out, found.checkpoint.note.encode())
    if public_key_out is not None:
        write_public(public_key_out, found.public_key.encode())
    if session.shared.output == "table":
        click.echo(found.checkpoint.note, nl=False)
    else:
        session.show(found)


@command.command("verify", params=[output_option()])
@click.option("--records", type=EXISTING, help="File of `audit export`.")
@click.option(
    "--data-dir", type=FOLDER, help="Data directory of the appliance, instead of --records."
)
@click.option(
    "--archive",
    "archives",
    type=FOLDER,
    multiple=True,
    help="Folder of `audit archive`, beside one of these or alone; can be repeated.",
)
@click.option("--public-key", required=True, type=EXISTING, help="Key of `audit checkpoint`.")
@click.option("--checkpoint", "note", type=EXISTING, help="A checkpoint that was kept elsewhere.")
def verify(
    records: Path | None,
    data_dir: Path | None,
    archives: tuple[Path, ...],
    public_key: Path,
    note: Path | None,
    output: str,
) -> None:
    """Prove the chain offline, or name the first bad record."""
    if records is not None and data_dir is not None:
        raise click.UsageError("give one of --records and --data-dir")
    if records is None and data_dir is None and not archives:
        raise click.UsageError("give --records, --data-dir or --archive")
    from appliance.cli.audit_folder import AuditParts  # noqa: PLC0415 - imports cryptography
    from appliance.crypto.signing import VerifyKey  # noqa: PLC0415 - as above

    parts = AuditParts()
    for folder in archives:
        parts.add_archive(folder)
    if data_dir is not None:
        parts.add_folder(data_dir / "audit")
    if records is not None:
        parts.add_export(records)
    key = VerifyKey.from_pem(public_key.read_bytes())
    proved, origin = parts.verify(key, note.read_bytes() if note else None)
    _show(proved, origin, output)


def _show(proved: Verified, origin: str, form: str) -> None:
    facts: dict[str, Any] = {
        "first": proved.first,
        "records": proved.size,
        "signed": proved.covered,
        "root": proved.root.hex(),
        "origin": origin,
    }
    output.show(facts, form)
    if proved.first:
        click.echo(f"records before {proved.first} are archived or pruned, signed", err=True)
    if proved.covered < proved.size:
        rest = proved.size - proved.covered
        click.echo(f"the newest {rest} records are chained, and not signed yet", err=True)


@make(
    "archive",
    "AuditService.ListSegments",
    "AuditService.GetCheckpoint",
    "AuditService.ExportRecords",
    "AuditService.ArchiveSegments",
    group=command,
)
@click.option(
    "--out",
    required=True,
    type=NEW_FOLDER,
    help="Folder for them: a new one, or of an earlier run.",
)
@click.option(
    "--older-than",
    "days",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="DAYS",
    help="Only segments whose last record is at least so many days old.",
)
@yes_option()
def archive(session: CommandSession, out: Path, *, days: int, yes: bool) -> None:
    """Move closed segments of the chain into a folder here, each proved before it is deleted there.

    A segment has 65,536 records. The newest closed one and the open one stay.
    """
    from appliance.cli.audit_archive import archive_segments  # noqa: PLC0415 - as above

    archive_segments(session, out, days, yes=yes)


@make("prune", "AuditService.GetCheckpoint", "AuditService.PruneArchive", group=command)
@click.option("--archive", "folder", required=True, type=FOLDER, help="Folder of `audit archive`.")
@click.option(
    "--older-than",
    "days",
    required=True,
    type=click.IntRange(1),
    metavar="DAYS",
    help="Segments whose last record is at least so many days old are deleted.",
)
@yes_option()
def prune(session: CommandSession, folder: Path, *, days: int, yes: bool) -> None:
    """Delete the oldest segments of an archive by their age; that is signed and recorded."""
    from appliance.cli.audit_archive import prune_archive  # noqa: PLC0415 - as above

    prune_archive(session, folder, days, yes=yes)
