"""`appliance session`: one's own log-ins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.cli.command import command as make
from appliance.cli.output import field, plain, state

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("SESSION", field("id")),
    ("THIS ONE", field("current")),
    ("FROM", field("source")),
    ("BEGAN", field("create_time")),
    ("LAST USED", field("seen_time")),
    ("ENDS", field("expire_time")),
    ("STATE", state("step")),
]

command = click.Group("session", help="See and end your own log-ins.")


@make("list", "AuthService.ListSessions", group=command)
def list_(session: CommandSession) -> None:
    """List your live sessions, the newest first."""
    session.show(_own(session), COLUMNS)


@make("end", "AuthService.ListSessions", "AuthService.EndSession", group=command)
@click.argument("session_id", metavar="ID", required=False)
@click.option("--others", is_flag=True, help="End every session but the one of this command.")
def end(session: CommandSession, session_id: str | None, *, others: bool) -> None:
    """End one of your sessions; it stops to work before this returns."""
    if bool(session_id) == others:
        raise click.UsageError("name a session by its ID, or give --others")
    ids = [session_id]
    if others:
        ids = [each["id"] for each in _own(session) if not each["current"]]
    for each in ids:
        session.call("AuthService.EndSession", session_id=each)
    click.echo(f"ended {len(ids)} session{'' if len(ids) == 1 else 's'}", err=True)


def _own(session: CommandSession) -> list[dict[str, Any]]:
    return [plain(each) for each in session.call("AuthService.ListSessions").sessions]
