"""`--watch` of every list: ask again and again, show what is new.

Rules kept here: on a terminal the table is drawn anew, elsewhere a row is printed when it is new or
has changed, and times alone are no change; a pass makes the next one wait for as long as it had
calls, so that one watcher stays far below what a caller may ask; a server that is away for a moment
is waited for. What is remembered of a row is a digest.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.following import PATIENCE
from appliance.cli.output import PEOPLE, Column, json_text, name_of, show, yaml_text
from appliance.cli.tables import Table, can_redraw
from appliance.core.errors import Exhausted, Unavailable

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

Value = Any  # JSON of any shape
SECONDS = 2.0
"""Between two passes, at least."""
SECONDS_PER_CALL = 0.5
"""A list of many pages is asked for less often: two calls a second, where ten are allowed."""
_CLEAR = "\x1b[H\x1b[2J\x1b[3J"


class Watcher:
    """Prints what a list has become since the pass before."""

    def __init__(self, form: str, *, headings: bool) -> None:
        self._form = form
        self._headings = headings
        self._seen: dict[str, bytes] = {}

    def show(self, rows: Iterable[Value], columns: Sequence[Column] | None) -> None:
        """Show one pass."""
        if self._form in PEOPLE and can_redraw(sys.stdout):
            self._draw(rows, columns or ())
        elif self._form in PEOPLE:
            show(self._new(rows, columns), self._form, columns, headings=self._headings)
            self._headings = False
        else:
            for row in self._new(rows, columns):
                self._print(row, columns)
        sys.stdout.flush()

    def _draw(self, rows: Iterable[Value], columns: Sequence[Column]) -> None:
        room = shutil.get_terminal_size((80, 24)).lines - 2
        table = Table(columns, wide=self._form == "wide")
        lines = list(itertools.islice(table.lines(rows, headings=self._headings), room))
        click.echo(_CLEAR + "\n".join(lines), color=True)

    def _print(self, row: Value, columns: Sequence[Column] | None) -> None:
        if self._form == "json":
            click.echo(json_text(row))
        elif self._form == "yaml":
            click.echo("---\n" + yaml_text(row), nl=False)
        else:
            show([row], self._form, columns)

    def _new(self, rows: Iterable[Value], columns: Sequence[Column] | None) -> Iterator[Value]:
        """Rows that were not there, or were different."""
        seen: dict[str, bytes] = {}
        for row in rows:
            kept = {key: value for key, value in row.items() if not key.endswith("_time")}
            text = json.dumps(kept, sort_keys=True)
            digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
            name = name_of(row, columns or ()) or text
            seen[name] = digest
            if self._seen.get(name) != digest:
                yield row
        self._seen = seen


def repeat(session: CommandSession, run: Callable[[], None]) -> None:
    """Run a command that shows a list until it is interrupted.

    Raises:
        Unavailable: the server was away for `PATIENCE` seconds, or at the first pass.
        ApplianceError: the server refuses.
    """
    answered = False
    last = 0.0
    while True:
        before, pause = session.calls, SECONDS
        try:
            run()
            answered, last = True, time.monotonic()
        except Exhausted as error:
            if not answered:
                raise
            pause = max(pause, error.retry_after or 0.0)
        except Unavailable:
            if not answered or time.monotonic() - last > PATIENCE:
                raise
        time.sleep(max(pause, (session.calls - before) * SECONDS_PER_CALL))
