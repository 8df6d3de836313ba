"""The state database: one writer, many readers, and no acknowledged change is lost.

Rules kept here:
* SQLite in WAL with `synchronous=FULL`, foreign keys on, schema not trusted, cell sizes checked,
  file mode 0600;
* SQLite below 3.51.3 is refused: in WAL mode it can corrupt the file (the WAL-reset bug);
* what is deleted is overwritten with zeros (`secure_delete`), nothing is put aside in files
  (`temp_store`), and what the log of writes still holds goes when it is emptied (`empty_log`);
* a write transaction begins with BEGIN IMMEDIATE under one lock, so it never fails half-way for
  want of the lock;
* every committed write raises `meta.generation` by one; with a witness it also stores the audit
  log's head, and the log stores the generation: each notices an older copy of the other;
* callbacks run after the commit, in the committing thread, and never inside a transaction; what
  must be true before the next transaction begins is assigned at the commit (`at_commit`);
* a reading connection cannot write (`query_only`);
* once it is protected, it shows only rows of which the control plane can tell that it wrote them.

Services are synchronous and run in threads; no network call belongs inside a transaction. Called by
`auth`, `audit`, `services`, `metrics`, `bootstrap` and the composition root.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pysqlite3 import dbapi2 as sqlite
from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    Row,
    Table,
    create_engine,
    event,
    select,
    update,
)
from sqlalchemy.engine import URL, CursorResult
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from appliance.control.store import tables
from appliance.control.store.row_macs import SIGNED
from appliance.control.store.rows import CHANGED, Finding, RowMacs, Signing
from appliance.core.errors import Exhausted, FailedPrecondition, Unavailable

OLDEST_SQLITE = (3, 51, 3)
BUSY_SECONDS = 30
READERS = 8
LOG_SECONDS = 0.2
"""For so long writers wait for readers when the log of writes is emptied."""
ROWS_AT_A_TIME = 200
REWRITTEN = 1
"""`user_version` of a file in which nothing is left of what was freed without `secure_delete`."""
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "secure_delete=ON",
    "temp_store=MEMORY",
)
_FULL_DISK = "database or disk is full"
_logger = logging.getLogger(__name__)

_PAST_VIEWS = {"schema_translate_map": {None: "main"}}
"""A change names the table itself; a SELECT finds the view before it."""

Witness = Callable[[], tuple[int, bytes]]


class Reading:
    """A consistent view of the state. Rows are SQLAlchemy rows: `row.id`, `row._mapping`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self, statement: Executable) -> list[Row[Any]]:
        """Every row of a SELECT."""
        return list(self._connection.execute(statement))

    def each(self, statement: Executable) -> Iterator[Row[Any]]:
        """The rows of a SELECT, read a few hundred at a time."""
        yield from self._connection.execute(statement).yield_per(ROWS_AT_A_TIME)

    def first(self, statement: Executable) -> Row[Any] | None:
        """The first row of a SELECT, or None."""
        return self._connection.execute(statement).first()

    def value(self, statement: Executable) -> Any:  # noqa: ANN401 - a column of any type
        """First column of the first row, or None."""
        return self._connection.execute(statement).scalar()


