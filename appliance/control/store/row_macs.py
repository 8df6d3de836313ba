"""Which rows of the state are believed only with a MAC, and how it is computed.

Rules kept here:
* a row's tag, which is stored beside it, covers its table, the names of the columns are covered by
  the table's total, and each value with its type, as SQLite stores it: `ascii` of a tuple of int,
  str, bytes, float and None is unambiguous and the same in every Python;
* each tag has a share of 32 bytes in the table's sum, which is never stored, so that nobody can
  work out which older tags would add up to the same (a multiset hash: Clarke and others, 2003);
* a table's total is a MAC over its columns, how many rows it has, and their sum: one older row put
  back with its older tag does not fit. It is over names and tags, not over what the rows hold:
  whether the tags are the newest can be told although some rows do not fit theirs. One MAC over all
  totals, the schema and the generation of the state holds them together.

BLAKE2b with a key (RFC 7693) is the MAC. No file, no database: called by `store.rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from sqlalchemy import Table

from appliance.control.store import tables

TAG_SIZE = 16
_SHARE_SIZE = 32
_MODULUS = 1 << 256

Value = int | str | bytes | float | None
Columns = Mapping[str, tuple[str, ...]]


def _all(table: Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.columns)


SIGNED: Columns = {
    table.name: _all(table)
    for table in (
        tables.artifact_version,
        tables.attempt,
        tables.binding,
        tables.checkpoint,
        tables.device,
        tables.gateway,
        tables.join_token,
        tables.project_key,
        tables.recovery_code,
        tables.replica,
        tables.service_account,
        tables.session,
        tables.storage_task,
        tables.token,
        tables.tombstone,
        tables.totp,
        tables.user,
        tables.version_key,
    )
} | {
    # What these say about their progress changes all the time, and opens nothing.
    "node": (
        "id",
        "state",
        "certificate_serial",
        "previous_serial",
        "certificate_used",
        "certificate_expire_time",
        "create_time",
        "cordoned",
        "draining",
    ),
    "job": (
        "uid",
        "project",
        "id",
        "kind",
        "spec",
        "outputs",
        "creator",
        "create_time",
        "state",
        "epoch",
        "placement",
        "pause",
        "on_lost",
        "inputs",
    ),
    "project": ("id", "create_time", "allow_downloads"),
    "endpoint": (
        "uid",
        "project",
        "id",
        "model_version",
        "creator",
        "create_time",
        "goal",
        "next_replica",
    ),
    "upload": (
        "uid",
        "project",
        "kind",
        "artifact",
        "principal",
        "creator",
        "version",
        "folder",
        "files",
        "create_time",
        "expire_time",
        "grant_id",
        "grant_digest",
        "grant_session",
    ),
}
"""Table -> the columns that are covered. Everything that opens something is one of them."""

KEYS: Columns = {
    name: tuple(column.name for column in tables.metadata.tables[name].primary_key)
    for name in SIGNED
} | {
    # Another row of the same user would not be noticed to take the place of one that was there.
    "totp": ("user",),
}
"""Table -> the columns that name a row."""


@dataclass(frozen=True)
class TableTotal:
    """How many rows a table has, and the sum of their shares."""

    count: int = 0
    sum: int = 0

    def plus(self, share: int) -> TableTotal:
        """With one row more."""
        return TableTotal(self.count + 1, (self.sum + share) % _MODULUS)

    def minus(self, share: int) -> TableTotal:
        """With one row less."""
        return TableTotal(self.count - 1, (self.sum - share) % _MODULUS)


def share_of(key: bytes, name: str, tag: bytes) -> int:
    """What a row adds to the sum of its table; never stored.

    Args:
        key: 32 bytes.
        name: of the row; somebody else may have written it.
        tag: of the row.
    """
    text = ascii((name, tag)).encode()
    digest = blake2b(text, key=key, digest_size=_SHARE_SIZE, person=b"share").digest()
    return int.from_bytes(digest, "big")


def tag_of(key: bytes, table: str, values: Iterable[Value]) -> bytes:
    """The tag of a row, 16 bytes.

    Args:
        key: 32 bytes.
        table: its name.
        values: of the covered columns, in their order, as SQLite stores them.
    """
    text = ascii((table, *values)).encode()
    return blake2b(text, key=key, digest_size=TAG_SIZE, person=b"row").digest()


def total_mac(key: bytes, table: str, columns: Sequence[str], total: TableTotal) -> bytes:
    """16 bytes that prove a whole table."""
    text = ascii((table, tuple(columns), total.count, total.sum)).encode()
    return blake2b(text, key=key, digest_size=TAG_SIZE, person=b"total").digest()


def state_mac(key: bytes, columns: Columns, totals: bytes, generation: int) -> bytes:
    """16 bytes that prove all tables together, and which ones, as of a generation of the state."""
    text = ascii((sorted(columns.items()), totals, generation)).encode()
    return blake2b(text, key=key, digest_size=TAG_SIZE, person=b"state").digest()


def name_of(table: str, identity: Iterable[Value]) -> str:
    """How a row is called: its table and its primary key, such as `session/4f…`."""
    parts = (value.hex() if isinstance(value, bytes) else str(value) for value in identity)
    return "/".join((table, *parts))


def table_of(name: str) -> str:
    """The table of a row that `name_of` named."""
    return name.partition("/")[0]


def schema_mac(key: bytes, schema: bytes) -> bytes:
    """16 bytes that prove a digest of the schema."""
    return blake2b(schema, key=key, digest_size=TAG_SIZE, person=b"schema").digest()


def positions(columns: Columns) -> dict[str, tuple[int, ...]]:
    """Table -> where in its covered columns the primary key stands."""
    return {
        name: tuple(covered.index(column) for column in KEYS[name])
        for name, covered in columns.items()
        if name in KEYS
    }
