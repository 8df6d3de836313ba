"""Rows that open something are seen only when the control plane itself wrote them.

Whoever can write `state.db` could give a binding to himself, a password hash of his own to somebody
else, or take a revoked token back from an old copy. So each such row has a MAC
(`store.row_macs`), the newest MACs are in memory, and every connection sees those tables through a
view that leaves out what does not fit (`store.row_views`).

Rules kept here:
* at the start everything is verified: each row against its tag, each table against its total and
  the generation of the state. A row that was added, changed or taken away is named; of a table in
  which older rows were put back, the table;
* while the control plane runs, a SELECT finds no row of a covered table that is not what was
  written last, and no service needs to think of it;
* a change of a row that is not believed is refused, so that nothing forged is ever signed; such a
  row may be deleted. An INSERT where a believed row was taken away is refused too;
* the schema is signed as well, and a commit under another one is refused: a trigger that somebody
  put into the file would change rows in the control plane's name.

The attack: full write access to `state.db`, while it is down or up. Called by `store.database`;
`opening` and `row_checks` say what happens with what was found.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from pysqlite3 import dbapi2 as sqlite

from appliance.control.store import row_views
from appliance.control.store.row_macs import (
    SIGNED,
    TAG_SIZE,
    Columns,
    Value,
    digest_of,
    name_of,
    positions,
    state_mac,
    table_of,
    tag_of,
    total_mac,
)
from appliance.control.store.row_memory import Memory, Snapshot
from appliance.control.store.row_views import Raw, Signed
from appliance.core.errors import Tampered

ADDED, CHANGED, REMOVED = "added", "changed", "taken away"
ROLLED_BACK = "older rows were put back"
UNSIGNED = "the MACs were taken away"
OTHER_GENERATION = "older rows were put back, or it is of another generation than its MACs"
SCHEMA = "sqlite_schema"
MAX_FOUND = 1_000
ROWS_AT_A_TIME = 500
_INFO = "rows"


@dataclass(frozen=True)
class Finding:
    """What is not as the control plane wrote it.

    Args:
        row: its name, a table's when nobody can say which row, or empty for all of them.
        change: one of the words above.
    """

    row: str
    change: str

    def __str__(self) -> str:
        """For a person."""
        return f"{self.row or 'state.db'}: {self.change}"


class _Connection(Snapshot):
    """What is remembered with one connection."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: Finding | None = None
        # Of a schema that was compared with the signed one.
        self.schema_version = -1


