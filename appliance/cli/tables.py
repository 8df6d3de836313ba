"""Rows as a table: as wide as its cells for a program, never wider than the terminal for a person.

Rules kept here: what is written to a file or a pipe is not cut; on a terminal the longest cells are
shortened first, then the last columns go, and `-o wide` shows all; a last column of sentences flows
into further lines; control characters never reach the terminal; a long list is printed page by
page.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

import click

from appliance.cli.output import GAP, Column, Flowing, Value, Wide, aligned, safe

LEAST = 14
"""Characters that a shortened cell keeps at least; rather than that the last columns go."""
CHUNK = 200
"""Rows whose cells decide how wide columns are; the next ones make them wider only."""


class Table:
    """Rows of one noun in columns."""

    def __init__(self, columns: Sequence[Column], *, wide: bool) -> None:
        self._columns = [each for each in columns if wide or not isinstance(each, Wide)]
        self._flows = isinstance(self._columns[-1], Flowing)
        self._width = None if wide or not on_terminal() else terminal_width()

    def print(self, rows: Iterable[Value], *, headings: bool) -> None:
        """Print rows as they come."""
        for line in self.lines(rows, headings=headings):
            click.echo(line)

    def lines(self, rows: Iterable[Value], *, headings: bool = True) -> Iterator[str]:
        """The lines of a table."""
        source, widths = iter(rows), [0] * len(self._columns)
        chunk: list[list[str]] = []
        if headings:
            chunk = [[heading for heading, _ in self._columns]]
        while True:
            chunk += [
                [safe(cell(row)) for _, cell in self._columns]
                for row in itertools.islice(source, CHUNK)
            ]
            if not chunk:
                return
            longest = (max(map(len, column)) for column in zip(*chunk, strict=True))
            widths = [max(pair) for pair in zip(widths, longest, strict=True)]
            shown = widths if self._width is None else fitted(widths, self._width, self._least())
            yield from aligned(chunk, shown, flows=self._flows)
            chunk = []

    def _least(self) -> list[int]:
        """What is left of each column at least; the first one, the name, is whole."""
        return [max(LEAST, len(heading)) for heading, _ in self._columns]


def on_terminal() -> bool:
    """Whether a person sees what is printed."""
    return sys.stdout is not None and sys.stdout.isatty()


def can_redraw(stream: TextIO | None) -> bool:
    """Whether what was printed there can be drawn anew: a terminal that moves its cursor."""
    moves = os.environ.get("TERM", "dumb") != "dumb"
    return moves and stream is not None and stream.isatty()


def terminal_width() -> int:
    """Columns of the terminal; 80 where it does not say."""
    return shutil.get_terminal_size((80, 24)).columns


def fitted(widths: Sequence[int], room: int, least: Sequence[int]) -> list[int]:
    """The widths that columns get so that a line is no longer than `room`.

    The widest is shortened first, but not the first one, nor below `least`; when that is not
    enough the last columns go, as a width of 0.
    """
    low = [widths[0], *map(min, widths[1:], least[1:])]
    kept = len(widths)
    while kept > 1 and _length(low[:kept]) > room:
        kept -= 1
    found = list(widths[:kept])
    while kept > 1 and (over := _length(found) - room) > 0:
        most = max(range(1, kept), key=lambda at: (found[at] > low[at], found[at]))
        rival = max((found[at] for at in range(1, kept) if at != most), default=0)
        found[most] -= max(1, min(over, found[most] - max(low[most], rival)))
    return found + [0] * (len(widths) - kept)


def _length(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)
