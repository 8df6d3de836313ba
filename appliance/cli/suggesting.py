"""`Did you mean ...?` for commands, choices and names that do not exist.

click does it for options and for commands it has loaded; nouns and kinds of jobs are loaded when
they are used. For a name the server is asked what there is, once, for a person at a terminal alone:
a script that looks whether something exists gets its answer and no more.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession
    from appliance.core.errors import ApplianceError


class LazyGroup(click.Group):
    """A group whose commands are loaded one by one; a wrong name gets those that are near."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of a line. Raises NoSuchCommand with what may have been meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            raise click.exceptions.NoSuchCommand(
                error.command_name, possibilities=self.list_commands(ctx), ctx=ctx
            ) from error


def near(word: str, known: Iterable[str]) -> str:
    """`did you mean first?`, or nothing when no word is near."""
    from difflib import get_close_matches  # noqa: PLC0415 - for mistakes alone

    found = get_close_matches(word, list(known), n=3)
    return f"did you mean {' or '.join(found)}?" if found else ""


def of_choice(error: click.ClickException) -> str:
    """What was meant by a value that is none of an option's choices; nothing for other errors."""
    if not isinstance(error, click.BadParameter) or error.param is None:
        return ""
    typed = re.match(r"'([^']*)' is not ", error.message)
    choices = getattr(error.param.type, "choices", ())
    return near(typed[1], map(str, choices)) if typed else ""


def add_hint(session: CommandSession, error: ApplianceError) -> None:
    """Say in the error of a name that does not exist which ones are near, or how to list them."""
    from appliance.cli import completing  # noqa: PLC0415 - for mistakes alone
    from appliance.core import names  # noqa: PLC0415 - as above
    from appliance.core.errors import ApplianceError, InvalidInput  # noqa: PLC0415 - as above

    try:
        # The gateway says which endpoint was asked.
        name = names.Name.parse(error.metadata.get("name") or error.metadata.get("endpoint", ""))
    except InvalidInput:
        return
    # The server may have said what to type.
    hint = "" if "`appliance " in error.message else completing.list_command(name)
    if _person_reads():
        with contextlib.suppress(ApplianceError, click.ClickException):
            with completing.lister(session.shared) as asking:
                found = completing.list_names(asking, name.kind, completing.parent_of(name))
            if meant := near(name.id, (each.rpartition("/")[2] for each in found)):
                hint = f"{meant} {hint}".rstrip()
    if hint and "hint" not in error.metadata:
        error.metadata["hint"] = hint


def _person_reads() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
