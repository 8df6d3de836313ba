"""Migration 0013: measurements of jobs as 0.1.0 kept them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, create_engine, text

from appliance.core.thinning import MAX_POINTS, thin

MIGRATION = "appliance.control.store.migrations.versions.0013_thin_measurements"


@pytest.fixture
def connection() -> Iterator[Connection]:
    """A table as 0012 has it, of which nothing refers to jobs."""
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        columns = "job TEXT, epoch BIGINT, step BIGINT, 'values' JSON"
        connection.execute(
            text(f"CREATE TABLE job_metric ({columns}, PRIMARY KEY (job, epoch, step))")
        )
        yield connection
    engine.dispose()


def put(connection: Connection, job: str, epoch: int, steps: Iterable[int]) -> None:
    connection.exec_driver_sql(
        "INSERT INTO job_metric VALUES (?, ?, ?, '{\"loss\": 1.0}')",
        [(job, epoch, step) for step in steps],
    )


def thinned(connection: Connection) -> dict[str, list[tuple[int, int]]]:
    """What is left after the migration: job -> its steps and their starts."""
    with Operations.context(MigrationContext.configure(connection)):
        importlib.import_module(MIGRATION).upgrade()
    found: dict[str, list[tuple[int, int]]] = {}
    rows = "SELECT job, step, epoch FROM job_metric ORDER BY job, step, epoch"
    for job, step, epoch in connection.execute(text(rows)):
        found.setdefault(job, []).append((step, epoch))
    return found


def test_a_long_job_is_thinned_as_a_new_one_is(connection: Connection) -> None:
    put(connection, "dense", 1, range(1, 60_001))
    put(connection, "dense", 2, range(30_001, 90_001))
    put(connection, "each 333rd", 1, range(333, 1_000_000, 333))
    put(connection, "far", 1, [1, 2, 3, *range(1_000_001, 1_010_001)])
    left = thinned(connection)
    assert [step for step, _ in left["dense"]] == thin(range(1, 90_001))
    assert {epoch for step, epoch in left["dense"] if step > 30_000} == {2}
    assert [step for step, _ in left["each 333rd"]] == thin(range(333, 1_000_000, 333))
    for steps in left.values():
        assert MAX_POINTS // 2 <= len(steps) <= MAX_POINTS


def test_what_is_no_more_than_is_kept_is_kept(connection: Connection) -> None:
    put(connection, "each 1000th", 1, range(1000, 1_000_001, 1000))
    assert [step for step, _ in thinned(connection)["each 1000th"]] == list(
        range(1000, 1_000_001, 1000)
    )


def test_steps_done_twice_are_kept_once_of_short_jobs_too(connection: Connection) -> None:
    for epoch in range(1, 41):
        put(connection, "restarted", epoch, range(1, 101))
    for epoch in range(1, 3):
        put(connection, "short", epoch, range(1, 11))
    left = thinned(connection)
    assert left["restarted"] == [(step, 40) for step in range(1, 101)]
    assert left["short"] == [(step, 2) for step in range(1, 11)]
