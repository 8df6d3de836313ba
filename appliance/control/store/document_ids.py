"""Which ids the documents of an upload have: on disk, so that memory does not grow with them.

Kept are keyed digests of 64 bits, each with the part it came in. Rules kept here:
* an id is in an upload once. Two ids with one digest would be taken for the same: of ten million
  there are some with a chance of three in a million, and under another upload's key they differ;
* no id can be read here, and nobody without the key can make two collide;
* nothing is synced: what is here can be made again from the parts, which are. A process that is
  killed loses nothing, as what it wrote is the kernel's; a file of before the last boot is not
  believed and begins empty. What is not as the parts are is found by `reconcile`;
* no statement sorts or groups: this SQLite keeps what it needs for that in memory.

Called by `services.data.upload_ids` and `services.data.documents`, from one thread at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pysqlite3 import dbapi2 as sqlite

from appliance.core.errors import Exhausted, Unavailable

_DIGEST = 8
_AT_ONCE = 500
"""Digests looked for in one statement."""
_TABLES = (
    "CREATE TABLE IF NOT EXISTS id (digest INTEGER PRIMARY KEY, part INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS part (number INTEGER PRIMARY KEY, documents INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS boot (id TEXT PRIMARY KEY)",
)
_BOOT = Path("/proc/sys/kernel/random/boot_id")


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
        if not ids:
            return None
        digests = [self._digest(each) for each in ids]
        if len(set(digests)) < len(digests):
            return _second(digests)
        with self._guarded():
            try:
                with self._transaction():
                    self._connection.executemany(
                        "INSERT INTO id VALUES (?, ?)", sorted((each, part) for each in digests)
                    )
                    self._connection.execute("INSERT INTO part VALUES (?, ?)", (part, len(digests)))
            except sqlite.IntegrityError:
                return self._taken(digests)
        return None

    def forget(self, part: int) -> None:
        """Drop the ids of a part that came to nothing. Raises as `add`."""
        with self._guarded(), self._transaction():
            self._delete(part)

    def reconcile(self, documents: Mapping[int, int]) -> list[int]:
        """Compare with the parts that are there; those whose ids have to be added again.

        Args:
            documents: of each part that is there, how many it has.
        """
        with self._guarded():
            found = dict(self._connection.execute("SELECT number, documents FROM part"))
            wrong = [part for part, count in found.items() if documents.get(part) != count]
            with self._transaction():
                for part in wrong:
                    self._delete(part)
        return sorted(part for part in documents if part in wrong or part not in found)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _open(self) -> None:
        if self._path is not None:
            self._connect(self._path, "DELETE")
            if not self._is_of_this_boot():
                self.close()
                remove(self._path)
                self._connect(self._path, "DELETE")
                self._is_of_this_boot()
            return
        # Not a temporary database of SQLite's: this one keeps those in memory.
        descriptor, name = tempfile.mkstemp(suffix=".ids")
        os.close(descriptor)
        try:
            self._connect(Path(name), "MEMORY")
        finally:
            # It lives as long as it is open, and needs no name.
            Path(name).unlink()

    def _connect(self, path: Path, journal: str) -> None:
        self._connection: Any = sqlite.connect(str(path), check_same_thread=False)
        self._connection.isolation_level = None
        with self._guarded():
            self._connection.execute(f"PRAGMA journal_mode={journal}")
            self._connection.execute("PRAGMA synchronous=OFF")
            for table in _TABLES:
                self._connection.execute(table)

    def _is_of_this_boot(self) -> bool:
        """Whether it was written since the last boot, also when nothing was written yet."""
        boot = _BOOT.read_text().strip()
        with self._guarded():
            found = self._connection.execute("SELECT id FROM boot").fetchone()
            if found is None:
                self._connection.execute("INSERT INTO boot VALUES (?)", (boot,))
        return found is None or found[0] == boot

    def _delete(self, part: int) -> None:
        self._connection.execute("DELETE FROM id WHERE part = ?", (part,))
        self._connection.execute("DELETE FROM part WHERE number = ?", (part,))

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
