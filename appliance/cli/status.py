"""`appliance status`: does the server answer, and where is what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.cli.output import plain
from appliance.core.errors import Unauthenticated

if TYPE_CHECKING:
    from appliance.cli.session import Session


@make("status", "SystemService.GetSystem")
def command(session: Session) -> None:
    """Say what the server is and where it answers."""
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


def _system(session: Session) -> dict[str, object]:
    return plain(session.call("SystemService.GetSystem"))
