"""`appliance tokenizer`: what prepare jobs have made to cut text into tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli import deleting
from appliance.cli.command import command as make
from appliance.cli.output import field, last, short
from appliance.cli.prompts import yes_option
from appliance.cli.updating import etag_option

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("TOKENIZER", last()),
    ("VOCABULARY", field("vocabulary_size")),
    ("MADE BY", short("job")),
    ("CREATED", field("create_time")),
]

command = click.Group("tokenizer", help="See and delete tokenizers.")


@make("get", "TokenizerService.GetTokenizer", group=command, project=True)
@click.argument("name", metavar="TOKENIZER")
def get(session: CommandSession, name: str) -> None:
    """Show one tokenizer."""
    full = session.name("tokenizer", name)
    session.show(session.call("TokenizerService.GetTokenizer", name=full))


@make("list", "TokenizerService.ListTokenizers", group=command, project=True)
def list_(session: CommandSession) -> None:
    """List the tokenizers of a project."""
    rows = session.rows("TokenizerService.ListTokenizers", "tokenizers", parent=session.parent)
    session.show(rows, COLUMNS)


@make("delete", "TokenizerService.DeleteTokenizer", group=command, project=True)
@click.argument("name", metavar="TOKENIZER")
@etag_option()
@yes_option()
def delete(session: CommandSession, name: str, etag: str, *, yes: bool) -> None:
    """Delete a tokenizer with its key, for ever."""
    full = session.name("tokenizer", name)
    deleting.delete(session, "TokenizerService.DeleteTokenizer", full, etag, yes=yes)
