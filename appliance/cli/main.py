"""The `appliance` command: which nouns there are, and what every one of them shares.

Rules kept here: a noun's module is imported when it is used, so that `--help` and completion need
neither gRPC nor rich; every error of ours ends in one sentence, a hint and the exit code for it;
data goes to stdout, talk to stderr.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from appliance.cli.suggesting import LazyGroup
from appliance.core.process import leave_no_core

NOUNS = {
    "ask": "Ask a served model.",
    "audit": "Read, verify and archive the audit chain.",
    "binding": "Give and take away roles.",
    "checkpoint": "See and delete the checkpoints of jobs.",
    "completion": "Print the completion script of a shell.",
    "context": "Choose the server and the project to work with.",
    "dataset": "Upload, download and delete text; see what was made of it.",
    "down": "Stop an appliance on this machine.",
    "endpoint": "Serve models.",
    "gateway": "See and add gateways.",
    "init": "Make the data directory of a new appliance.",
    "job": "Make data and models on nodes, and follow the work.",
    "login": "Log in with password and authenticator.",
    "logout": "End the session.",
    "model": "Take in models; see, download and delete their versions.",
    "node": "See and add servers.",
    "password": "Change your own password.",
    "project": "Manage projects.",
    "report": "Read, download and delete what jobs have found.",
    "role": "See the roles.",
    "service-account": "Manage applications and their tokens.",
    "session": "See and end your own log-ins.",
    "status": "Say what the server is and where it answers.",
    "tokenizer": "See and delete tokenizers.",
    "tombstone": "See what is left of versions that were deleted.",
    "up": "Start an appliance on this machine.",
    "upload": "See your uploads; abort those that are open.",
    "user": "Manage people.",
    "version": "Say which version this command is, and the server.",
    "whoami": "Say who you are and what you may do.",
}
"""Every command with its line in `--help`; its module is `appliance.cli.NOUN`."""
MOST_NOUNS = 3
"""Nouns with a verb that are named to somebody who typed the verb first."""
_MODULES = {"session": "sessions"}
"""Nouns whose module has another name: `appliance.cli.session` is what every command runs in."""


class Nouns(LazyGroup):
    """Finds a command in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Every command, sorted."""
        return sorted(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module and return its `command`."""
        if cmd_name not in NOUNS:
            return None
        name = _MODULES.get(cmd_name, cmd_name.replace("-", "_"))
        module = importlib.import_module(f"appliance.cli.{name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of a line. Raises NoSuchCommand, with the order of words if that is wrong."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            if not (meant := self._noun_first(ctx, args)):
                raise
            said = f"No such command {args[0]!r}: the noun stands first. Did you mean {meant}?"
            raise click.exceptions.NoSuchCommand(args[0], said, ctx=ctx) from error

    def _noun_first(self, ctx: click.Context, words: list[str]) -> str:
        """`appliance job list` for `get jobs`, `appliance node drain` for `drain node-1`."""
        from difflib import get_close_matches  # noqa: PLC0415 - for mistakes alone

        verb, *rest = words
        groups = {noun: self.get_command(ctx, noun) for noun in NOUNS}
        having = [
            noun
            for noun, group in groups.items()
            if isinstance(group, click.Group) and verb in group.list_commands(ctx)
        ]
        nouns = get_close_matches(rest[0], having, n=1) if rest else []
        if not nouns and len(having) <= MOST_NOUNS:
            nouns = having
        if verb == "get" and len(rest) == 1:
            verb = "list"
        return " or ".join(f"`appliance {noun} {verb}`" for noun in nouns)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(NOUNS.items()))


@click.command(cls=Nouns, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="appliance")
def appliance() -> None:
    """A secure LLM appliance: raw text in, a served model out."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own; return the exit code."""
    try:
        code = appliance.main(arguments, prog_name="appliance", standalone_mode=False)
        if sys.stdout is not None:  # It is closed when the command is started with `>&-`.
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough; nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - one place turns every failure into a sentence
        from appliance.cli.failures import explain  # noqa: PLC0415 - only failures need it

        return explain(error)
    return code if isinstance(code, int) else 0


def main() -> None:
    """Run the command; the process ends with its exit code."""
    leave_no_core()
    sys.exit(run())


if __name__ == "__main__":
    main()
