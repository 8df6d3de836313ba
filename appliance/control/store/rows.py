"""Rows that open something are seen only when the control plane itself wrote them.

Whoever can write `state.db` could give a binding to himself, a password hash of his own to somebody
else, or take a revoked token back from an old copy. So each such row has a MAC
(`store.row_macs`), the newest MACs are in memory, and every connection sees those tables through a
view that leaves out what does not fit (`store.row_views`).

Rules kept here:
* at the start everything is verified, in the transaction that migrates it and signs it anew: each
  row against its tag, the tags of each table against its total, all of it with the generation of
  the state. A row that was added, changed or taken away is named; of a table in which older rows
  were put back with their tags, or tags were changed, the table, whatever else is named there;
* while the control plane runs, what is not as it was written last is not there, for a SELECT and
  for a change, and no service needs to think of it; so nothing forged is ever signed. An INSERT
  where a believed row was taken away is refused;
* the schema is signed as well, compared when a connection is made, and never changes while one is
  open: a trigger or a view that somebody put into the file would act in the control plane's name;
* the generation is counted in memory: with an older one, older rows would be believed again.

The attack: full write access to `state.db`, while it is down or up. Called by `store.database`;
`opening` and `row_checks` say what happens with what was found.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection

from appliance.control.store import row_views
from appliance.control.store.row_macs import (
    KEYS,
    SIGNED,
    TAG_SIZE,
    Columns,
    TableTotal,
    Value,
    name_of,
    positions,
    schema_mac,
    share_of,
    state_mac,
    table_of,
    tag_of,
    total_mac,
)
from appliance.control.store.row_memory import Memory, RowSnapshot
from appliance.control.store.row_views import Raw, Signed
from appliance.core.errors import Tampered

ADDED, CHANGED, REMOVED = "added", "changed", "taken away"
ROLLED_BACK = "older rows were put back"
UNSIGNED = "the MACs were taken away"
OTHER_GENERATION = "older rows were put back, or it is of another generation than its MACs"
SCHEMA = "sqlite_schema"
MAX_FOUND = 100
"""Of one table."""
MAX_NAME = 100
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
        """For a person: names are whatever somebody wrote."""
        return f"{self.shown or 'state.db'}: {self.change}"

    @property
    def is_named(self) -> bool:
        """Whether the rest can be told from what somebody else wrote."""
        if self.row in {"", SCHEMA}:
            return False
        return self.row not in KEYS or self.change == ROLLED_BACK

    @property
    def shown(self) -> str:
        """The row, with nothing in it that a terminal or a log would act on."""
        return self.row.encode("unicode_escape", "surrogateescape").decode("ascii")[:MAX_NAME]


class _Connection(RowSnapshot):
    """What is remembered with one connection."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: Finding | None = None
        # Of the schema with which it began, which was compared with the signed one.
        self.schema_version = -1


