"""Which rows of the state are believed only with a MAC, and how it is computed.

Rules kept here:
* a row's digest covers its table, the names of the columns are covered by the table's total, and
  each value with its type, as SQLite stores it: `ascii` of a tuple of int, str, bytes, float and
  None is unambiguous and the same in every Python;
* the first 16 bytes of a digest are the row's tag, which is stored beside it and says which row was
  changed; the other 32 are never stored and are added up to the table's sum, so that nobody can
  work out which older rows would add up to the same (a multiset hash: Clarke and others, 2003);
* a table's total is a MAC over its columns, how many rows it has, and their sum: one older row put
  back with its older tag does not fit. One MAC over all totals, the schema and the generation of
  the state holds them together.

BLAKE2b with a key (RFC 7693) is the MAC. No file, no database: called by `store.rows`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from sqlalchemy import Table

from appliance.control.store import tables

TAG_SIZE = 16
_DIGEST_SIZE = 48
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
        tables.totp,
        tables.user,
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
    ),
    "endpoint": ("uid", "project", "id", "model_version", "creator", "create_time"),
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
class Total:
    """How many rows a table has, and the sum of what their digests keep to themselves."""

    count: int = 0
    sum: int = 0

    def plus(self, digest: bytes) -> Total:
        """With one row more."""
        return Total(self.count + 1, (self.sum + _share(digest)) % _MODULUS)

    def minus(self, digest: bytes) -> Total:
        """With one row less."""
        return Total(self.count - 1, (self.sum - _share(digest)) % _MODULUS)


def _share(digest: bytes) -> int:
    return int.from_bytes(digest[TAG_SIZE:], "big")


def digest_of(key: bytes, table: str, values: Iterable[Value]) -> bytes:
    """The digest of a row: 16 bytes of tag, and 32 that stay in memory.

    Args:
        key: 32 bytes.
        table: its name.
        values: of the covered columns, in their order, as SQLite stores them.
    """
    text = ascii((table, *values)).encode()
    return blake2b(text, key=key, digest_size=_DIGEST_SIZE, person=b"row").digest()


def tag_of(digest: bytes) -> bytes:
    """What is stored of a digest."""
    return digest[:TAG_SIZE]


def total_mac(key: bytes, table: str, columns: Sequence[str], total: Total) -> bytes:
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
