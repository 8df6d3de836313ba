"""`appliance version`: of the command, of the server, and whether they fit."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.core.errors import ApplianceError, Unauthenticated

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession


@make("version", "SystemService.GetSystem")
def command(session: CommandSession) -> None:
    """Say which version this command is, which the server, and whether they fit.

    The command's own is said in any case; the server says its own to whoever is logged in.
    """
    facts = {"client": version("appliance")}
    missing = ""
    try:
        if session.token:
            facts["server"] = session.call("SystemService.GetSystem").version
        else:
            missing = "log in to see the version of the server: `appliance login`"
    except Unauthenticated as error:
        missing = f"{error.message}: log in with `appliance login`"
    except ApplianceError as error:
        missing = f"the server did not say its version: {error.message}"
    session.show(facts)
    if word := missing or skew(facts["client"], facts["server"]):
        click.echo(word, err=True)


def skew(client: str, server: str) -> str:
    """What it means that command and server have different versions; nothing for the same one."""
    if _order(client) == _order(server):
        return ""
    if _order(client) < _order(server):
        return (
            "the command is older than the server: what it knows works, what is new there is not "
            f"in it; install appliance {server} here"
        )
    return (
        "the command is newer than the server: what the server does not know yet is refused as "
        f"UNKNOWN_METHOD; upgrade the server to {client}, or install appliance {server} here"
    )


def _order(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)[:3]]
