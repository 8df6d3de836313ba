"""Print resources as a table, JSON, YAML or names: data on stdout, the same for every noun.

A column is a heading and how to get its cell from a resource as a dictionary. Columns stand by
importance, the most important first; `wide` marks those that `-o wide` alone shows.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import moments

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from appliance.cli.tables import Table

Value = Any  # JSON of any shape
Cell = Callable[[Value], str]
Column = tuple[str, Cell]
"""Heading, and how to get a cell's text from a resource as a dictionary."""
GAP = 2
"""Spaces between columns."""
MORE = "\N{HORIZONTAL ELLIPSIS}"
MOST_WHOLE = 1e15
"""Above it a float does not tell whole numbers apart."""
PEOPLE = ("table", "wide")
"""Forms that are for people; the others are for programs."""


class Wide(tuple[str, Cell]):
    """A column that `-o wide` alone shows."""

    __slots__ = ()


def wide(heading: str, cell: Cell) -> Column:
    """A column that `-o wide` alone shows."""
    return Wide((heading, cell))


class Flowing(tuple[str, Cell]):
    """A last column of sentences: on a terminal they go on in the next line, and are not cut."""

    __slots__ = ()


def flowing(heading: str, cell: Cell) -> Column:
    """A last column of sentences, which go on in the next line where a terminal has no room."""
    return Flowing((heading, cell))


def plain(message: Message) -> dict[str, Value]:
    """A resource as a dictionary in the order of its proto: every plain field is present.

    Keys are in snake_case, whole numbers are numbers, enums have their names.
    """
    return _plain(message, words=False)


def readable(message: Message) -> dict[str, Value]:
    """The same with enums as people read them: RUNNING, not STATE_RUNNING."""
    return _plain(message, words=True)


def _plain(message: Message, *, words: bool) -> dict[str, Value]:
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - not for `--help`

    from appliance.cli.values import tidy  # noqa: PLC0415 - as above

    found: dict[str, Value] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return tidy(found, message.DESCRIPTOR, words=words)


def show(
    value: Value,
    form: str,
    columns: Sequence[Column] | None = None,
    *,
    headings: bool = True,
) -> None:
    """Print one resource or several.

    Args:
        value: dictionary; or a list or an iterator of them, which is printed as it comes.
        form: `table`, `wide`, `json`, `yaml` or `name`.
        columns: columns of the table; a single resource without columns is printed as lines.
        headings: whether a table begins with the headings.
    """
    several = not isinstance(value, dict)
    if form == "json":
        for part in _json_of_rows(value) if several else [json_text(value, indent=2)]:
            click.echo(part)
    elif form == "yaml":
        for part in _yaml_of_rows(value) if several else [yaml_text(value)]:
            click.echo(part, nl=False)
    elif form == "name" and (several or name_of(value)):
        for row in value if several else [value]:
            click.echo(safe(name_of(row, columns or ())))
    elif several or columns:
        rows = value if several else [value]
        _table(form, columns).print(rows, headings=headings)
    else:
        from appliance.cli.fields_view import lines  # noqa: PLC0415 - lists do without

        for line in lines(value):
            click.echo(line)


def name_of(row: Value, columns: Sequence[Column] = ()) -> str:
    """What a row is called: its name or its id, or else its first cell."""
    found = row.get("name") or row.get("id")
    return str(found) if found else columns[0][1](row) if columns else ""


def _table(form: str, columns: Sequence[Column] | None) -> Table:
    from appliance.cli.tables import Table  # noqa: PLC0415 - JSON does without

    return Table(columns or [("NAME", field("name"))], wide=form == "wide")


def _json_of_rows(rows: Iterable[Value]) -> Iterator[str]:
    """The lines of an array, of which one element at a time is held."""
    before = ""
    for row in rows:
        yield f"{before}," if before else "["
        before = "  " + json_text(row, indent=2).replace("\n", "\n  ")
    yield f"{before}\n]" if before else "[]"


