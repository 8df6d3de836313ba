"""One way for commands to delete what cannot be made again.

In a terminal it is said first what goes, and the name has to be typed; a script gives `--yes`. What
was asked about is what is deleted: its etag goes with the call, so that what has come in between
stays. Called by the `delete` command of each noun that holds data.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import prompts
from appliance.cli.output import field, in_bytes, size
from appliance.core import names

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("VERSIONS", field("versions")),
    ("SIZE", size("size_bytes")),
    ("TOMBSTONES", lambda row: ", ".join(name.rpartition("/")[2] for name in row["tombstones"])),
]


def confirm(name: str, says: str) -> None:
    """Let a person type the name of what is deleted, short (`docs/3`) or whole.

    Args:
        name: of it, whole.
        says: what goes, and whether it comes back; one sentence.

    Raises Declined when something else was typed.
    """
    ids = names.Name.parse(name).ids
    short = "/".join(ids[1:] or ids)
    click.echo(says, err=True)
    typed = str(click.prompt(f"Type {short} to delete it", err=True)).strip()
    if typed not in {short, name}:
        raise prompts.Declined("nothing was deleted: another name was typed")


def would_delete(session: CommandSession, rpc: str, name: str, etag: str) -> Any:
    """What a Delete method would answer, before a person is asked; what is in use is said here.

    Raises Declined when nobody is there to be asked.
    """
    if not prompts.interactive():
        raise prompts.Declined("nothing was deleted: repeat it in a terminal, or give --yes")
    # With an id of its own: that of the command belongs to the deletion.
    request_id = str(uuid.uuid4())
    return session.call(rpc, name=name, etag=etag, validate_only=True, request_id=request_id)


def delete(session: CommandSession, rpc: str, name: str, etag: str, *, yes: bool) -> None:
    """Call a Delete method of something with versions, and show what went.

    Args:
        session: of the command.
        rpc: such as `DatasetService.DeleteDataset`.
        name: of it, whole.
        etag: that it must have; empty for any.
        yes: ask nothing.
    """
    if not yes:
        would = would_delete(session, rpc, name, etag)
        versions = "1 version" if would.versions == 1 else f"{would.versions} versions"
        confirm(
            name,
            f"{name} goes with {versions} ({in_bytes(would.size_bytes)}), and the keys with it: "
            "only a backup has them then, and nothing brings them back.",
        )
        etag = would.etag
    session.show(session.call(rpc, name=name, etag=etag), COLUMNS)
