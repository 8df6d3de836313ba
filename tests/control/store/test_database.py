"""The state database: durable, private, one writer, and refused when it cannot be trusted."""

import contextlib
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from appliance.control.store import database as module
from appliance.control.store.database import Database
from appliance.control.store.tables import artifact, meta, project, token
from appliance.core.errors import Exhausted, FailedPrecondition, Unavailable
from tests.fakes.disk import filled, small_disk
from tests.fakes.state import START, add_project, make_state


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Database]:
    database = make_state(tmp_path)
    yield database
    database.close()


def _projects(database: Database) -> list[str]:
    with database.read() as reading:
        return [row.id for row in reading.all(select(project.c.id).order_by(project.c.id))]


def test_settings_that_durability_rests_on(state: Database) -> None:
    with state.write() as transaction:
        found = {
            name: transaction.value(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "trusted_schema")
        }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "trusted_schema": 0,
    }


def test_files_are_private(state: Database) -> None:
    add_project(state, "demo")
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in state.path.parent.glob("state.db*")
    }
    assert modes == dict.fromkeys(modes, 0o600)
    assert "state.db-wal" in modes


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "state.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        Database(tmp_path / "state.db")


@pytest.mark.attack
@pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 2)])
def test_a_sqlite_that_can_corrupt_the_file_is_refused(
    version: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.sqlite, "sqlite_version_info", version)
    with pytest.raises(FailedPrecondition, match=r"can corrupt .* 3\.51\.3"):
        Database(tmp_path / "state.db")


def test_an_exception_undoes_everything(state: Database) -> None:
    called: list[str] = []

    def fail() -> None:
        with state.write() as transaction:
            transaction.run(insert(project).values(id="demo", description="", create_time=START))
            transaction.after_commit(lambda: called.append("x"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (_projects(state), called) == ([], [])


def test_callbacks_come_after_the_commit_and_cannot_undo_it(
    state: Database, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[list[str]] = []
    with state.write() as transaction:
        transaction.run(insert(project).values(id="demo", description="", create_time=START))
        transaction.after_commit(lambda: 1 / 0)
        transaction.after_commit(lambda: seen.append(_projects(state)))
        assert _projects(state) == []
    assert seen == [["demo"]]
    assert "a callback after a commit failed" in caplog.text


def test_every_commit_raises_the_generation_and_notes_the_log(state: Database) -> None:
    state.watch_log(lambda: (7, b"root"))
    add_project(state, "demo")
    with state.read() as reading:
        row = reading.first(select(meta.c.generation, meta.c.audit_size, meta.c.audit_root))
    assert row == (2, 7, b"root")


def test_many_writers_take_turns(state: Database) -> None:
    def count_up() -> None:
        for _ in range(20):
            with state.write() as transaction:
                transaction.change_policy()

    threads = [threading.Thread(target=count_up) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with state.read() as reading:
        assert reading.value(select(meta.c.policy_version)) == 101


def test_a_view_does_not_change_while_it_is_read(state: Database) -> None:
    with state.read() as reading:
        assert reading.all(select(project.c.id)) == []
        add_project(state, "demo")
        assert reading.all(select(project.c.id)) == []
    assert _projects(state) == ["demo"]


def test_a_reader_cannot_write(state: Database) -> None:
    # A table whose rows have no MAC: the others are views to a reader.
    values = {"project": "demo", "kind": "model", "id": "m", "creator": "a", "create_time": START}
    with pytest.raises(Unavailable, match="readonly"), state.read() as reading:
        reading.first(insert(artifact).values(values))


def test_foreign_keys_hold(state: Database) -> None:
    with pytest.raises(IntegrityError), state.write() as transaction:
        transaction.run(
            insert(token).values(
                id="t", service_account="nobody", digest=b"", create_time=START, expire_time=START
            )
        )


def test_a_full_disk_is_one_clear_sentence_and_nothing_is_lost(state: Database) -> None:
    add_project(state, "demo")
    with state.write() as transaction:
        pages = transaction.value(text("PRAGMA page_count"))
        transaction.value(text(f"PRAGMA max_page_count={pages}"))
    with pytest.raises(Exhausted, match="free some space"), state.write() as transaction:
        transaction.run(
            insert(project).values(id="big", description="x" * 100_000, create_time=START)
        )
    assert _projects(state) == ["demo"]


def _add_many(state: Database) -> None:
    for number in range(1000):
        add_project(state, f"late-{number}")


@pytest.mark.attack
def test_a_disk_that_was_full_takes_changes_again(tmp_path: Path) -> None:
    """A real one; what is said is for callers far away, so it names no path of the server."""
    with small_disk(tmp_path / "disk", 8) as disk:
        state = make_state(disk)
        add_project(state, "before")
        with filled(disk):
            with pytest.raises(Exhausted, match="free some space there") as refused:
                _add_many(state)
            assert str(tmp_path) not in f"{refused.value.message}{refused.value.metadata}"
            kept = _projects(state)
        add_project(state, "zz-after")
        assert _projects(state) == [*kept, "zz-after"]
        state.close()


def test_readers_that_wait_too_long_are_told_to_repeat(
    state: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state._reader.pool, "_timeout", 0.0)
    with contextlib.ExitStack() as held:
        for _ in range(module.READERS):
            held.enter_context(state.read())
        with pytest.raises(Unavailable, match="busy: repeat") as refused, state.read():
            pass
    assert refused.value.retry_after == 1.0
    assert _projects(state) == []


def test_a_failing_disk_is_unavailable(state: Database) -> None:
    with pytest.raises(Unavailable, match="cannot be used") as refused, state.write():
        raise OperationalError("", None, Exception("disk I/O error"))
    assert str(state.path) not in f"{refused.value.message}{refused.value.metadata}"


def test_times_keep_their_microseconds_and_their_zone(state: Database) -> None:
    moment = datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)
    with state.write() as transaction:
        transaction.run(insert(project).values(id="demo", description="", create_time=moment))
    with state.read() as reading:
        assert reading.value(select(project.c.create_time)) == moment
        assert reading.first(select(project.c.id).where(project.c.create_time <= moment))


def test_a_time_without_zone_is_refused(state: Database) -> None:
    with pytest.raises(Exception, match="offset-naive"), state.write() as transaction:
        transaction.run(
            insert(project).values(id="demo", description="", create_time=datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake
        )
