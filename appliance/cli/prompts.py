"""Ask a person for secrets, or take them from files and standard input; never from arguments.

Prompts go to the terminal, not to standard output, so that output can be piped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from appliance.core.errors import ApplianceError, FreshMfaRequired

_Function = Callable[..., Any]
STDIN = "-"
TRIES = 3
"""How often a person may type something again that was refused."""


class Declined(Exception):
    """A person said no, or nobody was there to say yes."""


class WrongCode(FreshMfaRequired):
    """The code that was given for this call was refused; the session goes on."""


_E = TypeVar("_E", bound=ApplianceError)


def in_words(kind: type[_E], message: str, error: ApplianceError) -> _E:
    """The server's error of a kind and in words of ours; what it tells programs stays."""
    said = kind(message, fields=error.fields, retry_after=error.retry_after)
    said.metadata.update(error.metadata)
    return said


def interactive() -> bool:
    """Whether a person sits at standard input."""
    return sys.stdin.isatty()


def first_line(source: str) -> str:
    """The first line of a file, or the next line of standard input for `-`.

    Raises:
        click.UsageError: there is nothing in it, or it cannot be read.
    """
    if source == STDIN:
        line = sys.stdin.readline()
    else:
        try:
            line = Path(source).read_text(encoding="utf-8").partition("\n")[0]
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise click.UsageError(f"{source} cannot be read: {reason}") from error
    line = line.rstrip("\r\n")
    if not line:
        place = "standard input" if source == STDIN else source
        raise click.UsageError(f"a line with the secret was expected from {place}")
    return line


def password(source: str | None, prompt: str, *, twice: bool = False) -> str:
    """A password from `source`, or typed by a person who does not see it.

    Raises:
        click.UsageError: nobody is there to type it.
    """
    if source is not None:
        return first_line(source)
    if not interactive():
        raise click.UsageError(
            "there is no terminal to ask for the password: give --password-file FILE or `-`"
        )
    typed: str = click.prompt(prompt, hide_input=True, confirmation_prompt=twice, err=True)
    return typed


def code(source: str | None) -> str | None:
    """A code of the authenticator from `source` or a person; None when nobody is there.

    Raises:
        click.UsageError: what is given is no code, so that it is not counted as a wrong one.
    """
    if source is not None:
        given = first_line(source).replace(" ", "")
        if not _is_code(given):
            raise click.UsageError("--code-file: a code from the authenticator has six digits")
        return given
    if not interactive():
        return None
    while True:
        typed = str(click.prompt("Code from your authenticator", err=True)).replace(" ", "")
        if _is_code(typed):
            return typed
        click.echo("A code from the authenticator has six digits.", err=True)


def tries(source: str | None) -> int:
    """How often a code may be given: a person mistypes, a file does not change."""
    return TRIES if source is None and interactive() else 1


def _is_code(text: str) -> bool:
    return len(text) == 6 and text.isascii() and text.isdecimal()


def yes_option() -> Callable[[_Function], _Function]:
    """`--yes`, for commands that ask before they do what cannot be undone."""
    return click.option("--yes", is_flag=True, help="Do not ask, as scripts do.")


def agree(question: str) -> None:
    """Ask for a yes. Raises Declined for anything else."""
    if not interactive():
        raise Declined("nothing was done: repeat it in a terminal, or give --yes")
    if not click.confirm(question, err=True):
        raise Declined("nothing was done")