class Rows:
    """The MACs of one state.

    Args:
        key: 32 bytes, derived for this alone.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._memory = Memory()
        self._places = positions(SIGNED)
        self._schema = b""
        # Table -> what its MAC is over, and the MAC: most stay as they are.
        self._computed: dict[str, tuple[Any, bytes]] = {}
        self.columns: Columns | None = None
        """The columns that were covered when `load` read them; None of a state without MACs."""
        self.found: dict[str, Finding] = {}
        """What was seen and is not believed, by row; at most `MAX_FOUND`."""

    # --- the whole state ------------------------------------------------------------------------

    def load(self, path: Path) -> list[Finding]:
        """Read every covered row, take it as known, and say what is not as it was written.

        Nothing is said of a state that never had MACs: `columns` is None then.
        """
        self._memory, found = Memory(), []
        with _reading(path) as raw:
            signed = row_views.read_signed(raw)
            self.columns = None if signed is None else signed.columns
            if signed is None:
                return []
            if row_views.identity(raw, "row_mac", ("row", "mac")) is None:
                return [Finding("", UNSIGNED)]
            self._schema = row_views.schema_digest(raw)
            for table, columns in signed.columns.items():
                identity = row_views.identity(raw, table, columns)
                if identity is None:
                    found.append(Finding(table, REMOVED))
                else:
                    list(self._take(raw, table, columns, identity))
            found += self._compare(dict(raw.execute("SELECT row, mac FROM main.row_mac")))
        return found + self._compare_totals(signed, {table_of(each.row) for each in found})

    def _compare(self, stored: dict[str, bytes]) -> list[Finding]:
        """Which rows do not have the tag that is stored for them."""
        found = []
        for name in self._memory.names():
            tag, digest = stored.pop(name, None), self._memory.now(name) or b""
            if tag != tag_of(digest):
                found.append(Finding(name, ADDED if tag is None else CHANGED))
        return found + [Finding(name, REMOVED) for name in stored]

    def _compare_totals(self, signed: Signed, named: set[str]) -> list[Finding]:
        """Which tables are not what they were as a whole, but for those of which rows are named."""
        stored, totals = signed.macs[:-TAG_SIZE], self._totals(signed.columns)
        wrong = [
            table
            for number, table in enumerate(sorted(signed.columns))
            if stored[number * TAG_SIZE :][:TAG_SIZE] != totals[number * TAG_SIZE :][:TAG_SIZE]
        ]
        found = [Finding(table, ROLLED_BACK) for table in wrong if table not in named]
        # What the file says of its tables must itself be the newest.
        whole = state_mac(self._key, stored, self._schema, signed.generation)
        if whole != signed.macs[-TAG_SIZE:]:
            found = [Finding("", OTHER_GENERATION)]
        return found

    def _totals(self, columns: Columns) -> bytes:
        """A MAC for each table as a whole, in the order of their names."""
        macs = []
        for table in sorted(columns):
            total = self._memory.total(table)
            if self._computed.get(table, (None, b""))[0] != (columns[table], total):
                mac = total_mac(self._key, table, columns[table], total)
                self._computed[table] = ((columns[table], total), mac)
            macs.append(self._computed[table][1])
        return b"".join(macs)

    def _take(
        self, raw: Raw, table: str, columns: tuple[str, ...], identity: tuple[int, ...]
    ) -> Iterator[tuple[str, bytes]]:
        """Take the rows of a table as known; their names and tags."""
        for values in raw.execute(row_views.selection(table, columns)):
            name = name_of(table, (values[place] for place in identity))
            digest = digest_of(self._key, table, values)
            self._memory.add(name, digest)
            yield name, tag_of(digest)

    def take_all(self, path: Path) -> None:
        """Take every covered row as known, whatever it is, for somebody who accepts that."""
        self._memory = Memory()
        with _reading(path) as raw:
            for table, columns in SIGNED.items():
                list(self._take(raw, table, columns, self._places[table]))

    def sign_all(self, raw: Raw) -> None:
        """Take every covered row as it is and store its tag; `seal` of this transaction follows.

        For a new state, one from before there were MACs, and one that somebody accepts.
        """
        self._memory = Memory()
        raw.execute("DELETE FROM main.row_mac")
        for table, columns in SIGNED.items():
            taken = self._take(raw, table, columns, self._places[table])
            raw.executemany("INSERT INTO main.row_mac VALUES (?, ?)", list(taken))
        raw.execute("UPDATE main.meta SET row_columns = ?", (json.dumps(SIGNED),))
        self._schema, self.columns = row_views.schema_digest(raw), SIGNED

    # --- reading --------------------------------------------------------------------------------

    def attach(self, raw: Raw, info: dict[Any, Any], *, writes: bool) -> None:
        """Put the views before the tables on a new connection.

        Args:
            raw: the connection.
            info: what is remembered with it.
            writes: whether it is the one that changes rows.
        """
        connection = info[_INFO] = _Connection()
        functions: dict[str, Callable[..., Any]] = {
            row_views.BELIEVED: self._believed,
            row_views.BEFORE: self._check_before,
            row_views.INSERTED: self._inserted,
            row_views.UPDATED: self._updated,
            row_views.DELETED: self._deleted,
        }
        row_views.attach(
            raw,
            {name: partial(function, connection) for name, function in functions.items()},
            writes=writes,
        )

    @contextlib.contextmanager
    def view(self, info: dict[Any, Any], generation: int) -> Iterator[None]:
        """While a connection reads: what was true at this generation is believed until it ends."""
        with self._memory.view(info[_INFO], generation):
            yield

    def check(self, raw: Raw, info: dict[Any, Any], table: str, pause: Callable[[], None]) -> None:
        """Look at every row of a table within a `view`, also at those that nobody asks for."""
        connection: _Connection = info[_INFO]
        seen = set()
        for number, values in enumerate(raw.execute(row_views.selection(table, SIGNED[table]))):
            seen.add(self._name(table, values))
            self._believed(connection, table, *values)
            if number % ROWS_AT_A_TIME == 0:
                pause()
        for name in self._memory.names(table):
            if name not in seen and not self._memory.was(name, None, connection.floor):
                self._say(Finding(name, REMOVED))

    def _believed(self, connection: _Connection, table: str, *values: Value) -> bool:
        name = self._name(table, values)
        digest = digest_of(self._key, table, values)
        known = self._memory.now(name, connection)
        if known == digest or self._memory.was(name, digest, connection.floor):
            return True
        self._say(Finding(name, ADDED if known is None else CHANGED))
        return False

    def _name(self, table: str, values: Sequence[Value]) -> str:
        return name_of(table, (values[place] for place in self._places[table]))

    def _say(self, finding: Finding) -> None:
        if len(self.found) < MAX_FOUND:
            self.found.setdefault(finding.row, finding)

    # --- changing -------------------------------------------------------------------------------

    def _check_before(self, connection: _Connection, table: str, *values: Value) -> None:
        """A row that is about to be changed must be what was written last."""
        name = self._name(table, values)
        if not self._believed(connection, table, *values):
            self._refuse(connection, Finding(name, CHANGED))
        # Its key may change.
        connection.note(name, None)

    def _inserted(self, connection: _Connection, table: str, *values: Value) -> None:
        name = self._name(table, values)
        if self._memory.now(name, connection) is not None:
            self._refuse(connection, Finding(name, REMOVED))
        connection.note(name, digest_of(self._key, table, values))

    def _updated(self, connection: _Connection, table: str, *values: Value) -> None:
        connection.note(self._name(table, values), digest_of(self._key, table, values))

    def _deleted(self, connection: _Connection, table: str, *values: Value) -> None:
        connection.note(self._name(table, values), None)

    def _refuse(self, connection: _Connection, finding: Finding) -> NoReturn:
        self._say(finding)
        connection.refused = finding
        raise _refusal(finding)

    @contextlib.contextmanager
    def statement(self, info: dict[Any, Any]) -> Iterator[None]:
        """Around one change: when it fails, what its triggers noted is forgotten.

        Raises Tampered when it touched a row that is not believed.
        """
        connection: _Connection = info[_INFO]
        connection.refused = None
        try:
            with connection.undone():
                yield
        except Exception as error:
            # SQLite says only that a function of ours has failed.
            if connection.refused is not None:
                raise _refusal(connection.refused) from error
            raise

    @contextlib.contextmanager
    def signing(self, info: dict[Any, Any]) -> Iterator[Signing]:
        """Around one transaction and its commit."""
        connection: _Connection = info[_INFO]
        connection.clear()
        signing = Signing(self, connection)
        try:
            yield signing
        except BaseException:
            signing.take_back()
            raise
        finally:
            connection.clear()

    def seal(
        self, raw: Raw, connection: _Connection, generation: int
    ) -> tuple[bytes, list[tuple[str, bytes | None]]]:
        """See `Signing.seal`; also what the changed rows were."""
        self._check_schema(raw, connection)
        self._memory.forget(generation)
        before, gone, put = [], [], []
        for name, digest in connection.changed.items():
            before.append((name, self._memory.publish(name, digest, generation)))
            if digest is None:
                gone.append((name,))
            else:
                put.append((name, tag_of(digest)))
        if gone:
            raw.executemany("DELETE FROM main.row_mac WHERE row = ?", gone)
        if put:
            raw.executemany("INSERT OR REPLACE INTO main.row_mac VALUES (?, ?)", put)
        totals = self._totals(SIGNED)
        return totals + state_mac(self._key, totals, self._schema, generation), before

    def take_back(self, before: Iterable[tuple[str, bytes | None]], generation: int) -> None:
        """What was published for a commit that failed is as it was before."""
        for name, digest in before:
            self._memory.publish(name, digest, generation)

    def _check_schema(self, raw: Raw, connection: _Connection) -> None:
        """Raise Tampered when the schema is not the one that was signed."""
        version = row_views.schema_version(raw)
        if version == connection.schema_version:
            return
        if row_views.schema_digest(raw) != self._schema:
            self._say(Finding(SCHEMA, CHANGED))
            raise _refusal(Finding(SCHEMA, CHANGED))
        connection.schema_version = version


class Signing:
    """The changes of one transaction. Made by `Rows.signing`."""

    def __init__(self, rows: Rows, connection: _Connection) -> None:
        self._rows, self._connection = rows, connection
        self._before: list[tuple[str, bytes | None]] = []
        self._generation = 0

    def seal(self, raw: Raw, generation: int) -> bytes:
        """Store the tags of what was changed, as the last thing before the commit.

        Returns what `meta.row_macs` is to be. From here on readers believe the new rows as well as
        those of before: which ones they see is decided by the commit. Raises Tampered when somebody
        has changed the schema.
        """
        self._generation = generation
        macs, self._before = self._rows.seal(raw, self._connection, generation)
        return macs

    def take_back(self) -> None:
        """The commit failed: everything is as before."""
        self._rows.take_back(reversed(self._before), self._generation)
        self._before = []


def _refusal(finding: Finding) -> Tampered:
    return Tampered(
        f"{finding} in state.db, and not by the control plane, so nothing was done: tell whoever "
        "runs it",
        object=finding.row,
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[Raw]:
    """A connection that reads the state as it is, and what is no text too, so that it is named."""
    with contextlib.closing(sqlite.connect(path)) as raw:
        raw.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        raw.execute("BEGIN")
        yield raw
