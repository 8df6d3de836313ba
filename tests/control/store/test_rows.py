"""Who can write every row of `state.db` gets nothing believed by it, while it is down or up."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from appliance.control.store import migrate, tables
from appliance.control.store.database import Database
from appliance.control.store.row_macs import SIGNED, table_of
from appliance.control.store.rows import (
    ADDED,
    CHANGED,
    OTHER_GENERATION,
    REMOVED,
    ROLLED_BACK,
    SCHEMA,
    Finding,
    RowMacs,
)
from appliance.core.errors import Exhausted, FailedPrecondition, Tampered
from tests.fakes import rows as attacker
from tests.fakes.state import CLUSTER, ROW_KEY, START, make_state

EVERY = pytest.mark.parametrize("table", sorted(SIGNED))


@pytest.fixture
def state(tmp_path: Path) -> Any:
    database = make_state(tmp_path)
    attacker.fill(database)
    yield database
    database.close()


def seen(state: Database, table: str) -> int:
    """How many rows a service sees."""
    with state.read() as reading:
        return int(reading.value(select(func.count()).select_from(tables.metadata.tables[table])))


def loaded(state: Database) -> list[Finding]:
    """What the next start would find."""
    return load(state.path, RowMacs(ROW_KEY))


def load(path: Path, rows: RowMacs) -> list[Finding]:
    with attacker.somebody(path) as raw:
        raw.execute("BEGIN")
        return rows.load(raw)


def touched(state: Database, table: str) -> Callable[[], None]:
    """The control plane itself changes the row."""

    def work() -> None:
        column = {"recovery_code": "digest", "node": "certificate_serial"}.get(
            table, attacker.CHANGES[table][0]
        )
        value: Any = {
            "failures": 100,
            "allow_downloads": True,
            "expire_time": START,
            "user": "alice",
            "project": "demo",
            "model_version": attacker.UID,
        }.get(column, b"new" if isinstance(attacker.ROWS[table].get(column), bytes) else "new")
        with state.write() as transaction:
            changed = tables.metadata.tables[table].update()
            if column in {"user", "project", "model_version"}:
                column, value = "create_time", attacker.LATER
            transaction.run(changed.values({column: value}))

    return work


def test_every_covered_table_has_an_example() -> None:
    assert set(attacker.CHANGES) == set(SIGNED)
    assert set(SIGNED) <= set(attacker.ROWS)


def test_what_the_control_plane_wrote_is_seen_and_found_in_order(state: Database) -> None:
    assert {table: seen(state, table) for table in SIGNED} == dict.fromkeys(SIGNED, 1)
    assert loaded(state) == []
    assert state.found == {}


@pytest.mark.attack
@EVERY
def test_a_changed_row_is_seen_no_more_and_named(state: Database, table: str) -> None:
    attacker.change(state.path, table)
    assert seen(state, table) == 0
    (found,) = {table_of(row): finding.change for row, finding in state.found.items()}.items()
    # A changed key is another row.
    assert found == (table, ADDED if table == "recovery_code" else CHANGED)
    assert {table_of(finding.row) for finding in loaded(state)} == {table}


@pytest.mark.attack
@EVERY
def test_a_row_that_was_added_is_never_seen_and_named(state: Database, table: str) -> None:
    attacker.copy(state.path, table)
    assert seen(state, table) == 1
    assert [finding.change for finding in state.found.values()] == [ADDED]
    (finding,) = loaded(state)
    assert (table_of(finding.row), finding.change) == (table, ADDED)


@pytest.mark.attack
@EVERY
def test_a_row_that_was_taken_away_is_missed(state: Database, table: str) -> None:
    attacker.take_away(state.path, table)
    (finding,) = loaded(state)
    assert (table_of(finding.row), finding.change) == (table, REMOVED)
    assert state.found == {}
    state.check_rows(lambda: None)
    assert list(state.found.values()) == [finding]


@pytest.mark.attack
@EVERY
def test_an_older_row_with_its_older_tag_is_seen_no_more(state: Database, table: str) -> None:
    attacker.rolled_back(state.path, table, touched(state, table))
    assert seen(state, table) == 0
    assert loaded(state) == [Finding(table, ROLLED_BACK)]


@pytest.mark.attack
@pytest.mark.parametrize("beside", [ADDED, CHANGED, REMOVED])
def test_older_rows_are_said_of_a_table_of_which_another_row_is_named(
    state: Database, beside: str
) -> None:
    """Whoever accepts the state would sign them, and be told of the other row alone."""
    other = {**attacker.ROWS["user"], "id": "carol"}
    with state.write() as transaction:
        transaction.run(tables.user.insert().values(**other))
    attacker.rolled_back(state.path, "user", touched(state, "user"))
    with attacker.somebody(state.path) as raw:
        raw.execute(
            {
                ADDED: "INSERT INTO user SELECT 'mallory', * FROM (SELECT {} FROM user LIMIT 1)",
                CHANGED: "UPDATE user SET password_hash = 'mine' WHERE id = 'carol'",
                REMOVED: "DELETE FROM user WHERE id = 'carol'",
            }[beside].format(", ".join(_others(raw)))
        )
    name = "user/mallory" if beside == ADDED else "user/carol"
    assert loaded(state) == [Finding(name, beside), Finding("user", ROLLED_BACK)]


def _others(raw: Any) -> list[str]:
    """The columns of a user, but for the id, which is the first."""
    first, *others = [row[1] for row in raw.execute("PRAGMA table_info(user)")]
    assert first == "id"
    return others


@pytest.mark.attack
@EVERY
def test_a_tag_that_was_changed_is_said_too(state: Database, table: str) -> None:
    """Then nobody can say whether the row or the tag is older."""
    with attacker.somebody(state.path) as raw:
        raw.execute("UPDATE row_mac SET mac = zeroblob(16) WHERE row LIKE ?", (f"{table}/%",))
    named, whole = loaded(state)
    assert (table_of(named.row), named.change) == (table, CHANGED)
    assert whole == Finding(table, ROLLED_BACK)


@pytest.mark.attack
@EVERY
def test_a_row_that_was_deleted_and_put_back_is_not_seen(state: Database, table: str) -> None:
    def delete() -> None:
        with state.write() as transaction:
            for name in reversed(attacker.ROWS):
                transaction.run(tables.metadata.tables[name].delete())

    attacker.rolled_back(state.path, table, delete)
    assert seen(state, table) == 0
    assert [finding.change for finding in state.found.values()] == [ADDED]
    assert loaded(state) == [Finding(table, ROLLED_BACK)]


@pytest.mark.attack
@EVERY
def test_what_is_forged_is_never_signed(state: Database, table: str) -> None:
    attacker.change(state.path, table)
    changed = tables.metadata.tables[table]
    column = next(name for name in SIGNED[table] if name != attacker.CHANGES[table][0])
    with state.write() as transaction:
        assert transaction.run(changed.update().values({column: changed.c[column]})) == 0
        assert transaction.run(changed.delete()) == 0
    assert seen(state, table) == 0
    assert table in {table_of(finding.row) for finding in loaded(state)}


@pytest.mark.attack
def test_a_used_code_that_was_put_back_is_used(state: Database) -> None:
    def use() -> int:
        with state.write() as transaction:
            return transaction.run(tables.recovery_code.delete())

    uses = []
    attacker.rolled_back(state.path, "recovery_code", lambda: uses.append(use()))
    assert [*uses, use()] == [1, 0]


@pytest.mark.attack
def test_another_factor_takes_no_place(state: Database) -> None:
    """Taken away or hidden, the authenticator that was enrolled is not replaced."""
    attacker.take_away(state.path, "totp")
    other = attacker.ROWS["totp"] | {"id": "mine"}
    with pytest.raises(Tampered, match="totp/alice"), state.write() as transaction:
        transaction.run(tables.totp.insert().values(**other))


@pytest.mark.attack
def test_a_counter_that_was_taken_away_does_not_begin_anew(state: Database) -> None:
    attacker.take_away(state.path, "attempt")
    with pytest.raises(Tampered, match="taken away"), state.write() as transaction:
        transaction.run(tables.attempt.insert().values(**attacker.ROWS["attempt"]))


EVIL = {
    "trigger": "CREATE TRIGGER mine AFTER INSERT ON node BEGIN "
    "UPDATE binding SET role = 'administrator'; END",
    "view": "CREATE VIEW mine AS SELECT * FROM binding",
    "index": "CREATE INDEX mine ON session (user) WHERE id <> 's'",
    "column": "ALTER TABLE binding ADD COLUMN mine TEXT",
}


@pytest.mark.attack
@pytest.mark.parametrize("what", EVIL)
def test_under_another_schema_nothing_is_done(state: Database, what: str) -> None:
    with attacker.somebody(state.path) as raw:
        raw.execute(EVIL[what])
    with pytest.raises(Tampered, match=SCHEMA), state.write() as transaction:
        transaction.run(tables.node.insert().values(id="n2", state="READY", create_time=START))
    with pytest.raises(Tampered, match=SCHEMA), state.read() as reading:
        reading.all(tables.binding.select())
    assert Finding(SCHEMA, CHANGED) in loaded(state)


@pytest.mark.attack
@pytest.mark.parametrize("quietly", [False, True])
def test_nor_when_it_was_changed_and_changed_back(state: Database, *, quietly: bool) -> None:
    """A connection may still know it, so it is of no use until the next start."""
    with attacker.somebody(state.path) as raw:
        (version,) = raw.execute("PRAGMA schema_version").fetchone()
        raw.execute(EVIL["trigger"])
        raw.execute("DROP TRIGGER mine")
        if quietly:
            raw.execute(f"PRAGMA schema_version = {version}")
    if quietly:
        assert seen(state, "binding") == 1
    else:
        with pytest.raises(Tampered, match=SCHEMA), state.write():
            pass
    assert loaded(state) == []


@pytest.mark.attack
def test_nor_by_a_connection_that_was_made_later(state: Database) -> None:
    with attacker.somebody(state.path) as raw:
        (version,) = raw.execute("PRAGMA schema_version").fetchone()
        raw.execute(EVIL["trigger"])
        raw.execute(f"PRAGMA schema_version = {version}")
    state.close()
    with pytest.raises(Tampered, match=SCHEMA), state.write():
        pass


@pytest.mark.attack
def test_an_older_generation_brings_nothing_back(state: Database) -> None:
    with attacker.somebody(state.path) as raw:
        kept = raw.execute("SELECT * FROM session").fetchone()
    with state.write() as transaction:
        transaction.run(tables.session.delete())
    with attacker.somebody(state.path) as raw:
        marks = ", ".join("?" * len(kept))
        raw.execute(f"INSERT INTO session VALUES ({marks})", kept)
        raw.execute("UPDATE meta SET generation = 1")
    with (
        pytest.raises(Tampered, match="meta/generation: changed"),
        state.write() as transaction,
    ):
        transaction.run(tables.user.update().values(locked=True))
    assert seen(state, "session") == 0


@pytest.mark.attack
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE meta SET generation = 'x'",
        f"UPDATE meta SET generation = {2**63 - 1}",
        "UPDATE meta SET row_macs = 'text'",
        "UPDATE meta SET row_macs = substr(row_macs, 1, 48)",
        "UPDATE meta SET row_columns = substr(row_columns, 1, instr(row_columns, ']')) || '}'",
        "UPDATE meta SET row_columns = (SELECT replace(hex(zeroblob(30000)), '00', '['))",
        "UPDATE row_mac SET row = CAST(row AS BLOB)",
        "UPDATE row_mac SET mac = 'text'",
        "INSERT INTO row_mac VALUES (x'ff', x'ff')",
        "UPDATE user SET id = CAST(x'ff' AS TEXT)",
        "UPDATE user SET create_time = 'now'",
        "UPDATE user SET password_hash = NULL WHERE 0",
    ],
)
def test_what_no_program_of_ours_writes_is_found_too(state: Database, change: str) -> None:
    with attacker.somebody(state.path) as raw:
        raw.execute("PRAGMA foreign_keys=OFF")
        raw.execute(change)
    rows = RowMacs(ROW_KEY)
    found = load(state.path, rows)
    assert bool(found) is (rows.columns is not None and "WHERE 0" not in change)
    assert all(str(finding).isprintable() for finding in found)
    state.check_rows(lambda: None)


@pytest.mark.attack
def test_an_index_that_leaves_somebody_out_is_found(state: Database) -> None:
    state.close()
    with attacker.somebody(state.path) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = raw.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'ix_session_user'"
        ).fetchone()
        (size,) = raw.execute("PRAGMA page_size").fetchone()
    data = bytearray(state.path.read_bytes())
    index = slice((page - 1) * size, page * size)
    data[index] = data[index].replace(b"alice", b"alicf")
    state.path.write_bytes(data)
    with state.read() as reading:
        mine = tables.session.select().where(tables.session.c.user == "alice")
        assert reading.all(mine) == []
    state.check_rows(lambda: None)
    assert "session" in state.found
    with pytest.raises(FailedPrecondition, match="damaged"):
        migrate.check(Database(state.path), RowMacs(ROW_KEY), CLUSTER, signed=True)


@pytest.mark.attack
def test_names_are_shown_so_that_they_do_nothing(state: Database) -> None:
    with attacker.somebody(state.path) as raw:
        for number in range(300):
            name = f"{number}\n\x1b[2JCRITICAL all is well" + 10_000 * "x"
            raw.execute("INSERT INTO attempt VALUES (?, 1, 1)", (name,))
    attacker.change(state.path, "binding")
    state.check_rows(lambda: None)
    assert len(state.found) == 101
    assert all(str(each).isprintable() and len(str(each)) < 200 for each in state.found.values())
    assert "binding/b" in state.found


@pytest.mark.attack
def test_an_index_that_lies_leads_to_nobody_else(state: Database) -> None:
    """Looked up by key, the row of somebody else does not pass for the one that was asked for."""
    with state.write() as transaction:
        for name in ("carol", "david"):
            values = attacker.ROWS["user"] | {"id": name, "password_hash": f"of {name}"}
            transaction.run(tables.user.insert().values(**values))
    state.close()
    with attacker.somebody(state.path) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = raw.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_user_1'"
        ).fetchone()
        (size,) = raw.execute("PRAGMA page_size").fetchone()
    data = bytearray(state.path.read_bytes())
    index = slice((page - 1) * size, page * size)
    # An entry is a key and the number of its row.
    one, other = b"carol\x02", b"david\x03"
    assert data[index].count(one) == data[index].count(other) == 1
    data[index] = data[index].replace(one, b"carol\x03").replace(other, b"david\x02")
    state.path.write_bytes(data)
    password = select(tables.user.c.password_hash).where(tables.user.c.id == "carol")
    with attacker.somebody(state.path) as raw:
        found = raw.execute("SELECT password_hash FROM user WHERE id = 'carol'").fetchone()
    assert found == ("of david",)
    with state.read() as reading:
        assert reading.first(password) is None
    assert state.found == {"user/carol": Finding("user/carol", CHANGED)}


def test_a_search_for_a_value_asks_about_rows_as_they_are(state: Database) -> None:
    """SQLite may put what is searched for in the place of a column."""
    with state.read() as reading:
        for table, column, value in (
            (tables.artifact_version, "state", "pending"),
            (tables.node, "state", "READY"),
            (tables.user, "locked", True),
            (tables.totp, "confirmed", False),
            (tables.session, "step", "VERIFY_TOTP"),
        ):
            assert reading.all(table.select().where(table.c[column] == value)) == []
    assert state.found == {}


@pytest.mark.attack
def test_older_rows_do_not_fit_with_an_older_total_either(state: Database) -> None:
    with attacker.somebody(state.path) as raw:
        macs = raw.execute("SELECT row_macs FROM meta").fetchone()
    attacker.rolled_back(state.path, "binding", touched(state, "binding"))
    with attacker.somebody(state.path) as raw:
        raw.execute("UPDATE meta SET row_macs = ?", macs)
    assert loaded(state) == [Finding("", OTHER_GENERATION)]


@pytest.mark.attack
def test_macs_of_another_generation_are_none(state: Database) -> None:
    with attacker.somebody(state.path) as raw:
        raw.execute("UPDATE meta SET generation = generation + 1")
    assert loaded(state) == [Finding("", OTHER_GENERATION)]


@pytest.mark.attack
@pytest.mark.parametrize("columns", ['{"user": ["id"]}', '{"x\\" y": ["z"]}', "[]", "{}"])
def test_what_says_which_columns_are_covered_is_covered(state: Database, columns: str) -> None:
    with attacker.somebody(state.path) as raw:
        raw.execute("UPDATE meta SET row_columns = ?", (columns,))
    rows = RowMacs(ROW_KEY)
    assert load(state.path, rows) != [] or rows.columns is None


def test_another_key_believes_nothing(state: Database) -> None:
    assert len(load(state.path, RowMacs(b"x" * 32))) == 2 * len(SIGNED) + 2


# --- what is not an attack ------------------------------------------------------------------------


def test_a_reader_believes_what_was_true_when_it_began(state: Database) -> None:
    with state.read() as reading:
        assert reading.value(select(tables.user.c.password_hash)) == "hers"
        for number in range(3):
            with state.write() as transaction:
                transaction.run(tables.user.update().values(password_hash=f"new {number}"))
        with state.write() as transaction:
            transaction.run(tables.binding.delete())
        assert reading.value(select(tables.user.c.password_hash)) == "hers"
        assert reading.value(select(tables.binding.c.id)) == "b"
    with state.read() as reading:
        assert reading.value(select(tables.user.c.password_hash)) == "new 2"
    assert state.found == {}


def test_a_check_of_everything_does_not_mind_changes_meanwhile(state: Database) -> None:
    numbers = iter(range(10_000))

    def change() -> None:
        with state.write() as transaction:
            number = next(numbers)
            values = attacker.ROWS["session"] | {"id": f"s{number}"}
            transaction.run(tables.session.insert().values(**values))
            before = tables.session.c.id == f"s{number - 1}"
            transaction.run(tables.session.delete().where(before))

    state.check_rows(change)
    assert state.found == {}
    assert loaded(state) == []


def test_a_statement_that_fails_leaves_nothing(state: Database) -> None:
    with state.write() as transaction:
        with pytest.raises(IntegrityError):
            transaction.run(
                tables.totp.insert().values(**attacker.ROWS["totp"] | {"id": "t2", "user": "bob"})
            )
        transaction.run(tables.user.update().values(locked=True))
        assert transaction.value(select(func.count()).select_from(tables.totp)) == 1
    assert loaded(state) == []


def test_a_transaction_that_is_undone_leaves_nothing(state: Database) -> None:
    def fail() -> None:
        with state.write() as transaction:
            transaction.run(tables.user.update().values(password_hash="new"))
            assert transaction.value(select(tables.user.c.password_hash)) == "new"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with state.read() as reading:
        assert reading.value(select(tables.user.c.password_hash)) == "hers"
    with state.write() as transaction:
        transaction.run(tables.user.update().values(password_hash="newer"))
    assert (loaded(state), state.found) == ([], {})


def test_a_cascade_is_signed(state: Database) -> None:
    with state.write() as transaction:
        transaction.run(tables.user.delete())
    assert [seen(state, table) for table in ("totp", "session", "device", "recovery_code")] == [
        0,
        0,
        0,
        0,
    ]
    assert loaded(state) == []


def test_a_search_by_key_looks_at_one_row(state: Database) -> None:
    with state.read() as reading:
        steps = reading.all(text("EXPLAIN QUERY PLAN SELECT * FROM session WHERE id = 's'"))
    assert "SEARCH main.session USING INDEX" in steps[0].detail


def test_a_full_disk_at_the_last_moment_leaves_everything_as_it_was(state: Database) -> None:
    for number in range(3):
        changed = tables.user.update().values(password_hash=f"new {number}", locked=True)
        with pytest.raises(Exhausted), full(state), state.write() as transaction:
            transaction.run(changed)
    assert (seen(state, "user"), seen(state, "binding"), state.found) == (1, 1, {})
    with state.write() as transaction:
        transaction.run(tables.user.update().values(locked=True))
    assert (loaded(state), state.found) == ([], {})


@pytest.mark.attack
def test_what_was_never_committed_is_not_believed(state: Database) -> None:
    with pytest.raises(Exhausted), full(state), state.write() as transaction:
        transaction.run(tables.user.update().values(password_hash="mine"))
    attacker.change(state.path, "user")
    assert seen(state, "user") == 0


@contextmanager
def full(state: Database) -> Iterator[None]:
    """The last statement before a commit meets a full disk, after the tags were written."""

    def fail(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE main.meta"):
            raise OperationalError(statement, {}, Exception("database or disk is full"))

    event.listen(state.migrator(), "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(state.migrator(), "before_cursor_execute", fail)


def test_a_copy_of_the_whole_folder_is_in_order(state: Database, tmp_path: Path) -> None:
    state.close()
    shutil.copy(state.path, tmp_path / "copy.db")
    assert load(tmp_path / "copy.db", RowMacs(ROW_KEY)) == []
