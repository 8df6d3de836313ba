"""`describe` of every noun that has `get`: the fields of one resource, then what is related to it.

A noun's file adds a section with one decorator, below its `get`:

    @section(command, "Checkpoints", "CheckpointService.ListCheckpoints")
    def _checkpoints(session, job):
        rpc = "CheckpointService.ListCheckpoints"
        return session.each(rpc, "checkpoints", parent=job["name"]), COLUMNS

Rule kept here: what the caller may not list is left out, and what there is nothing of.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import PEOPLE, Column
from appliance.core.errors import Denied, NotFound, UnknownMethod

if TYPE_CHECKING:
    from appliance.cli.command import ServerCommand
    from appliance.cli.session import CommandSession

Value = Any  # JSON of any shape
Rows = tuple[Iterable[Value], Sequence[Column]]
Fill = Callable[["CommandSession", Value], Rows]
MOST = 20
"""Rows of a section; the noun's own list has all."""


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it."""

    title: str
    rows: Fill

    @property
    def field(self) -> str:
        """Its name in JSON; a field of the resource that is called so is shown by the section."""
        return self.title.lower().replace(" ", "_")


def section(group: click.Group, title: str, *methods: str) -> Callable[[Fill], Fill]:
    """Add a section to the `describe` of a noun.

    Args:
        group: the noun.
        title: heading.
        methods: the RPCs that the function calls.
    """

    def add(function: Fill) -> Fill:
        describe: ServerCommand = group.commands["describe"]  # type: ignore[assignment]  # made with `get`
        describe.methods = tuple(dict.fromkeys((*describe.methods, *methods)))
        describe.sections.append(Section(title, function))
        return function

    return add


def show(session: CommandSession, value: Value, sections: Sequence[Section]) -> None:
    """Print a resource with its sections.

    Args:
        session: of the command.
        value: the resource as a dictionary, in words where it is for people.
        sections: what is related.
    """
    form = session.form
    if form not in PEOPLE:
        related = {
            each.field: rows for each in sections if (rows := _filled(session, value, each)[0])
        }
        session.print(value | related)
        return
    own = {each.field for each in sections}
    session.print({key: each for key, each in value.items() if key not in own})
    for each in sections:
        rows, columns = _filled(session, value, each)
        if not rows:
            continue
        click.echo(f"\n{each.title}:")
        session.print(rows[:MOST], columns)
        if len(rows) > MOST:
            click.echo(f"... the first {MOST}")


def _filled(
    session: CommandSession, value: Value, wanted: Section
) -> tuple[list[Value], Sequence[Column]]:
    try:
        rows, columns = wanted.rows(session, value)
        return list(itertools.islice(rows, MOST + 1)), columns
    except (Denied, NotFound, UnknownMethod):
        return [], ()
