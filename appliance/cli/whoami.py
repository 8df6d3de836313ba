"""`appliance whoami`: who the server takes you for, and what you may do here."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.cli.output import PEOPLE, plain, safe
from appliance.cli.tables import on_terminal, terminal_width
from appliance.core.errors import NotFound, UnknownMethod

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

_MAY = "AuthService.ListMyPermissions"
PLATFORM, EVERYWHERE = "platform", "projects/-"
_WHERE = {PLATFORM: "on the platform", EVERYWHERE: "in all projects"}


@make("whoami", "AuthService.WhoAmI", _MAY, project=True)
def command(session: CommandSession) -> None:
    """Say who you are, and what you may do in the chosen project and on the platform."""
    found = session.call("AuthService.WhoAmI")
    may = _permissions(session)
    if session.form not in PEOPLE:
        session.show({**plain(found), "permissions": may})
        return
    session.show(found)
    for scope, permissions in may.items():
        where = _WHERE.get(scope, f"in {scope}")
        if permissions:
            click.echo(safe(f"May {where}:"))
            for line in _by_noun(permissions):
                click.echo(_fitting(safe(line)))
        elif scope != PLATFORM:
            click.echo(safe(f"May do nothing {where}"))


def _fitting(line: str) -> str:
    """An indented line; on a terminal one that is too long goes on in the next, at a word."""
    width = terminal_width() if on_terminal() else sys.maxsize
    return textwrap.fill(
        line,
        width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _permissions(session: CommandSession) -> dict[str, list[str]]:
    """What the caller may do, by scope; empty when the server does not say."""
    here = session.parent if session.project else EVERYWHERE
    found: dict[str, list[str]] = {}
    try:
        for scope in (here, PLATFORM):
            try:
                found[scope] = list(session.call(_MAY, scope=scope).permissions)
            except NotFound:
                found[scope] = []
    except UnknownMethod:
        click.echo(
            "the server is older than this command: it does not say what you may do", err=True
        )
    return found


def _by_noun(permissions: Iterable[str]) -> Iterable[str]:
    """`jobs: cancel, create, get`, for each noun."""
    verbs: dict[str, list[str]] = {}
    for each in permissions:
        noun, _, verb = each.partition(".")
        verbs.setdefault(noun, []).append(verb)
    return (f"{noun}: {', '.join(found)}" for noun, found in verbs.items())
