"""The SQL of covered tables: what puts a check before each of them, and what reads them raw.

A temporary view has the table's own name, so that a SELECT finds it first; a change names the table
in schema `main`. Temporary triggers tell what a change does, also one by a cascade. SQLite inlines
such a view: a search by key computes one digest.

Called by `store.rows`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from appliance.control.store.row_macs import SIGNED, Columns

Raw = Any
"""A connection of pysqlite3, which has no types."""

_NAMES = re.compile("[a-z_]+")

BELIEVED, BEFORE, INSERTED, UPDATED, DELETED = (
    "row_is_believed",
    "row_before",
    "row_inserted",
    "row_updated",
    "row_deleted",
)
"""Functions that a connection has, each called with a table and the values of a row."""


@dataclass(frozen=True)
class Signed:
    """What a state says of its MACs: covered columns, a MAC for each table, and the generation."""

    columns: Columns
    macs: bytes
    generation: int


def read_signed(raw: Raw) -> Signed | None:
    """What the state says of its MACs; None without any."""
    there = {row[1] for row in raw.execute("PRAGMA main.table_info(meta)")}
    if not {"row_columns", "row_macs"} <= there:
        return None
    row = raw.execute("SELECT row_columns, row_macs, generation FROM main.meta").fetchone()
    if row is None or not row[0] or not isinstance(row[1], bytes):
        return None
    try:
        columns = {name: tuple(covered) for name, covered in json.loads(row[0]).items()}
        names = "".join(name + "".join(covered) for name, covered in columns.items())
    except (ValueError, AttributeError, TypeError):
        return None
    # They go into statements, and nothing has vouched for them yet.
    return Signed(columns, row[1], row[2]) if _NAMES.fullmatch(names) else None


def identity(raw: Raw, table: str, columns: tuple[str, ...]) -> tuple[int, ...] | None:
    """Where in the covered columns the primary key stands, in a database of any version.

    None when there is no such table, or it lacks one of the columns.
    """
    there = {row[1]: row[5] for row in raw.execute(f'PRAGMA main.table_info("{table}")')}
    key = [name for _, name in sorted((order, name) for name, order in there.items() if order)]
    if not key or not {*key} <= {*columns} <= {*there}:
        return None
    return tuple(columns.index(name) for name in key)


def schema_digest(raw: Raw) -> bytes:
    """A digest of everything that the file defines: tables, indices, and what does not belong."""
    rows = raw.execute("SELECT type, name, tbl_name, sql FROM main.sqlite_schema").fetchall()
    return sha256(ascii(sorted(rows, key=ascii)).encode()).digest()


def schema_version(raw: Raw) -> int:
    """A number that changes with the schema."""
    return int(raw.execute("PRAGMA main.schema_version").fetchone()[0])


def selection(table: str, columns: tuple[str, ...]) -> str:
    """A SELECT of these columns of a whole table, past the view."""
    return f'SELECT {_list(columns)} FROM main."{table}"'  # noqa: S608 - names of our own tables


def attach(connection: Raw, functions: Mapping[str, Callable[..., Any]], *, writes: bool) -> None:
    """Make functions and views on a new connection; triggers too when it `writes`.

    Args:
        connection: the connection.
        functions: the names above -> what to call.
        writes: whether it will change anything.
    """
    for name, function in functions.items():
        connection.create_function(name, -1, function)
    for table, columns in SIGNED.items():
        connection.execute(
            f'CREATE TEMP VIEW "{table}" AS SELECT * FROM main."{table}" '  # noqa: S608 - as above
            f"WHERE {BELIEVED}('{table}', {_list(columns)})"
        )
        for statement in _triggers(table, columns) if writes else ():
            connection.execute(statement)


def _triggers(table: str, columns: tuple[str, ...]) -> Iterator[str]:
    changed = f"UPDATE OF {_list(columns)}"
    for when, function, row in (
        (f"BEFORE {changed}", BEFORE, "OLD"),
        (f"AFTER {changed}", UPDATED, "NEW"),
        ("AFTER INSERT", INSERTED, "NEW"),
        ("AFTER DELETE", DELETED, "OLD"),
    ):
        values = ", ".join(f'{row}."{column}"' for column in columns)
        yield (
            f'CREATE TEMP TRIGGER "{function}_{table}" {when} ON main."{table}" '
            f"BEGIN SELECT {function}('{table}', {values}); END"
        )


def _list(columns: tuple[str, ...]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
