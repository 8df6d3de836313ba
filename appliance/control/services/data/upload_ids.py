"""The ids of documents of every upload under way: one file for each, opened when it is needed.

Rules kept here: one thread at a time is in a file; at the first use after a start a file is
compared with the parts that are there, and what is not in it is read out of them again. While one
thread does that, which may take minutes, nobody else waits for it.

Called by `services.data.upload_parts` and `services.data.upload_tasks`.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.control.store import document_ids
from appliance.control.store.document_ids import DocumentIds
from appliance.core.errors import Exhausted, Unavailable
from appliance.core.files import make_private_dir
from appliance.crypto.keys import derive_key
from appliance.crypto.sealed_reader import SealedReader

PURPOSE = "ids of documents on their way in"
_SUFFIX = ".ids"


@dataclass(frozen=True)
class PartsThere:
    """The parts of an upload that are there.

    Args:
        uid: of the upload.
        key: the data key of its version (secret).
        documents: says how many documents each has.
        read: opens one.
    """

    uid: str
    key: bytes = field(repr=False)
    documents: Callable[[], Mapping[int, int]]
    read: Callable[[int], SealedReader]


class UploadIds:
    """Files in one folder.

    Args:
        folder: private, made when it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._known: set[str] = set()
        """Those that were compared with their parts."""
        self._comparing: set[str] = set()

    def begin(self, uid: str) -> None:
        """A new upload: there is nothing to compare."""
        self._known.add(uid)

    def check_ready(self, uid: str) -> None:
        """Raise Unavailable while the ids of an upload are compared with its parts.

        That may take minutes, in which no other thread of a bounded number waits for it.
        """
        if uid in self._comparing:
            raise Unavailable(
                "the documents of this upload are compared with what is known of them, as after "
                "each start of the control plane: repeat the part",
                retry_after=2.0,
                in_progress="ids of documents",
            )

    def add(self, parts: PartsThere, part: int, ids: Sequence[str]) -> int | None:
        """Take in the ids of a part, all or none; the place of one that is there already.

        Args:
            parts: those that are there.
            part: its number.
            ids: of its documents.

        Raises Exhausted, Unavailable.
        """
        with self._compared(parts), self._opened(parts) as file:
            return file.add(part, ids)

    def forget(self, parts: PartsThere, part: int) -> None:
        """Drop the ids of a part that came to nothing; when that fails, at the next comparison."""
        try:
            with self._opened(parts) as file:
                file.forget(part)
        except (Exhausted, Unavailable):
            self.compare_at_next_use(parts.uid)

    def compare_at_next_use(self, uid: str) -> None:
        """What is known may be wrong: compare at the next use."""
        self._known.discard(uid)

    def check(self, parts: PartsThere) -> str:
        """Compare with all parts once no more come; an id that two documents have, or nothing."""
        with self._opened(parts) as file:
            return _compare(parts, file)

    def remove(self, uid: str) -> None:
        """The upload is over."""
        with self._lock:
            self._locks.pop(uid, None)
        self._known.discard(uid)
        document_ids.remove(self._path(uid))

    def keep_only(self, uids: Collection[str]) -> None:
        """At start: remove the files of all other uploads."""
        for path in self._folder.glob(f"*{_SUFFIX}*"):
            if path.name.partition(".")[0] not in uids:
                path.unlink(missing_ok=True)

    def _path(self, uid: str) -> Path:
        return self._folder / f"{uid}{_SUFFIX}"

    @contextlib.contextmanager
    def _compared(self, parts: PartsThere) -> Iterator[None]:
        """What is known is compared, by one thread. Raises Unavailable meanwhile."""
        uid = parts.uid
        with self._lock:
            self.check_ready(uid)
            if uid not in self._known:
                self._comparing.add(uid)
            compare = uid in self._comparing
        if compare:
            try:
                with self._opened(parts) as file:
                    _compare(parts, file)
                self._known.add(uid)
            finally:
                self._comparing.discard(uid)
        yield

    @contextlib.contextmanager
    def _opened(self, parts: PartsThere) -> Iterator[DocumentIds]:
        with self._lock:
            lock = self._locks.setdefault(parts.uid, threading.Lock())
        with lock:
            make_private_dir(self._folder)
            try:
                key = derive_key(parts.key, PURPOSE)
                with contextlib.closing(DocumentIds(self._path(parts.uid), key)) as file:
                    yield file
            except Unavailable:
                self._known.discard(parts.uid)
                raise


def _compare(parts: PartsThere, file: DocumentIds) -> str:
    """Add what is missing, remove what is not there; an id that two documents have, or nothing."""
    for part in file.reconcile(parts.documents()):
        with parts.read(part) as sealed:
            ids = [str(json.loads(line)["id"]) for line in sealed]
        taken = file.add(part, ids)
        if taken is not None:
            return ids[taken]
    return ""
