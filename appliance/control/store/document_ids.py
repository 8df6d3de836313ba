"""Which ids the documents of an upload have: on disk, so that memory does not grow with them.

Kept are keyed digests of 64 bits, each with the part it came in. Rules kept here:
* an id is in an upload once. Two ids with one digest would be taken for the same: of ten million
  there are some with a chance of three in a million, and under another upload's key they differ;
* no id can be read here, and nobody without the key can make two collide;
* nothing is synced: what is here can be made again from the parts, which are. A process that is
  killed loses nothing; after a power cut it is compared with the parts (`reconcile`).

Called by `services.upload_parts` and `services.documents`, from one thread at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pysqlite3 import dbapi2 as sqlite

from appliance.core.errors import Exhausted, Unavailable

_DIGEST = 8
_AT_ONCE = 500
"""Digests looked for in one statement."""
_TABLE = "CREATE TABLE IF NOT EXISTS id (digest INTEGER PRIMARY KEY, part INTEGER NOT NULL)"


class DocumentIds:
    """The ids of one upload.

    Args:
        path: of its file, made when it is missing; None: a temporary one, gone with `close`.
        key: 32 bytes, of this upload alone.
    """

    def __init__(self, path: Path | None, key: bytes) -> None:
        self._path = path
        self._key = key
        self._open()

    def add(self, part: int, ids: Sequence[str]) -> int | None:
        """Take in the ids of a part, all or none.

        Returns the place in `ids` of one that is there already, None when there is none.

        Raises:
            Exhausted: the disk is full.
            Unavailable: the file is broken; it was deleted, and `reconcile` is needed.
        """
        digests = [self._digest(each) for each in ids]
        if len(set(digests)) < len(digests):
            return _second(digests)
        with self._guarded():
            try:
                with self._transaction():
                    self._connection.executemany(
                        "INSERT INTO id VALUES (?, ?)", sorted((each, part) for each in digests)
                    )
            except sqlite.IntegrityError:
                return self._taken(digests)
        return None

    def forget(self, part: int) -> None:
        """Drop the ids of a part that came to nothing. Raises as `add`."""
        with self._guarded(), self._transaction():
            self._connection.execute("DELETE FROM id WHERE part = ?", (part,))

    def reconcile(self, documents: Mapping[int, int]) -> list[int]:
        """Compare with the parts that are there; those whose ids have to be added again.

        Args:
            documents: of each part that is there, how many it has.
        """
        with self._guarded():
            found = dict(self._connection.execute("SELECT part, count(*) FROM id GROUP BY part"))
            wrong = [part for part, count in found.items() if documents.get(part) != count]
            with self._transaction():
                self._connection.executemany(
                    "DELETE FROM id WHERE part = ?", [(part,) for part in wrong]
                )
        return sorted(part for part in documents if part in wrong or part not in found)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _open(self) -> None:
        # Empty: a temporary file of SQLite's own, deleted when it is closed.
        self._connection: Any = sqlite.connect(str(self._path or ""), check_same_thread=False)
        self._connection.isolation_level = None
        with self._guarded():
            self._connection.execute("PRAGMA journal_mode=DELETE")
            self._connection.execute("PRAGMA synchronous=OFF")
            self._connection.execute(_TABLE)

    def _digest(self, identifier: str) -> int:
        found = hashlib.blake2b(identifier.encode(), digest_size=_DIGEST, key=self._key).digest()
        return int.from_bytes(found, "big", signed=True)

    def _taken(self, digests: list[int]) -> int:
        for start in range(0, len(digests), _AT_ONCE):
            some = digests[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            wanted = f"SELECT digest FROM id WHERE digest IN ({marks})"  # noqa: S608 - marks alone
            row = self._connection.execute(wanted, some).fetchone()
            if row is not None:
                return digests.index(row[0])
        return 0

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite.IntegrityError:
            raise
        except sqlite.OperationalError as error:
            if "full" not in str(error):
                raise self._broken() from error
            raise Exhausted(
                "no space is left on the disk of the control plane for the ids of documents: free "
                "some there, then go on"
            ) from error
        except sqlite.DatabaseError as error:
            raise self._broken() from error

    def _broken(self) -> Unavailable:
        """It cannot be read: without it, it is made again from the parts."""
        self.close()
        if self._path is not None:
            remove(self._path)
        return Unavailable(
            "what is known of the documents of this upload was lost and is made again: repeat the "
            "part",
            retry_after=1.0,
        )


def remove(path: Path) -> None:
    """Delete a file of ids, and first what would be rolled back into the next one of its name."""
    path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _second(digests: Sequence[int]) -> int:
    """Place of the first digest that was there before."""
    seen: set[int] = set()
    for place, each in enumerate(digests):
        if each in seen:
            return place
        seen.add(each)
    return 0
