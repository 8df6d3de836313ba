"""Print resources as a table, JSON or YAML: data on stdout, the same way for every noun."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message

Value = Any  # JSON of any shape
Column = tuple[str, Callable[[Value], str]]
"""Heading, and how to get a cell's text from a resource as a dictionary."""


def plain(message: Message) -> dict[str, Value]:
    """A resource as a dictionary: snake_case keys, every plain field present."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - not for `--help`

    found: dict[str, Value] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    # Set fields come first there; a person expects the order of the resource.
    order = [each.name for each in message.DESCRIPTOR.fields]
    return {name: found[name] for name in order if name in found}


def show(value: Value, form: str, columns: Sequence[Column] | None = None) -> None:
    """Print one resource or a list of them.

    Args:
        value: dictionary or list of dictionaries.
        form: `table`, `json` or `yaml`.
        columns: columns of the table; a single resource without columns is printed as lines.
    """
    if form == "json":
        click.echo(json_text(value, indent=2))
    elif form == "yaml":
        click.echo(yaml_text(value), nl=False)
    elif isinstance(value, list):
        _table(value, columns or [("NAME", field("name"))])
    elif columns:
        _table([value], columns)
    else:
        _lines(value)


def json_text(value: Value, indent: int | None = None) -> str:
    """A value as JSON in which what is not printable, and could act on a terminal, is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def yaml_text(value: Value) -> str:
    """The same as YAML, which escapes either nothing but the worst or all that is not ASCII."""
    import yaml  # noqa: PLC0415 - only who asks for it pays for it

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    if safe(text, "\n") == text:
        return text
    escaped: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=False)
    return escaped


def field(path: str) -> Callable[[Value], str]:
    """A cell that shows the field at `path`, such as `progress.step`."""

    def cell(row: Value) -> str:
        for part in path.split("."):
            row = row.get(part) if isinstance(row, dict) else None
        return "" if row is None else _text(row)

    return cell


def state(path: str = "state") -> Callable[[Value], str]:
    """A cell that shows an enum without its prefix: STATE_READY is READY."""
    return lambda row: field(path)(row).partition("_")[2] or field(path)(row)


def last(path: str = "name") -> Callable[[Value], str]:
    """A cell that shows the last part of a resource name."""
    return lambda row: field(path)(row).rpartition("/")[2]


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_text(each) for each in value)
    return str(value)


def _table(rows: Iterable[Value], columns: Sequence[Column]) -> None:
    """Columns as wide as their longest cell; control characters never reach the terminal."""
    cells = [[heading for heading, _ in columns]]
    cells += [[safe(cell(row)) for _, cell in columns] for row in rows]
    for line in table_lines(cells):
        click.echo(line)


def table_lines(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of equal length as lines, their columns as wide as the longest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()


def _lines(value: dict[str, Value], indent: str = "") -> None:
    for key, entry in value.items():
        if entry in ("", [], {}, None):
            continue
        if isinstance(entry, dict):
            click.echo(f"{indent}{key}:")
            _lines(entry, indent + "  ")
        elif isinstance(entry, list) and isinstance(entry[0], dict):
            click.echo(f"{indent}{key}:")
            for each in entry:
                click.echo(f"{indent}  - " + safe(_inline(each)))
        else:
            click.echo(f"{indent}{key}: {safe(_text(entry))}")


def _inline(value: dict[str, Value]) -> str:
    return ", ".join(
        f"{key} {_text(entry)}" for key, entry in value.items() if entry not in ("", [])
    )


def safe(text: str, keep: str = "") -> str:
    """Text whose control characters cannot reach a terminal; `keep` are let through."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)
