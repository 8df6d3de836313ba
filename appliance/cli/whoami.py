"""`appliance whoami`: who the server takes you for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.cli.command import command as make

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession


@make("whoami", "AuthService.WhoAmI")
def command(session: CommandSession) -> None:
    """Say who you are and what you may do."""
    session.show(session.call("AuthService.WhoAmI"))
