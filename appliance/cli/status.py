"""`appliance status`: does the server answer, where is what, and what ends."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.cli.output import plain
from appliance.core.errors import Denied, Unauthenticated, UnknownMethod

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession


@make("status", "SystemService.GetSystem", "SystemService.ListExpirations")
def command(session: CommandSession) -> None:
    """Say what the server is, where it answers, and what ends that somebody must see to."""
    from appliance.client.health import check  # noqa: PLC0415 - imports gRPC

    profile = session.profile
    check(profile.server, profile.ca_pem.encode())
    facts = {"server": profile.server, "serving": True}
    try:
        if session.token:
            session.show(facts | _system(session))
            return
    except Unauthenticated as error:
        click.echo(error.message, err=True)
    click.echo("log in to see more: `appliance login`", err=True)
    session.show(facts)


def _system(session: CommandSession) -> dict[str, object]:
    found: dict[str, object] = plain(session.call("SystemService.GetSystem"))
    # Whoever may not see what ends sees the rest; and who asks an older server.
    with contextlib.suppress(Denied, UnknownMethod):
        due = session.call("SystemService.ListExpirations").expirations
        if due:
            found["ends"] = [plain(each) for each in due]
    return found
