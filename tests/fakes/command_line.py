"""A command line that was typed, and what came of it."""

from dataclasses import dataclass
from typing import Protocol

import click

from appliance.cli.main import appliance


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *arguments: str, stdin: str = "") -> Result: ...


def check_appliance(words: list[str]) -> None:
    """Every command and every option exists; values may be placeholders."""
    command: click.Command = appliance
    context = click.Context(appliance, info_name="appliance")
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-") or not words[0].islower():
            return
        found = command.get_command(context, words[0])
        assert found is not None, f"there is no command {words[0]}"
        command, words = found, words[1:]
        context = click.Context(command, parent=context, info_name=command.name)
    if words:
        # Names and numbers of options, not their types: a page writes ID where an id is typed.
        command.make_parser(context).parse_args(words)
