"""What is over goes by itself, and no more is kept of one user than is good."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, insert, select

from appliance.control.auth.sessions import COMPLETE, MAX_SESSIONS, VERIFY_TOTP, Sessions
from appliance.control.services.system.sweeper import OVER, Sweeper
from appliance.control.store import tables
from tests.fakes.lab import Lab


def count(lab: Lab, table: object) -> int:
    return len(lab.rows(table))


def clear(lab: Lab) -> None:
    """Without what `init` has made."""
    with lab.database.write() as transaction:
        transaction.run(delete(tables.join_token))


def test_what_is_over_is_forgotten_once_a_minute(lab: Lab) -> None:
    now, seconds = lab.time.wall(), [0.0]
    soon, later = now + timedelta(minutes=10), now + timedelta(days=3)
    sweeper = Sweeper(lab.database, lambda: soon, lambda: seconds[0])
    clear(lab)
    with lab.database.write() as transaction:
        transaction.run(insert(tables.user).values(id="ada", password_hash="", create_time=now))
        for end in (soon, later):
            token = {"id": f"j{end}", "machine": "n1", "digest": b"", "creator": "x"}
            ends = end - timedelta(days=1)
            transaction.run(
                insert(tables.join_token).values(**token, create_time=now, expire_time=ends)
            )
            session = {"id": f"s{end}", "user": "ada", "digest": b"", "step": COMPLETE}
            transaction.run(
                insert(tables.session).values(
                    **session, create_time=now, expire_time=end, seen_time=now, source=""
                )
            )
    sweeper.sweep_when_due()
    for table in (tables.join_token, tables.session):
        assert count(lab, table) == 1, table.name
    before = lab.database.generation
    soon = later
    sweeper.sweep_when_due()
    assert lab.database.generation == before
    seconds[0] += 60
    sweeper.sweep_when_due()
    assert [count(lab, table) for table, _ in OVER] == [0, 0, 0]


def test_a_user_has_so_many_sessions_and_a_password_alone_ends_no_complete_one(lab: Lab) -> None:
    sessions = Sessions(lab.database, b"k" * 32, lab.time.wall)
    with lab.database.write() as transaction:
        transaction.run(
            insert(tables.user).values(id="ada", password_hash="", create_time=lab.time.wall())
        )
    for step in (COMPLETE, VERIFY_TOTP):
        for number in range(MAX_SESSIONS + 5):
            lab.forward(1)
            with lab.database.write() as transaction:
                sessions.open(transaction, "ada", step, timedelta(hours=1), f"{step} {number}")
    with lab.database.read() as state:
        sources = {row.source for row in state.all(select(tables.session))}
    assert sources == {
        f"{step} {number}"
        for step in (COMPLETE, VERIFY_TOTP)
        for number in range(5, MAX_SESSIONS + 5)
    }
