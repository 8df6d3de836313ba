"""Migration 0014: outputs of jobs, also of those that run during the upgrade, get their slots."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, create_engine, text

MIGRATION = "appliance.control.store.migrations.versions.0014_slots"


@pytest.fixture
def connection() -> Iterator[Connection]:
    """The columns of the table that the migration looks at, as 0013 has them."""
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        columns = "uid TEXT PRIMARY KEY, kind TEXT, state TEXT, job TEXT"
        connection.execute(text(f"CREATE TABLE artifact_version ({columns})"))
        yield connection
    engine.dispose()


def test_each_output_gets_the_slot_it_had_by_its_kind(connection: Connection) -> None:
    rows = [
        ("uploaded", "dataset", "complete", None),
        ("made", "model", "complete", "job-1"),
        ("is made", "tokenizer", "pending", "job-2"),
        ("saved", "checkpoints", "pending", "job-2"),
        ("on its way in", "model", "pending", None),
    ]
    connection.exec_driver_sql("INSERT INTO artifact_version VALUES (?, ?, ?, ?)", rows)
    with Operations.context(MigrationContext.configure(connection)):
        importlib.import_module(MIGRATION).upgrade()
    found = connection.execute(text("SELECT uid, slot FROM artifact_version")).all()
    assert {row.uid: row.slot for row in found} == {
        "uploaded": "",
        "made": "model",
        "is made": "tokenizer",
        "saved": "checkpoints",
        "on its way in": "",
    }
