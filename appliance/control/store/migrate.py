"""Bring the schema of the state database to what this version of the product expects.

Rules kept here: migrations are Alembic revisions in `migrations/versions`, each runs in one
transaction, and a database that is newer than the program is refused. `create` fills the one row of
`meta`.

Called by `init` (`create`) and by the composition root at every start (`check`).
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, inspect, select
from sqlalchemy.exc import DatabaseError

from appliance.control.store import tables
from appliance.control.store.database import Database, clear_errors
from appliance.core.errors import AlreadyExists, FailedPrecondition

MIGRATIONS = Path(__file__).parent / "migrations"
_PUT_BACK = "put back `state.db` and `audit` of your newest backup, both of the same one"


def create(database: Database, cluster_id: str, now: datetime) -> None:
    """Make every table in an empty database and note the cluster's id.

    Raises AlreadyExists when the database has tables.
    """
    with clear_errors():
        found = inspect(database.migrator()).get_table_names()
    if found:
        raise AlreadyExists(f"{database.path} already holds the state of an appliance")
    upgrade(database)
    with database.write() as transaction:
        transaction.run(
            insert(tables.meta).values(
                id=1, cluster_id=cluster_id, generation=0, policy_version=1, create_time=now
            )
        )


def upgrade(database: Database) -> None:
    """Run the migrations that are missing, each in one transaction."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with clear_errors(), database.migrator().begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check(database: Database) -> str:
    """Bring the database to this version when it is whole; the cluster's id.

    Raises:
        FailedPrecondition: it is damaged, empty, or of a newer version; the sentence says what to
        do.
    """
    if is_older(database):
        upgrade(database)
    return cluster_of(database)


def is_older(database: Database) -> bool:
    """Whether migrations are missing in a database that is whole. Raises as `check` does."""
    try:
        with database.migrator().begin() as connection:
            damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
            found = MigrationContext.configure(connection).get_current_revision()
    except DatabaseError as error:
        damage, found = error.orig, None
    if damage != "ok":
        raise FailedPrecondition(f"{database.path} is damaged ({damage}); {_PUT_BACK}")
    scripts = ScriptDirectory(str(MIGRATIONS))
    if found is None:
        raise FailedPrecondition(f"{database.path} is empty; {_PUT_BACK}")
    if found not in {script.revision for script in scripts.walk_revisions()}:
        raise FailedPrecondition(
            f"{database.path} was written by a newer version ({found}); install that version"
        )
    return found != scripts.get_current_head()


def cluster_of(database: Database) -> str:
    """The cluster's id. Raises FailedPrecondition when the database was not initialised."""
    with database.read() as state:
        cluster = state.value(select(tables.meta.c.cluster_id))
    if cluster is None:
        raise FailedPrecondition(f"{database.path} was not initialised; {_PUT_BACK}")
    return str(cluster)
