"""The SQL of covered tables: what puts a check before each of them, and what reads them raw.

A temporary view has the table's own name, so that a SELECT finds it first; a change names the table
in schema `main`. Temporary triggers tell what a change does, also one by a cascade. SQLite inlines
such a view, so a search by key computes one digest; what it may move while it does that is why the
check stands in a subquery, and why the schema is watched.

Called by `store.rows`.
"""

from __future__ import annotations

import contextlib
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

BELIEVED, INSERTED, REMOVED = "row_is_believed", "row_inserted", "row_removed"
"""Functions that a connection has, each called with a table and the values of a row."""

READ_ONCE = frozenset({"job"})
"""Tables whose rows may not fit into a page: SQLite reads the rest from the file, and once for each
use of a column. Whoever writes the file in between would have one text checked and another used, so
a row is copied first."""
MAX_COLUMNS = 1 << 16
MAX_GENERATION = 1 << 62


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
    if row is None or not isinstance(row[0], str) or not isinstance(row[1], bytes):
        return None
    if len(row[0]) > MAX_COLUMNS or not isinstance(row[2], int):
        return None
    try:
        columns = {name: tuple(covered) for name, covered in json.loads(row[0]).items()}
        names = "".join(name + "".join(covered) for name, covered in columns.items())
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None
    if not 0 <= row[2] < MAX_GENERATION:
        return None
    # They go into statements, and nothing has vouched for them yet.
    return Signed(columns, row[1], row[2]) if _NAMES.fullmatch(names) else None


@contextlib.contextmanager
def any_text(raw: Raw) -> Iterator[None]:
    """Read what is no UTF-8 as well, so that it is named instead of stopping everything."""
    before = raw.text_factory
    raw.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    try:
        yield
    finally:
        raw.text_factory = before


def damage(raw: Raw, table: str) -> str:
    """What is wrong with the pages and indices of a table; empty when nothing is."""
    (said,) = raw.execute(f'PRAGMA main.integrity_check("{table}")').fetchone()
    return "" if said == "ok" else str(said)


def identity(
    raw: Raw, table: str, columns: tuple[str, ...], key: tuple[str, ...] | None = None
) -> tuple[int, ...] | None:
    """Where in the covered columns stands what names a row, in a database of any version.

    Args:
        raw: the connection.
        table: its name.
        columns: that are covered.
        key: the columns that name a row; None: the primary key.

    None when there is no such table, or it lacks one of the columns.
    """
    there = {row[1]: row[5] for row in raw.execute(f'PRAGMA main.table_info("{table}")')}
    if key is None:
        key = tuple(name for _, name in sorted((at, name) for name, at in there.items() if at))
    if not key or not {*key} <= {*columns} <= {*there}:
        return None
    return tuple(columns.index(name) for name in key)


def read_tags(raw: Raw) -> dict[str, bytes] | None:
    """The tag that is stored for each row; None when what is there are no tags."""
    if identity(raw, "row_mac", ("row", "mac")) is None:
        return None
    stored = dict(raw.execute("SELECT row, mac FROM main.row_mac"))
    whole = all(isinstance(row, str) and isinstance(mac, bytes) for row, mac in stored.items())
    return stored if whole else None


def read_schema(raw: Raw) -> tuple[bytes, int]:
    """A digest of everything that the file defines, and the number that changes with it.

    Within a transaction: what the connection knew of the schema is read anew.
    """
    raw.execute("PRAGMA writable_schema=RESET")
    rows = raw.execute("SELECT type, name, tbl_name, sql FROM main.sqlite_schema").fetchall()
    digest = sha256(ascii(sorted(rows, key=ascii)).encode()).digest()
    return digest, schema_version(raw)


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
        connection.execute(_view(table, columns))
        for statement in _triggers(table, columns) if writes else ():
            connection.execute(statement)


def _view(table: str, columns: tuple[str, ...]) -> str:
    # In a subquery, or SQLite puts the constant that a row is compared with in the place of a
    # column, and asks about a row that there is not. By an index the key is taken from there, so
    # that a row does not pass for the one that was looked up.
    check = f"(SELECT {BELIEVED}('{table}', {_list(columns)}))"
    rows = f'main."{table}"'
    if table in READ_ONCE:
        rows = f"(SELECT DISTINCT * FROM {rows})"  # noqa: S608 - names of our own tables
    return f'CREATE TEMP VIEW "{table}" AS SELECT * FROM {rows} WHERE {check}'  # noqa: S608 - as above


def _triggers(table: str, columns: tuple[str, ...]) -> Iterator[str]:
    old, new = (", ".join(f'{row}."{column}"' for column in columns) for row in ("OLD", "NEW"))
    # What is not believed is not there: a change passes it by, and does not count it.
    unseen = f"SELECT RAISE(IGNORE) WHERE NOT {BELIEVED}('{table}', {old});"
    removed = f"SELECT {REMOVED}('{table}', {old});"
    inserted = f"SELECT {INSERTED}('{table}', {new});"
    update = f"UPDATE OF {_list(columns)}"
    for name, when, steps in (
        ("before_update", f"BEFORE {update}", unseen),
        ("before_delete", "BEFORE DELETE", unseen),
        ("after_update", f"AFTER {update}", removed + inserted),
        ("after_insert", "AFTER INSERT", inserted),
        ("after_delete", "AFTER DELETE", removed),
    ):
        yield (
            f'CREATE TEMP TRIGGER "{name}_{table}" {when} ON main."{table}" '
            f"FOR EACH ROW BEGIN {steps} END"
        )


def _list(columns: tuple[str, ...]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
