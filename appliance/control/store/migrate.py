"""Bring the state database to what this version of the product expects, and protect it.

Rules kept here:
* migrations are Alembic revisions in `migrations/versions`; a database that is newer than the
  program is refused;
* what is there is verified, migrated and signed anew in one transaction: nobody writes in between,
  and a start that is killed has done all of it or nothing.

Called by `init` (`create`) and by `opening` at every start (`check`).
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, insert, inspect, select
from sqlalchemy.exc import DatabaseError

from appliance.control.store import tables
from appliance.control.store.database import Database, clear_errors, raw_of
from appliance.control.store.row_macs import SIGNED
from appliance.control.store.rows import UNSIGNED, Finding, RowMacs
from appliance.core.errors import AlreadyExists, FailedPrecondition

MIGRATIONS = Path(__file__).parent / "migrations"
_PUT_BACK = "put back `state.db` and `audit` of your newest backup, both of the same one"


def create(database: Database, rows: RowMacs, cluster_id: str, now: datetime) -> None:
    """Make every table in an empty database, note the cluster's id, and protect it.

    Raises AlreadyExists when the database has tables.
    """
    with clear_errors(), database.migrator().begin() as connection:
        if inspect(connection).get_table_names():
            raise AlreadyExists(f"{database.path} already holds the state of an appliance")
        _upgrade(connection)
        connection.execute(
            insert(tables.meta).values(
                id=1, cluster_id=cluster_id, generation=0, policy_version=1, create_time=now
            )
        )
        rows.sign_all(raw_of(connection))
    database.rewrite()
    database.protect(rows)


def check(
    database: Database, rows: RowMacs, cluster_id: str, *, signed: bool, accept: bool = False
) -> list[Finding]:
    """Verify the state, bring it to this version, sign what is new, and protect it.

    Args:
        database: the state.
        rows: the MACs of its rows.
        cluster_id: of the appliance that it must belong to.
        signed: whether it had MACs before.
        accept: whether to protect it also when rows are not as the control plane wrote them.

    Returns what is not as the control plane wrote it. Then nothing was changed, and the database is
    protected only when it may be accepted and all of it is named.

    Raises:
        FailedPrecondition: it is damaged, empty, of a newer version or of another appliance; the
            sentence says what to do.
    """
    try:
        with clear_errors(), database.migrator().begin() as connection:
            older = _is_older(connection, database.path)
            _check_cluster(connection, database.path, cluster_id)
            found = rows.load(raw_of(connection))
            if rows.columns is None and signed:
                found = [Finding("", UNSIGNED)]
            if found and older and accept:
                raise FailedPrecondition(
                    f"{database.path} is of an older version: install that one, accept the state "
                    "there, then upgrade"
                )
            if not found:
                if older:
                    _upgrade(connection)
                if older or rows.columns != SIGNED:
                    rows.sign_all(raw_of(connection))
    except DatabaseError as error:
        raise FailedPrecondition(
            f"{database.path} is damaged ({error.orig}); {_PUT_BACK}"
        ) from error
    if not found:
        database.rewrite()
    if all(finding.is_named for finding in found) and (accept or not found):
        database.protect(rows)
    return found


def _upgrade(connection: Connection) -> None:
    """Run the migrations that are missing."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _is_older(connection: Connection, path: Path) -> bool:
    """Whether migrations are missing in a database that is whole, its indices too."""
    damage = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
    if damage != "ok":
        raise FailedPrecondition(f"{path} is damaged ({damage}); {_PUT_BACK}")
    found = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory(str(MIGRATIONS))
    if found is None:
        raise FailedPrecondition(f"{path} is empty; {_PUT_BACK}")
    if found not in {script.revision for script in scripts.walk_revisions()}:
        raise FailedPrecondition(
            f"{path} was written by a newer version ({found}); install that version"
        )
    return found != scripts.get_current_head()


def _check_cluster(connection: Connection, path: Path, cluster_id: str) -> None:
    cluster = connection.execute(select(tables.meta.c.cluster_id)).scalar()
    if cluster is None:
        raise FailedPrecondition(f"{path} was not initialised; {_PUT_BACK}")
    if cluster != cluster_id:
        raise FailedPrecondition(
            f"{path} belongs to appliance {cluster}, the keyring to {cluster_id}: restore both "
            "from the same backup"
        )