class Transaction(Reading):
    """A write transaction: all of it, or nothing."""

    def __init__(self, connection: Connection, rows: RowMacs | None = None) -> None:
        super().__init__(connection)
        self._rows = rows
        self.generation: int | None = None
        """What to go on from; None: from that of the last commit."""
        self._assignments: list[Callable[[], None]] = []
        self._callbacks: list[Callable[[], None]] = []

    def run(self, statement: Executable) -> int:
        """Execute an INSERT, UPDATE or DELETE; the number of rows it changed.

        A row that somebody else has written is not there: it is neither changed nor counted. Raises
        `sqlalchemy.exc.IntegrityError` when a constraint forbids it, and Tampered when it would
        take the place of a row that was taken away.
        """
        with self._changing():
            result: CursorResult[Any] = self._connection.execute(  # type: ignore[assignment]  # DML
                statement, execution_options=_PAST_VIEWS
            )
        return result.rowcount

    def _changing(self) -> contextlib.AbstractContextManager[None]:
        if self._rows is None:
            return contextlib.nullcontext()
        return self._rows.statement(self._connection.info)

    def accept(self, found: Sequence[Finding], generation: int) -> None:
        """Sign these rows as they were read at the start, and go on from this generation."""
        if self._rows is not None:
            self._rows.accept(self._connection.info, found)
        self.generation = generation

    def insert(self, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
        """Insert rows, none of which may be there. Raises as `run`."""
        if rows:
            with self._changing():
                self._connection.execute(table.insert(), list(rows), execution_options=_PAST_VIEWS)

    def at_commit(self, assignment: Callable[[], None]) -> None:
        """Call `assignment` with the commit, while the next transaction waits; not at a rollback.

        For the policy in force: it assigns, and does nothing else.
        """
        self._assignments.append(assignment)

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the transaction is durable; not at all when it is rolled back."""
        self._callbacks.append(callback)

    def change_policy(self) -> int:
        """Raise `meta.policy_version` because who may do what changes here; the new version."""
        version = tables.meta.c.policy_version
        self.run(update(tables.meta).values(policy_version=version + 1))
        return int(self.value(tables.meta.select().with_only_columns(version)))


class Database:
    """The open state database.

    Args:
        path: of the SQLite file; its folder exists and is private.
    """

    def __init__(self, path: Path) -> None:
        _check_version(sqlite.sqlite_version_info)
        _create_private(path)
        self.path = path
        self._witness: Witness | None = None
        self._generation = 0
        self._rows: RowMacs | None = None
        self._lock = threading.RLock()
        self._writer = _engine(path, self._attach, pool_size=1, read_only=False)
        self._reader = _engine(path, self._attach, pool_size=READERS, read_only=True)

    def protect(self, rows: RowMacs) -> None:
        """From now on show only rows that `rows` believes, and sign what changes.

        Every connection is made anew, with its views; so the schema must be of this version.
        """
        self._rows, self._generation = rows, rows.generation
        self._reader.dispose()
        self._writer.dispose()

    def _attach(self, raw: Any, info: dict[Any, Any], *, writes: bool) -> None:  # noqa: ANN401 - a DBAPI connection
        if self._rows is not None:
            self._rows.attach(raw, info, writes=writes)

    @contextlib.contextmanager
    def read(self) -> Iterator[Reading]:
        """A consistent view that no later write changes."""
        with (
            clear_errors(),
            self._reader.connect() as connection,
            self._view(connection),
            connection.begin(),
        ):
            self._check_schema(connection)
            yield Reading(connection)

    def _view(self, connection: Connection) -> contextlib.AbstractContextManager[None]:
        if self._rows is None:
            return contextlib.nullcontext()
        return self._rows.view(connection.info, self._generation)

    def _check_schema(self, connection: Connection) -> None:
        if self._rows is not None:
            self._rows.begin(raw_of(connection), connection.info)

    def check_rows(self, pause: Callable[[], None]) -> None:
        """Look at every row that is believed only with a MAC; what is wrong is in `found`.

        Args:
            pause: called between a few hundred of them.
        """
        if self._rows is None:
            return
        for table in SIGNED:
            with self.read() as state:
                connection = state._connection  # noqa: SLF001 - the two classes are one unit
                self._rows.check(raw_of(connection), connection.info, table, pause)

    @property
    def found(self) -> dict[str, Finding]:
        """What was seen of rows that somebody else has written or taken away."""
        return {} if self._rows is None else self._rows.found

    @contextlib.contextmanager
    def write(self) -> Iterator[Transaction]:
        """The one write transaction; others wait. Leaving it commits, an exception rolls back.

        Raises:
            Exhausted: the disk is full; nothing changed.
            Unavailable: the file cannot be written; nothing changed.
            Tampered: somebody else has changed the state, and it cannot be passed by; nothing
                changed.
        """
        with clear_errors():
            with self._lock:
                with (
                    self._writer.connect() as connection,
                    self._signing(connection) as signing,
                    connection.begin(),
                ):
                    self._check_schema(connection)
                    transaction = Transaction(connection, self._rows)
                    yield transaction
                    generation = self._count(transaction, signing)
                self._generation = generation
                for assignment in transaction._assignments:  # noqa: SLF001 - one unit
                    assignment()
            for callback in transaction._callbacks:  # noqa: SLF001 - the two classes are one unit
                _call(callback)

    def wait_until_published(self) -> None:
        """Wait until what was assigned at the newest visible commit is in place."""
        with self._lock:
            pass

    @property
    def generation(self) -> int:
        """How many writes were committed: those of before from `load_generation` on."""
        return self._generation

    def load_generation(self) -> int:
        """Read how many writes were committed before; the number."""
        with self._lock, self.read() as state:
            self._generation = int(state.value(select(tables.meta.c.generation)))
        return self._generation

    def _signing(self, connection: Connection) -> contextlib.AbstractContextManager[Signing | None]:
        if self._rows is None:
            return contextlib.nullcontext()
        return self._rows.signing(connection.info)

    def _count(self, transaction: Transaction, signing: Signing | None) -> int:
        meta = tables.meta.c
        last = int(transaction.value(select(meta.generation)) or 0)
        if self._rows is not None and last != self._generation:
            # With an older one, rows of before would be believed again.
            raise self._rows.refusal(Finding("meta/generation", CHANGED))
        generation = (last if transaction.generation is None else transaction.generation) + 1
        values: dict[Any, Any] = {meta.generation: generation}
        if self._witness is not None:
            values[meta.audit_size], values[meta.audit_root] = self._witness()
        if signing is not None:
            connection = transaction._connection  # noqa: SLF001 - the two classes are one unit
            values[meta.row_macs] = signing.seal(connection, generation)
        transaction.run(update(tables.meta).values(values))
        return generation

    def empty_log(self) -> bool:
        """Move what was committed into the database, and cut the log of writes to nothing.

        False while a reader needs the log: nothing is lost, call it again. Others who write wait
        for `LOG_SECONDS` at most.
        """
        with clear_errors(), self._lock:
            connection = sqlite.connect(self.path, timeout=LOG_SECONDS, isolation_level=None)
            with contextlib.closing(connection):
                connection.execute("PRAGMA synchronous=FULL")
                held_back = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if not held_back:
                # SQLite does not wait for the disk here, and a power cut would bring it back.
                _sync(self.path.with_name(self.path.name + "-wal"))
        return not held_back

    def rewrite(self) -> None:
        """Once after secure deletion came: leave out what was freed before it, key bytes too.

        For `appliance.control.store.migrate`, before the database is protected: it changes the
        number of the schema. Doing it again after a kill does no harm. Takes as much memory, and as
        much of the disk, as the database.
        """
        with clear_errors(), self._lock:
            connection = sqlite.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            with contextlib.closing(connection):
                if connection.execute("PRAGMA user_version").fetchone()[0] >= REWRITTEN:
                    return
                for pragma in _PRAGMAS:
                    connection.execute(f"PRAGMA {pragma}")
                connection.execute("VACUUM")
                connection.execute(f"PRAGMA user_version={REWRITTEN}")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def watch_log(self, witness: Witness) -> None:
        """From now on store with each commit the size and root that `witness` says."""
        self._witness = witness

    def migrator(self) -> Engine:
        """The writing engine, for `appliance.control.store.migrate` alone."""
        return self._writer

    def close(self) -> None:
        """Close every connection. No transaction may be open."""
        self._reader.dispose()
        self._writer.dispose()


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        # The change is durable; what wanted to hear of it must not make it look failed.
        _logger.exception("a callback after a commit failed")


def _check_version(version: tuple[int, ...]) -> None:
    if version < OLDEST_SQLITE:
        found, wanted = (".".join(map(str, v)) for v in (version, OLDEST_SQLITE))
        raise FailedPrecondition(
            f"SQLite {found} can corrupt the state database; install the locked packages, which "
            f"bring {wanted} or newer"
        )


def _create_private(path: Path) -> None:
    """Make the file with mode 0600 before SQLite does; its WAL gets the same mode."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def raw_of(connection: Connection) -> Any:  # noqa: ANN401 - a DBAPI connection
    """The connection of the driver below."""
    return connection.connection.driver_connection


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _engine(path: Path, attach: Callable[..., None], *, pool_size: int, read_only: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        module=sqlite,
        pool_size=pool_size,
        max_overflow=0,
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
    )

    def set_up(connection: Any, entry: ConnectionPoolEntry) -> None:  # noqa: ANN401 - a DBAPI connection
        connection.isolation_level = None  # transactions begin and end where we say, not by guess
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        attach(connection, entry.info, writes=not read_only)
        if read_only:
            connection.execute("PRAGMA query_only=ON")

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", set_up)
    event.listen(engine, "begin", begin)
    return engine


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what SQLite says about a disk into an error with a sentence."""
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable(
            "the control plane is busy: repeat the call in a moment", retry_after=1.0
        ) from error
    except OperationalError as error:
        if _FULL_DISK in str(error.orig):
            raise Exhausted(
                "the disk of the control plane is full, so nothing was changed: free some space "
                "there, then repeat"
            ) from error
        raise Unavailable(
            f"the state database cannot be used ({error.orig}): look at the disk of the control "
            "plane"
        ) from error
