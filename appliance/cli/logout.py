"""`appliance logout`: end the session, here and on the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.core.errors import Unauthenticated

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession


@make("logout", "AuthService.Logout")
def command(session: CommandSession) -> None:
    """End the session."""
    if not session.token:
        click.echo("you were not logged in", err=True)
        return
    try:
        session.call("AuthService.Logout")
    except Unauthenticated:
        click.echo("the session had ended already", err=True)
    session.profiles.forget_token(session.profile)
    click.echo("logged out", err=True)
