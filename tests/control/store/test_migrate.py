"""The schema: migrations make exactly the tables the code uses, and a strange file is refused."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import select, text

from appliance.control.services.common.keys import PAD
from appliance.control.store import migrate, rows, tables
from appliance.control.store.database import Database, raw_of
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


NEWER = {
    "artifact_version": {"slot", "input_uids"},
    "job": {"inputs"},
    "node": {"cordoned", "draining"},
    "project": {"allow_downloads"},
    "service_account": {"description"},
    "token": {"use_time", "replaces"},
    "user": {"description"},
    "endpoint": {"goal", "next_replica"},
    "replica": {
        "state_time",
        "generation",
        "model_version",
        "tensor_parallel",
        "max_sequence_length",
        "cache_bytes",
    },
}
"""Columns that are newer than the MACs, by table."""
NEW_TABLES = {"tombstone", "version_key"}


def made_before(path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Path:
    """A signed state of revision 0013, with a project and a version that a job makes."""
    before = {
        table: tuple(column for column in columns if column not in NEWER.get(table, ()))
        for table, columns in rows.SIGNED.items()
        if table not in NEW_TABLES
    }
    upgrade = command.upgrade
    with monkeypatch.context() as patch:
        patch.setattr(rows, "SIGNED", before)
        patch.setattr(command, "upgrade", lambda config, _: upgrade(config, "0013"))
        database = Database(path)
        migrate.create(database, RowMacs(ROW_KEY), CLUSTER, START)
        database.close()
        names = [
            c.name for c in tables.artifact_version.c if c.name not in NEWER["artifact_version"]
        ]
        names.append("wrapped_key")
        values = dict.fromkeys(names, 0) | {
            "uid": "u",
            "project": "p",
            "kind": "model",
            "state": "pending",
            "job": "j",
            "inputs": "[]",
            "facts": "{}",
            "wrapped_key": b"wrapped",
        }
        marks = ", ".join(f":{name}" for name in names)
        with closing(sqlite3.connect(path)) as raw, raw:
            raw.execute("PRAGMA user_version=0")
            raw.execute("INSERT INTO project VALUES ('p', '', 0)")
            raw.execute("INSERT INTO project_key VALUES ('p', 1, x'aa', 0)")
            raw.execute(
                "INSERT INTO endpoint VALUES"
                " ('e', 'p', 'chat', 'u', 2, 4, 512, 99, 'STOPPING', '', 'users/alice', 0, 1)"
            )
            for replica in ("r0", "r1"):
                raw.execute(
                    "INSERT INTO replica VALUES"
                    " ('e', ?, NULL, 'PENDING', '', 3, '{}', '', 0, NULL, NULL)",
                    (replica,),
                )
            raw.execute(
                f"INSERT INTO artifact_version ({', '.join(names)}) VALUES ({marks})", values
            )
            for statement in more:
                raw.execute(statement)
        database = Database(path)
        with database.migrator().begin() as connection:
            RowMacs(ROW_KEY).sign_all(raw_of(connection))
        database.close()
    return path


def test_a_signed_state_of_before_is_verified_migrated_and_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(made_before(tmp_path / "state.db", monkeypatch))
    assert migrate.check(database, RowMacs(ROW_KEY), CLUSTER, signed=True) == []
    with database.read() as state:
        assert state.value(select(tables.artifact_version.c.slot)) == "model"
        assert state.value(select(tables.project.c.allow_downloads)) is False
        endpoint = state.first(select(tables.endpoint))
        assert endpoint is not None
        assert (endpoint.goal, endpoint.generation, endpoint.next_replica) == ("DELETED", 1, 2)
        for row in state.all(select(tables.replica)):
            found = (row.model_version, row.tensor_parallel, row.max_sequence_length)
            assert (*found, row.cache_bytes, row.generation) == ("u", 4, 512, 99, 1)
        assert state.value(select(tables.version_key.c.wrapped_key)) == PAD + b"wrapped"
        assert state.value(select(tables.project_key.c.wrapped_key)) == PAD + b"\xaa"
    assert migrate.check(*checked(database), signed=True) == []
    database.close()


def test_what_jobs_and_versions_read_is_bound_by_an_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"projects/p/{each}" for each in ("models/0/versions/0", "models/gone/versions/1")]
    point = "projects/p/jobs/one/checkpoints/e2-step-30"
    path = made_before(
        tmp_path / "state.db",
        monkeypatch,
        "INSERT INTO job (uid, project, id, kind, spec, state, reason, message, epoch, placement, "
        "progress, restarts, outputs, result, failures, creator, create_time, revision) VALUES ("
        f"""'j', 'p', 'one', 'train', '{{"a": ["{names[0]}"], "b": {{"c": "{point}"}}}}', """
        "'QUEUED', '', '', 0, '[]', '{}', 0, '{}', '{}', 0, 'users/a', 0, 1)",
        "INSERT INTO checkpoint VALUES ('j', 2, 30, 'd', 1, 'COMPLETE', 0)",
        f"UPDATE artifact_version SET inputs = '{json.dumps(names)}'",
    )
    database = Database(path)
    assert migrate.check(database, RowMacs(ROW_KEY), CLUSTER, signed=True) == []
    with database.read() as state:
        assert state.value(select(tables.job.c.inputs)) == {
            names[0]: "u",
            point: "j/e2-step-30",
        }
        assert state.value(select(tables.artifact_version.c.input_uids)) == ["u", ""]
    database.close()


@pytest.mark.attack
def test_what_was_changed_before_an_upgrade_is_not_signed_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made_before(tmp_path / "state.db", monkeypatch)
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE artifact_version SET manifest_digest = 'other'")
    database = Database(path)
    found = migrate.check(database, RowMacs(ROW_KEY), CLUSTER, signed=True)
    assert [finding.row for finding in found] == ["artifact_version/u"]
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == ("0013",)
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
