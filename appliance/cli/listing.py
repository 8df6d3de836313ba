"""What every list takes: `--filter`, `--sort`, `--limit`, `--watch`, `--no-headers`.

Rules kept here: the server answers page by page, and no page is asked for that is not needed; with
a limit no more rows are held than that. `command.py` gives a command these options, the session
applies them to whatever the command shows.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

Value = Any  # JSON of any shape
NAMES = ("conditions", "sort", "limit", "watch", "no_headers")
"""Names of the values of the options."""


@dataclass(frozen=True)
class Listing:
    """Which rows of a list are wanted, and how they are shown."""

    conditions: tuple[str, ...] = ()
    sort: str = ""
    limit: int = 0
    watch: bool = False
    no_headers: bool = False

    @property
    def pages_of(self) -> int:
        """Rows that a page need hold; 0 when it is not known."""
        return 0 if self.conditions or self.sort else self.limit

    def chosen(self, rows: Iterable[Value], known: Sequence[str]) -> Iterator[Value]:
        """The rows that are wanted, in order.

        Args:
            rows: read as far as needed.
            known: the fields they can have; of rows that a command has made, those of the first.

        Raises:
            click.UsageError: an expression or a field is wrong.
        """
        if not self.conditions and not self.sort:
            return itertools.islice(rows, self.limit or None)
        from appliance.cli import conditions  # noqa: PLC0415 - most lists do without

        wanted = [conditions.Condition.parse(each) for each in self.conditions]
        source = iter(rows)
        by = self.sort.removeprefix("-")
        if not known:
            first = list(itertools.islice(source, 1))
            # What is nested may be there in another row.
            known = [path for key in first[0] for path in (key, f"{key}.*")] if first else []
            source = itertools.chain(first, source)
        for option, path in [("--filter", each.path) for each in wanted] + [("--sort", by)]:
            if known and path:
                conditions.check_path(path, known, option)
        now = conditions.now()
        kept = (row for row in source if all(each.holds(row, now) for each in wanted))
        if not by:
            return itertools.islice(kept, self.limit or None)
        key, downwards = conditions.sort_key(by), self.sort.startswith("-")
        if self.limit:
            best = heapq.nlargest if downwards else heapq.nsmallest
            return iter(best(self.limit, kept, key=key))
        return iter(sorted(kept, key=key, reverse=downwards))


def options(limit: int) -> list[click.Parameter]:
    """The options of a list.

    Args:
        limit: rows that are shown when nothing is said; 0 for all.
    """
    default = f"{limit}; 0 for all" if limit else "all"
    return [
        click.Option(
            ["--filter", "conditions"],
            multiple=True,
            metavar="EXPR",
            help="Only rows of which this holds: state=RUNNING, name!=first, name~chat, "
            "size_bytes>2GiB, age<2d; several must all hold.",
        ),
        click.Option(
            ["--sort"],
            metavar="FIELD",
            default="",
            help="Sort by a field of -o json, or by age; -FIELD is the other way round.",
        ),
        click.Option(
            ["--limit"],
            metavar="N",
            type=click.IntRange(0),
            default=limit,
            help=f"Rows to show at most.  [default: {default}]",
        ),
        click.Option(
            ["--watch"], is_flag=True, help="Go on: show what is new or has changed, until Ctrl-C."
        ),
        click.Option(["--no-headers"], is_flag=True, help="Leave out the headings of the table."),
    ]


def is_list(methods: Sequence[str]) -> bool:
    """Whether a command that calls these RPCs, and no other, shows a list."""
    return bool(methods) and all(each.partition(".")[2].startswith("List") for each in methods)
