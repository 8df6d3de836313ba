"""A report as lines of a terminal: headings, texts, numbers, tables, and which pictures there are.

Rule kept here: whatever the report says, no control character of it reaches the terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import click

from appliance.cli import moments
from appliance.cli.output import safe, table_lines

WIDTH = 100
Value = Any  # JSON of any shape


def show_report(report: Value) -> None:
    """Print a report.

    Args:
        report: the resource as a dictionary, with its content.
    """
    for line in lines_of(report):
        click.echo(line)


def lines_of(report: Value) -> Iterator[str]:
    """The lines of a report, each fit for a terminal."""
    content = report.get("content") or {}
    yield from _heading(content.get("title") or report["title"], "=")
    by = f"by {report['job']}" if report["job"] else ""
    made = [report["name"], moments.clock(report["create_time"]), by]
    yield safe("  ".join(filter(None, made)))
    for section in content.get("sections", ()):
        yield from _section(section)


def _section(section: Value) -> Iterator[str]:
    yield ""
    if section["heading"]:
        yield from _heading(section["heading"], "-")
    for paragraph in filter(None, section["text"].split("\n")):
        yield from textwrap.wrap(safe(paragraph), WIDTH) or [""]
    if section["numbers"]:
        yield from table_lines(
            [
                [safe(each["name"]), number_text(each["value"]), safe(each["unit"])]
                for each in section["numbers"]
            ]
        )
    for table in section["tables"]:
        yield ""
        if table["caption"]:
            yield safe(table["caption"])
        cells = [[_cell(cell) for cell in row["cells"]] for row in table["rows"]]
        yield from table_lines([[safe(each) for each in table["columns"]], *cells])
    for picture in section["pictures"]:
        yield safe(f"[{picture['file']}: {picture['caption']}]")


def _heading(text: str, line: str) -> Iterator[str]:
    shown = safe(text)
    yield shown
    yield line * len(shown)


def _cell(cell: Value) -> str:
    if "number" in cell:
        return number_text(cell["number"])
    return safe(cell.get("text", ""))


def number_text(value: float) -> str:
    """A number as a person reads it: whole ones without a dot, others with six digits."""
    whole = float(value).is_integer() and abs(value) < 1e15
    return f"{int(value):,}" if whole else f"{value:.6g}"
