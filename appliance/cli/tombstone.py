"""`appliance tombstone`: what is left of versions that were deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.cli.output import PEOPLE, field, last, readable, short

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

_GONE = {"erase_time": "key", "purge_time": "bytes"}
COLUMNS = [
    ("TOMBSTONE", last()),
    ("DELETED", lambda row: f"{row['deleted'].split('/')[2][:-1]} {short('deleted')(row)}"),
    ("BY", last("deleter")),
    ("GONE", lambda row: ", ".join(word for time, word in _GONE.items() if row.get(time))),
    ("WHEN", field("delete_time")),
]

command = click.Group("tombstone", help="See what is left of versions that were deleted.")


@make("list", "TombstoneService.ListTombstones", group=command, project=True)
def list_(session: CommandSession) -> None:
    """List the tombstones of a project, what was deleted last first."""
    rows = session.rows("TombstoneService.ListTombstones", "tombstones", parent=session.parent)
    session.show(rows, COLUMNS)


@make("get", "TombstoneService.GetTombstone", group=command, project=True)
@click.argument("name", metavar="TOMBSTONE")
def get(session: CommandSession, name: str) -> None:
    """Show one tombstone, with what was signed of the version.

    Its name is the version's uid, as `input_uids` of what was made from it have it.
    """
    full = session.name("tombstone", name)
    found = session.call("TombstoneService.GetTombstone", name=full)
    if session.form not in PEOPLE:
        session.show(found)
        return
    session.show({**readable(found), "statement": ""})
    if found.statement:
        click.echo("-o json has the statement, which is signed", err=True)