def _yaml_of_rows(rows: Iterable[Value]) -> Iterator[str]:
    empty = True
    for row in rows:
        empty = False
        yield yaml_text([row])
    if empty:
        yield "[]\n"


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


def field(path: str) -> Cell:
    """A cell that shows the field at `path`, such as `progress.step`; of a time how long ago."""
    is_time = path.endswith("_time")

    def cell(row: Value) -> str:
        found = at(row, path)
        if found is None:
            return ""
        return moments.ago(found) if is_time else text_of(found)

    return cell


def at(row: Value, path: str) -> Value:
    """What stands at `path` in a resource; None when nothing does."""
    for part in path.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def age(path: str) -> Cell:
    """A cell that shows how long ago a time is."""
    return lambda row: moments.ago(str(at(row, path) or ""))


def moment(path: str) -> Cell:
    """A cell that shows a time to the second."""
    return lambda row: moments.clock(str(at(row, path) or ""))


def size(path: str) -> Cell:
    """A cell that shows bytes: `1.2 GiB`."""
    return lambda row: in_bytes(int(at(row, path) or 0))


def in_bytes(size: int) -> str:
    """Bytes for a person: `12 B`, `1.2 GiB`."""
    left, units = float(size), iter(("B", "KiB", "MiB", "GiB"))
    for unit in units:
        if left < 1024:
            return f"{left:.0f} {unit}" if unit == "B" or left >= 100 else f"{left:.1f} {unit}"
        left /= 1024
    return f"{left:.1f} TiB"


def state(path: str = "state") -> Cell:
    """A cell that shows an enum without its prefix: STATE_READY is READY."""
    return lambda row: field(path)(row).partition("_")[2] or field(path)(row)


def last(path: str = "name") -> Cell:
    """A cell that shows the last part of a resource name."""
    return lambda row: field(path)(row).rpartition("/")[2]


def short(path: str = "name") -> Cell:
    """A cell that shows resource names as they are typed: `docs/3`."""

    def cell(row: Value) -> str:
        found = at(row, path)
        names = found if isinstance(found, list) else [found or ""]
        return ", ".join(short_name(str(name)) for name in names)

    return cell


def short_name(name: str) -> str:
    """A resource name as it is typed: its ids, without that of its project."""
    ids = name.split("/")[1::2]
    return "/".join(ids[1:] if name.startswith("projects/") and len(ids) > 1 else ids) or name


def text_of(value: Value) -> str:
    """A value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list):
        return ", ".join(text_of(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {text_of(each)}" for key, each in value.items() if each != "")
    return str(value)


def number(value: float) -> str:
    """A measured number: whole ones in full, others to six digits."""
    return f"{value:.0f}" if value.is_integer() and abs(value) < MOST_WHOLE else f"{value:.6g}"


def table_lines(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of equal length as lines, their columns as wide as the longest cell."""
    return aligned(cells, [max(map(len, column)) for column in zip(*cells, strict=True)])


def aligned(
    cells: Sequence[Sequence[str]], widths: Sequence[int], *, flows: bool = False
) -> Iterator[str]:
    """Rows as lines with columns of these widths; one of 0 is left out.

    With `flows` the last column goes on in further lines instead of being cut.
    """
    for row in cells:
        lines = [row]
        if flows and len(row[-1]) > widths[-1] > 0:
            first, *more = textwrap.wrap(row[-1], widths[-1])
            before = list(row[:-1])
            lines = [[*before, first], *([*([""] * len(before)), part] for part in more)]
        for line in lines:
            shown = (cut(c, w).ljust(w) for c, w in zip(line, widths, strict=True) if w)
            yield (" " * GAP).join(shown).rstrip()


def cut(text: str, width: int) -> str:
    """A text that is no longer than `width`; what is cut says so."""
    return text if len(text) <= width else text[: width - 1] + MORE


def safe(text: str, keep: str = "") -> str:
    """Text whose control characters cannot reach a terminal; `keep` are let through."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)
