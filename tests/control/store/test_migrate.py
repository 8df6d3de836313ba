"""The schema: migrations make exactly the tables the code uses, and a strange file is refused."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from appliance.control.store import migrate, tables
from appliance.control.store.database import Database
from appliance.control.store.rows import RowMacs
from appliance.core.errors import AlreadyExists, FailedPrecondition
from tests.fakes.state import CLUSTER, ROW_KEY, START, add_project, make_state


def checked(database: Database) -> tuple[Database, RowMacs, str]:
    """The same file, opened anew."""
    database.close()
    return Database(database.path), RowMacs(ROW_KEY), CLUSTER


def test_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    database = make_state(tmp_path)
    with database.migrator().begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    assert migrate.check(*checked(database), signed=True) == []
    database.close()


def test_a_second_init_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    database = make_state(tmp_path)
    with pytest.raises(AlreadyExists, match="already holds the state"):
        migrate.create(database, RowMacs(ROW_KEY), "other", START)
    assert migrate.check(*checked(database), signed=True) == []
    database.close()


def test_an_empty_file_asks_for_the_backup(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.db")
    with pytest.raises(FailedPrecondition, match="is empty; put back"):
        migrate.check(*checked(database), signed=True)
    database.close()


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    database = make_state(tmp_path)
    with database.migrator().begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(FailedPrecondition, match="newer version"):
        migrate.check(*checked(database), signed=True)
    database.close()


@pytest.mark.attack
def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    database = make_state(tmp_path)
    for number in range(300):
        add_project(database, f"project-{number}")
    database.close()
    path = tmp_path / "state.db"
    data = bytearray(path.read_bytes())
    # The project table lies in the second half; its pages are overwritten, the header is not.
    data[len(data) // 2 :] = b"\x5a" * (len(data) - len(data) // 2)
    path.write_bytes(data)
    database = Database(path)
    with pytest.raises(FailedPrecondition, match=r"damaged .* backup"):
        migrate.check(*checked(database), signed=True)
    database.close()
