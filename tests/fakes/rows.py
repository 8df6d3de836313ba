"""One row in each table that is believed only with a MAC, and whoever can write the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pysqlite3 import dbapi2 as sqlite

from appliance.control.store import tables
from appliance.control.store.database import Database
from tests.fakes.state import START

LATER = START.replace(year=START.year + 1)
UID = "u" * 16

ROWS: dict[str, dict[str, Any]] = {
    "user": {"id": "alice", "password_hash": "hers", "create_time": START},
    "attempt": {"account": "user:alice", "failures": 99, "next_time": LATER},
    "totp": {
        "id": "t",
        "user": "alice",
        "sealed_secret": b"sealed",
        "confirmed": True,
        "create_time": START,
    },
    "recovery_code": {"user": "alice", "digest": b"\x00\xff"},
    "device": {
        "id": "d",
        "user": "alice",
        "digest": b"d",
        "create_time": START,
        "expire_time": LATER,
        "seen_time": START,
    },
    "session": {
        "id": "s",
        "user": "alice",
        "digest": b"s",
        "step": "COMPLETE",
        "create_time": START,
        "expire_time": LATER,
        "seen_time": START,
        "source": "192.0.2.1",
    },
    "project": {"id": "demo", "description": "", "create_time": START},
    "project_key": {
        "project": "demo",
        "version": 1,
        "wrapped_key": b"wrapped",
        "create_time": START,
    },
    "service_account": {"id": "demo--app", "project": "demo", "create_time": START},
    "token": {
        "id": "k",
        "service_account": "demo--app",
        "digest": b"k",
        "create_time": START,
        "expire_time": LATER,
    },
    "binding": {
        "id": "b",
        "subject": "user:alice",
        "role": "viewer",
        "domain": "demo",
        "creator": "users/root",
        "create_time": START,
    },
    "artifact": {
        "project": "demo",
        "kind": "model",
        "id": "m",
        "creator": "users/alice",
        "create_time": START,
    },
    "artifact_version": {
        "uid": UID,
        "project": "demo",
        "kind": "model",
        "artifact": "m",
        "number": 1,
        "state": "complete",
        "key_version": 1,
        "folder": f"demo/{UID}",
        "creator": "users/alice",
        "create_time": START,
    },
    "version_key": {"version": UID, "wrapped_key": b"wrapped"},
    "tombstone": {
        "uid": "gone",
        "project": "demo",
        "kind": "dataset",
        "name": "projects/demo/datasets/d/versions/1",
        "manifest_digest": "digest",
        "size_bytes": 1,
        "statement": "",
        "inputs": [],
        "input_uids": [],
        "job_name": "",
        "creator": "users/alice",
        "create_time": START,
        "delete_time": START,
        "deleter": "users/alice",
    },
    "job": {
        "uid": "j",
        "project": "demo",
        "id": "job",
        "kind": "train",
        "spec": {"text": "datasets/d"},
        "state": "QUEUED",
        "creator": "users/alice",
        "create_time": START,
    },
    "checkpoint": {
        "job": "j",
        "epoch": 1,
        "step": 100,
        "digest": "digest",
        "size_bytes": 1,
        "state": "COMPLETE",
        "create_time": START,
    },
    "endpoint": {
        "uid": "e",
        "project": "demo",
        "id": "chat",
        "model_version": UID,
        "replicas": 1,
        "tensor_parallel": 1,
        "max_sequence_length": 8,
        "cache_bytes": 8,
        "state": "READY",
        "creator": "users/alice",
        "create_time": START,
    },
    "replica": {"endpoint": "e", "id": "0", "state": "READY", "epoch": 3, "address": "192.0.2.1:1"},
    "storage_task": {
        "id": 1,
        "kind": "delete_folder",
        "subject": "demo/old",
        "due_time": START,
        "create_time": START,
    },
    "upload": {
        "uid": "u",
        "project": "demo",
        "kind": "model",
        "artifact": "m",
        "principal": "user:alice",
        "creator": "users/alice",
        "state": "OPEN",
        "version": UID,
        "create_time": START,
        "expire_time": LATER,
        "grant_id": "g",
        "grant_digest": b"g",
        "grant_session": "s",
    },
    "node": {"id": "node-1", "state": "EVICTED", "create_time": START},
    "gateway": {"id": "gateway-1", "state": "EVICTED", "create_time": START},
    "join_token": {
        "id": "n",
        "machine": "node-2",
        "digest": b"n",
        "creator": "users/alice",
        "create_time": START,
        "expire_time": LATER,
    },
}
"""Table -> a row of it, in an order in which they can be made."""

CHANGES: dict[str, tuple[str, Any]] = {
    "user": ("password_hash", "mine"),
    "attempt": ("failures", 0),
    "totp": ("sealed_secret", b"mine"),
    "recovery_code": ("digest", b"mine"),
    "device": ("user", "mallory"),
    "session": ("user", "mallory"),
    "project": ("allow_downloads", 1),
    "project_key": ("wrapped_key", b"mine"),
    "service_account": ("project", "other"),
    "token": ("digest", b"mine"),
    "binding": ("role", "administrator"),
    "artifact_version": ("folder", "other/uid"),
    "version_key": ("wrapped_key", b"mine"),
    "tombstone": ("manifest_digest", "mine"),
    "job": ("creator", "users/root"),
    "checkpoint": ("digest", "mine"),
    "endpoint": ("model_version", "other"),
    "replica": ("address", "192.0.2.66:1"),
    "storage_task": ("subject", "demo/live"),
    "upload": ("principal", "user:mallory"),
    "node": ("state", "READY"),
    "gateway": ("state", "READY"),
    "join_token": ("expire_time", 2**60),
}
"""Table -> a column that matters, and what an attacker would write there."""


def fill(database: Database) -> None:
    """Make all these rows, as the control plane does."""
    with database.write() as transaction:
        for name, values in ROWS.items():
            transaction.run(tables.metadata.tables[name].insert().values(**values))


@contextmanager
def somebody(path: Path) -> Iterator[Any]:
    """Whoever can write the file, with a connection that keeps none of our rules."""
    with closing(sqlite.connect(path, timeout=30)) as raw:
        raw.isolation_level = None
        yield raw


def change(path: Path, table: str) -> None:
    """Write what matters."""
    column, value = CHANGES[table]
    with somebody(path) as raw:
        raw.execute(f'UPDATE "{table}" SET "{column}" = ?', (value,))


def copy(path: Path, table: str) -> None:
    """Add a row like the one that is there, under another key."""
    with somebody(path) as raw:
        columns = [row[1] for row in raw.execute(f'PRAGMA table_info("{table}")')]
        row = list(raw.execute(f'SELECT * FROM "{table}"').fetchone())
        key = tables.metadata.tables[table].primary_key.columns.values()[-1].name
        place = columns.index(key)
        row[place] = row[place] + 1 if isinstance(row[place], int) else _other(row[place])
        # What has to be the only one of its kind.
        for name in (
            ("user", "number", "role")
            if table in {"totp", "binding"}
            else ("number", "id", "grant_id")
        ):
            if name in columns and name != key:
                at = columns.index(name)
                row[at] = row[at] + 1 if isinstance(row[at], int) else _other(row[at])
        marks = ", ".join("?" * len(columns))
        raw.execute(f'INSERT INTO "{table}" VALUES ({marks})', row)


def _other(value: Any) -> Any:
    return value + (b"2" if isinstance(value, bytes) else "2")


def take_away(path: Path, table: str) -> None:
    """Delete the rows of a table, and nothing else."""
    with somebody(path) as raw:
        raw.execute(f'DELETE FROM "{table}"')


def rolled_back(path: Path, table: str, work: Callable[[], None]) -> None:
    """Keep the rows of a table with their tags, let something happen, and put them back."""
    with somebody(path) as raw:
        raw.execute("CREATE TEMP TABLE kept AS SELECT * FROM " + f'main."{table}"')
        raw.execute(
            "CREATE TEMP TABLE tags AS SELECT * FROM main.row_mac WHERE row LIKE ?", (f"{table}/%",)
        )
        work()
        raw.execute(f'DELETE FROM main."{table}"')
        raw.execute(f'INSERT INTO main."{table}" SELECT * FROM kept')
        raw.execute("DELETE FROM main.row_mac WHERE row LIKE ?", (f"{table}/%",))
        raw.execute("INSERT INTO main.row_mac SELECT * FROM tags")