class RowMacs:
    """The MACs of one state.

    Args:
        key: 32 bytes, derived for this alone.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._memory = Memory(key)
        self._places = positions(SIGNED)
        self._schema = b""
        # Table -> what its MAC is over, and the MAC: most stay as they are.
        self._computed: dict[str, tuple[Any, bytes]] = {}
        self.generation = 0
        """Of the state when it was read or signed."""
        self.columns: Columns | None = None
        """The columns that are covered in the state; None of one without MACs."""
        self.found: dict[str, Finding] = {}
        """What was seen and is not believed, by row; of each table `MAX_FOUND`."""

    # --- the whole state ------------------------------------------------------------------------

    def load(self, raw: Raw) -> list[Finding]:
        """Read every covered row, take it as known, and say what is not as it was written.

        Nothing is said of a state that never had MACs: `columns` is None then.

        Args:
            raw: a connection without views, within a transaction.
        """
        self._memory, found = Memory(self._key), []
        signed = row_views.read_signed(raw)
        self.columns = None if signed is None else signed.columns
        if signed is None:
            return []
        stored = row_views.read_tags(raw)
        if stored is None or len(signed.macs) != TAG_SIZE * (len(signed.columns) + 2):
            return [Finding("", UNSIGNED)]
        self.generation, (self._schema, _) = signed.generation, row_views.read_schema(raw)
        with row_views.any_text(raw):
            for table, columns in signed.columns.items():
                identity = row_views.identity(raw, table, columns, KEYS.get(table))
                if identity is None:
                    found.append(Finding(table, REMOVED))
                else:
                    list(self._take(raw, table, columns, identity))
        found += self._compare(stored)
        return found + self._compare_totals(signed, stored, {table_of(each.row) for each in found})

    def _compare(self, stored: dict[str, bytes]) -> list[Finding]:
        """Which rows do not have the tag that is stored for them."""
        found = []
        for name in self._memory.names():
            tag = stored.get(name)
            if tag != self._memory.now(name):
                found.append(Finding(name, ADDED if tag is None else CHANGED))
        there = set(self._memory.names())
        return found + [Finding(name, REMOVED) for name in stored if name not in there]

    def _compare_totals(
        self, signed: Signed, stored: dict[str, bytes], named: set[str]
    ) -> list[Finding]:
        """What is not as it was as a whole.

        Args:
            signed: what the file says of itself.
            stored: the tag of each row.
            named: tables of which the rows do not fit the tags that are stored. Elsewhere the rows
                in memory have the same ones.
        """
        totals_of = {table: TableTotal() for table in named}
        for name, tag in stored.items():
            if (table := table_of(name)) in named:
                totals_of[table] = totals_of[table].plus(share_of(self._key, name, tag))
        parts = [
            signed.macs[start : start + TAG_SIZE] for start in range(0, len(signed.macs), TAG_SIZE)
        ]
        totals = b"".join(parts[:-1])
        found = [
            Finding(table, ROLLED_BACK)
            for table, part in zip(sorted(signed.columns), parts, strict=False)
            if part != self._total_mac(table, signed.columns[table], totals_of.get(table))
        ]
        if parts[-2] != schema_mac(self._key, self._schema):
            found.append(Finding(SCHEMA, CHANGED))
        # What the file says of its tables must itself be the newest.
        if parts[-1] != state_mac(self._key, signed.columns, totals, signed.generation):
            found.append(Finding("", OTHER_GENERATION))
        return found

    def _total_mac(
        self, table: str, columns: tuple[str, ...], total: TableTotal | None = None
    ) -> bytes:
        """The MAC of a table as a whole: of the rows in memory, or of this total."""
        over = columns, self._memory.total(table) if total is None else total
        if self._computed.get(table, (None, b""))[0] != over:
            self._computed[table] = over, total_mac(self._key, table, *over)
        return self._computed[table][1]

    def macs(self, generation: int) -> bytes:
        """What `meta.row_macs` is to be: of each table by name, of the schema, and of all."""
        macs = [self._total_mac(table, SIGNED[table]) for table in sorted(SIGNED)]
        totals = b"".join([*macs, schema_mac(self._key, self._schema)])
        return totals + state_mac(self._key, SIGNED, totals, generation)

    def _take(
        self, raw: Raw, table: str, columns: tuple[str, ...], identity: tuple[int, ...]
    ) -> Iterator[tuple[str, bytes]]:
        """Take the rows of a table as known; their names and tags."""
        for values in raw.execute(row_views.selection(table, columns)):
            name = name_of(table, (values[place] for place in identity))
            tag = tag_of(self._key, table, values)
            self._memory.add(name, tag)
            yield name, tag

    def sign_all(self, raw: Raw) -> None:
        """Take every covered row as it is and sign it, as the next generation.

        For a new state, one from before there were MACs, and one that was verified and migrated, in
        the same transaction of a connection without views.
        """
        self._memory, self._computed = Memory(self._key), {}
        raw.execute("DELETE FROM main.row_mac")
        for table, columns in SIGNED.items():
            taken = self._take(raw, table, columns, self._places[table])
            raw.executemany("INSERT INTO main.row_mac VALUES (?, ?)", list(taken))
        self._schema, _ = row_views.read_schema(raw)
        (generation,) = raw.execute("SELECT generation FROM main.meta").fetchone()
        self.generation, self.columns = generation + 1, SIGNED
        raw.execute(
            "UPDATE main.meta SET generation = ?, row_columns = ?, row_macs = ?",
            (self.generation, json.dumps(SIGNED), self.macs(self.generation)),
        )

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
            row_views.INSERTED: self._inserted,
            row_views.REMOVED: self._removed,
        }
        row_views.attach(
            raw,
            {name: partial(function, connection) for name, function in functions.items()},
            writes=writes,
        )
        raw.execute("BEGIN")
        digest, version = row_views.read_schema(raw)
        raw.execute("COMMIT")
        if digest == self._schema:
            connection.schema_version = version

    def begin(self, raw: Raw, info: dict[Any, Any]) -> None:
        """At the begin of a transaction: raise Tampered when the schema is not the signed one."""
        connection: _Connection = info[_INFO]
        if row_views.schema_version(raw) != connection.schema_version:
            raise self.refusal(Finding(SCHEMA, CHANGED))

    @contextlib.contextmanager
    def view(self, info: dict[Any, Any], generation: int) -> Iterator[None]:
        """While a connection reads: what was true at this generation is believed until it ends."""
        with self._memory.view(info[_INFO], generation):
            yield

    def check(self, raw: Raw, info: dict[Any, Any], table: str, pause: Callable[[], None]) -> None:
        """Look at every row of a table within a `view`, also at those that nobody asks for."""
        connection: _Connection = info[_INFO]
        seen = set()
        with row_views.any_text(raw):
            for number, values in enumerate(raw.execute(row_views.selection(table, SIGNED[table]))):
                seen.add(self._name(table, values))
                self._believed(connection, table, *values)
                if number % ROWS_AT_A_TIME == 0:
                    pause()
        for name in self._memory.names(table):
            if name not in seen and not self._memory.was(name, None, connection.floor):
                self._say(Finding(name, REMOVED))
        if damage := row_views.damage(raw, table):
            self._say(Finding(table, damage[:MAX_NAME]))

    def _believed(self, connection: _Connection, table: str, *values: Value) -> bool:
        name = self._name(table, values)
        tag = tag_of(self._key, table, values)
        known = self._memory.now(name, connection)
        if known == tag or self._memory.was(name, tag, connection.floor):
            return True
        self._say(Finding(name, ADDED if known is None else CHANGED))
        return False

    def _name(self, table: str, values: Sequence[Value]) -> str:
        return name_of(table, (values[place] for place in self._places[table]))

    def _say(self, finding: Finding) -> None:
        table = table_of(finding.row)
        if finding.row in self.found:
            return
        # A copy in one step: other threads find something at the same time.
        if sum(table_of(row) == table for row in list(self.found)) < MAX_FOUND:
            self.found[finding.row] = finding

    # --- changing -------------------------------------------------------------------------------

    def _inserted(self, connection: _Connection, table: str, *values: Value) -> None:
        name = self._name(table, values)
        if self._memory.now(name, connection) is not None:
            connection.refused = Finding(name, REMOVED)
            raise self.refusal(connection.refused)
        connection.note(name, tag_of(self._key, table, values))

    def _removed(self, connection: _Connection, table: str, *values: Value) -> None:
        connection.note(self._name(table, values), None)

    @contextlib.contextmanager
    def statement(self, info: dict[Any, Any]) -> Iterator[None]:
        """Around one change: when it fails, what its triggers noted is forgotten.

        Raises Tampered when it would take the place of a row that was taken away.
        """
        connection: _Connection = info[_INFO]
        connection.refused = None
        try:
            with connection.undone():
                yield
        except Exception as error:
            # SQLite says only that a function of ours has failed.
            if connection.refused is not None:
                raise self.refusal(connection.refused) from error
            raise

    @contextlib.contextmanager
    def signing(self, info: dict[Any, Any]) -> Iterator[Signing]:
        """Around one transaction and its commit."""
        connection: _Connection = info[_INFO]
        connection.clear()
        signing = Signing(self, self._memory, connection)
        try:
            yield signing
        except BaseException:
            signing.take_back()
            raise
        finally:
            connection.clear()

    def accept(self, info: dict[Any, Any], found: Iterable[Finding]) -> None:
        """Let this transaction sign rows as they were read at the start, whatever they are.

        What was written since is not believed any more than before.
        """
        connection: _Connection = info[_INFO]
        for finding in found:
            if table_of(finding.row) != finding.row and finding.row not in connection.changed:
                connection.note(finding.row, self._memory.now(finding.row))

    def refusal(self, finding: Finding) -> Tampered:
        """The error for what cannot be passed by; it is said as well."""
        self._say(finding)
        return Tampered(
            f"{finding} in state.db, and not by the control plane, so nothing was done: tell "
            "whoever runs it",
            object=finding.shown,
        )


class Signing:
    """The changes of one transaction. Made by `RowMacs.signing`."""

    def __init__(self, rows: RowMacs, memory: Memory, snapshot: RowSnapshot) -> None:
        self._rows, self._memory, self._snapshot = rows, memory, snapshot
        self._published: list[tuple[str, bytes | None]] = []

    def seal(self, connection: Connection, generation: int) -> bytes:
        """Store the tags of what was changed, as the last thing before the commit.

        Returns what `meta.row_macs` is to be. From here on readers believe the new rows as well as
        those of before: which ones they see is decided by the commit.
        """
        changed = self._snapshot.changed
        gone = [(name,) for name, tag in changed.items() if tag is None]
        put = [(name, tag) for name, tag in changed.items() if tag is not None]
        if gone:
            connection.exec_driver_sql("DELETE FROM main.row_mac WHERE row = ?", gone)
        if put:
            connection.exec_driver_sql("INSERT OR REPLACE INTO main.row_mac VALUES (?, ?)", put)
        self._memory.forget(generation)
        for name, tag in changed.items():
            self._published.append((name, self._memory.publish(name, tag, generation)))
        return self._rows.macs(generation)

    def take_back(self) -> None:
        """The commit failed: everything is as before."""
        while self._published:
            self._memory.take_back(*self._published.pop())
