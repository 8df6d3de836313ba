"""A state database in a temporary folder, a clock that stands still, and cheap password hashing."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import argon2
import pytest
from sqlalchemy import insert

from appliance.control.auth.passwords import Passwords
from appliance.control.store import migrate, tables
from appliance.control.store.database import Database, Transaction
from appliance.control.store.rows import RowMacs
from appliance.core.data_directory import DataDirectory
from appliance.core.errors import Exhausted
from appliance.core.files import read_secret
from appliance.crypto.keys import Keyring, RootKey

CLUSTER = "lab"
START = datetime(2026, 11, 22, 12, tzinfo=UTC)


class StandingClock:
    """Says the same moment until it is moved."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


ROW_KEY = b"r" * 32


class FastPasswords(Passwords):
    """The same rules with the cheapest Argon2id there is."""

    def __init__(self, pepper: bytes = b"p" * 32) -> None:
        super().__init__(pepper, hasher=argon2.PasswordHasher(1, 8, 1))


def make_state(folder: Path, now: datetime = START) -> Database:
    """A new, initialised state database."""
    database = Database(folder / "state.db")
    migrate.create(database, RowMacs(ROW_KEY), CLUSTER, now)
    return database


@contextmanager
def as_control(folder: Path) -> Iterator[Database]:
    """The state of a data directory, written as the control plane itself would."""
    data = DataDirectory(folder)
    cluster = tomllib.loads(data.config.read_text())["cluster_id"]
    keyring = Keyring.open(read_secret(data.keyring), RootKey.read(data.root_key), cluster)
    database = Database(data.state)
    assert migrate.check(database, RowMacs(keyring.row_key()), cluster, signed=True) == []
    try:
        yield database
    finally:
        database.close()


def add_user(
    database: Database, name: str, password_hash: str = "", *, locked: bool = False
) -> None:
    with database.write() as transaction:
        transaction.run(
            insert(tables.user).values(
                id=name, password_hash=password_hash, locked=locked, create_time=START
            )
        )


def add_project(database: Database, name: str) -> None:
    with database.write() as transaction:
        transaction.run(insert(tables.project).values(id=name, description="", create_time=START))


def add_application(database: Database, name: str, project: str) -> None:
    with database.write() as transaction:
        transaction.run(
            insert(tables.service_account).values(id=name, project=project, create_time=START)
        )


def add_binding(database: Database, subject: str, role: str, domain: str) -> None:
    with database.write() as transaction:
        transaction.run(
            insert(tables.binding).values(
                id=f"{subject}-{role}-{domain}",
                subject=subject,
                role=role,
                domain=domain,
                creator="user:root",
                create_time=START,
            )
        )
        transaction.change_policy()


@contextmanager
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No transaction can be committed."""
    write = Database.write

    @contextmanager
    def fails(database: Database) -> Iterator[Transaction]:
        with write(database) as transaction:
            yield transaction
            raise Exhausted("the disk of the control plane is full")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", fails)
        yield
