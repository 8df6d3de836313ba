"""How people and applications look with all they hold, and what they made that goes on.

`describe` asks for more than `get` does, in the same call: what a section shows is in the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import describing
from appliance.cli.describing import Section
from appliance.cli.output import PEOPLE, Column, field, plain, readable, safe

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

Row = dict[str, Any]

ROLES: list[Column] = [("ROLE", field("role")), ("WHERE", field("scope"))]
SESSIONS: list[Column] = [
    ("SESSION", field("id")),
    ("FROM", field("source")),
    ("BEGAN", field("create_time")),
    ("LAST USED", field("seen_time")),
]
TOKENS: list[Column] = [
    ("TOKEN", field("id")),
    ("MADE", field("create_time")),
    ("LAST USED", lambda row: field("use_time")(row) or "never seen"),
    ("ENDS", field("expire_time")),
    ("REPLACED BY", field("replaced_by")),
]


def show(session: CommandSession, rpc: str, full: str, name: str) -> None:
    """Print a person or an application, for `describe` with its details.

    Args:
        session: of the command.
        rpc: that gets it.
        full: the view that has details.
        name: of the resource, whole.
    """
    if session.shared.sections is None:
        session.show(session.call(rpc, name=name))
        return
    found = session.call(rpc, name=name, view=full)
    for_people = session.form in PEOPLE
    value = readable(found) if for_people else plain(found)
    details = value.pop("details", {})
    made, not_shown = details.get("creations", []), details.get("not_shown", 0)
    if not for_people:
        value |= {"goes_on": made, "not_shown": not_shown}
    roles = (each.partition("@") for each in details.get("roles", ()))
    sections = [
        _section("Roles", [{"role": role, "scope": scope} for role, _, scope in roles], ROLES),
        _section("Tokens", value.pop("tokens", []), TOKENS),
        _section("Sessions", details.get("sessions", []), SESSIONS),
    ]
    describing.show(session, value, sections)
    if for_people and made:
        click.echo("\nMade by it, and going on; to end it:")
        for each in made:
            # Whole, as it is typed: a table would cut it.
            click.echo(safe(f"  {each['end_command']}"))
    if for_people and not_shown:
        click.echo(_more(not_shown))


def say_what_goes_on(message: Any) -> None:
    """Say beside the result what somebody made, and how to end it."""
    details = plain(message.details)
    if details["creations"]:
        said = "made by them, and going on; nothing of it ends by itself. To end it:"
        click.echo(said, err=True)
        for each in details["creations"]:
            click.echo(safe(f"  {each['end_command']}"), err=True)
    if details["not_shown"]:
        click.echo(_more(details["not_shown"]), err=True)


def _section(title: str, rows: list[Row], columns: Sequence[Column]) -> Section:
    return Section(title, lambda *_: (rows, columns))


def _more(count: int) -> str:
    return (
        f"and {count} more that you may not see, or beyond 100 of a kind: ask somebody with a role "
        "in all projects"
    )
