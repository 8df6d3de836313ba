"""What each covered row is at present, in memory: its tag, and what it was for older views.

Rules kept here:
* a row is published just before the commit that makes it so, and what it was is kept until no view
  is left that began before that commit: so a reader believes what its snapshot shows, and nothing
  older;
* tags of the rows of a transaction are that transaction's own until then, and a statement that
  fails takes its notes back.

Values in, values out: no database. Called by `store.rows`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from appliance.control.store.row_macs import TableTotal, share_of, table_of

_FOR_EVER = float("inf")
_ABSENT = object()


class RowSnapshot:
    """What one connection knows: when its view began, and what its transaction has changed."""

    def __init__(self) -> None:
        self.floor = _FOR_EVER
        """The generation at which its view began; that of the writer is always the newest."""
        self.changed: dict[str, bytes | None] = {}
        """Rows that its transaction has changed -> tag; None: deleted."""
        self._undo: list[tuple[str, Any]] = []

    def note(self, name: str, tag: bytes | None) -> None:
        """Remember what a row has become."""
        self._undo.append((name, self.changed.get(name, _ABSENT)))
        self.changed[name] = tag

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Around a statement: when it fails, nothing of what it noted stays."""
        mark = len(self._undo)
        try:
            yield
        except BaseException:
            while len(self._undo) > mark:
                name, before = self._undo.pop()
                if before is _ABSENT:
                    del self.changed[name]
                else:
                    self.changed[name] = before
            raise

    def clear(self) -> None:
        """Begin a transaction."""
        self.changed, self._undo = {}, []


class Memory:
    """The tags of every covered row, and the totals of their tables.

    Args:
        key: of the MACs.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[str, bytes] = {}
        self._totals: dict[str, TableTotal] = {}
        # Row -> (generation that changed it, what it was before), and the order of these.
        self._before: dict[str, tuple[tuple[int, bytes | None], ...]] = {}
        self._order: deque[tuple[int, str]] = deque()
        self._views: dict[int, int] = {}
        self._lock = threading.Lock()

    def names(self, table: str | None = None) -> list[str]:
        """The rows that there are, of one table or of all."""
        # A copy in one step: the writer goes on meanwhile.
        names = list(self._known)
        return names if table is None else [name for name in names if table_of(name) == table]

    def add(self, name: str, tag: bytes) -> None:
        """Take a row that was read."""
        self._known[name] = tag
        table = table_of(name)
        self._totals[table] = self.total(table).plus(share_of(self._key, name, tag))

    def total(self, table: str) -> TableTotal:
        """How many rows a table has, and their sum."""
        return self._totals.get(table, TableTotal())

    def now(self, name: str, snapshot: RowSnapshot | None = None) -> bytes | None:
        """What a row is, for the transaction of a snapshot; None when there is none."""
        if snapshot is not None and name in snapshot.changed:
            return snapshot.changed[name]
        return self._known.get(name)

    def was(self, name: str, tag: bytes | None, floor: float) -> bool:
        """Whether a view that began at this generation may still see a row like this."""
        return any(
            generation > floor and before == tag
            for generation, before in self._before.get(name, ())
        )

    @contextlib.contextmanager
    def view(self, snapshot: RowSnapshot, generation: int) -> Iterator[None]:
        """While somebody reads what was there at this generation, or later."""
        with self._lock:
            snapshot.floor = self._views[id(snapshot)] = generation
        try:
            yield
        finally:
            with self._lock:
                del self._views[id(snapshot)]
                snapshot.floor = _FOR_EVER

    def publish(self, name: str, tag: bytes | None, generation: int) -> bytes | None:
        """Let a row be this from now on; what it was."""
        before = self._known.get(name)
        self._before[name] = (*self._before.get(name, ()), (generation, before))
        self._order.append((generation, name))
        self._remove(name)
        if tag is not None:
            self.add(name, tag)
        return before

    def _remove(self, name: str) -> None:
        tag, table = self._known.pop(name, None), table_of(name)
        if tag is not None:
            self._totals[table] = self.total(table).minus(share_of(self._key, name, tag))

    def take_back(self, name: str, before: bytes | None) -> None:
        """The newest `publish` of a row did not happen. In the reverse order of those."""
        self._remove(name)
        if before is not None:
            self.add(name, before)
        self._before[name] = self._before[name][:-1]
        if not self._before[name]:
            del self._before[name]
        self._order.pop()

    def forget(self, generation: int) -> None:
        """Forget what no view needs any more, when this generation is about to be committed."""
        with self._lock:
            # Who begins now begins at the generation of before.
            oldest = min((generation - 1, *self._views.values()))
        while self._order and self._order[0][0] <= oldest:
            name = self._order.popleft()[1]
            left = tuple(each for each in self._before.get(name, ()) if each[0] > oldest)
            if left:
                self._before[name] = left
            else:
                self._before.pop(name, None)
