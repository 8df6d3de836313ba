"""Ask a person for secrets, or take them from files and standard input; never from arguments.

Prompts go to the terminal, not to standard output, so that output can be piped.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

STDIN = "-"


class Declined(Exception):
    """A person said no, or nobody was there to say yes."""


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
    """A code of the authenticator from `source` or a person; None when nobody is there."""
    if source is not None:
        return first_line(source).replace(" ", "")
    if not interactive():
        return None
    typed: str = click.prompt("Code from your authenticator", err=True)
    return typed.replace(" ", "")


def agree(question: str) -> None:
    """Ask for a yes. Raises Declined for anything else."""
    if not interactive():
        raise Declined("nothing was done: repeat it in a terminal, or give --yes")
    if not click.confirm(question, err=True):
        raise Declined("nothing was done")
