"""Where sealed objects lie.

Rules kept here: the location is one fsspec URL; a folder is `<project>/<uid>` and is made from
checked ids alone, so nothing can point outside the root. Everything below the root is sealed; the
storage itself is not trusted. What is deleted loses its manifest first, so that half a deletion is
never half an artifact.

Called by the services that make, read and delete artifacts, and by the node, which gets the folder
in its orders.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs

from appliance.core.errors import InvalidInput, StoreFull, Unavailable
from appliance.core.files import make_private_dir
from appliance.core.names import is_id, shown
from appliance.crypto.artifacts import MANIFEST

LOCAL = frozenset({"file", "local"})
START_SECONDS = 10.0
MIN_FREE = 256 << 20
"""Bytes of a local store that uploads leave."""
MARK = "store.txt"
"""A file in the root by which the store is known from the folder under it."""


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObjectStore:
    """An open object store: `filesystem`, the path of its root there, and the URL it came from."""

    url: str
    filesystem: fsspec.AbstractFileSystem
    root: str

    def folder(self, project: str, uid: str) -> str:
        """Folder of an artifact version, relative to the root: `<project>/<uid>`."""
        for part in (project, uid):
            if not is_id(part):
                raise InvalidInput(f"{shown(part)} cannot be part of a folder")
        return f"{project}/{uid}"

    def path(self, folder: str) -> str:
        """Path of a folder in `filesystem`."""
        return f"{self.root}/{folder}"

    def folders(self, parent: str) -> list[str]:
        """What lies directly in a folder, relative to the root; nothing when it is not there."""
        path = self.path(parent)
        self.filesystem.invalidate_cache(path)
        try:
            found = self.filesystem.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [f"{parent}/{str(each).rstrip('/').rpartition('/')[2]}" for each in found]

    def is_whole(self, folder: str) -> bool:
        """Whether a folder has its manifest."""
        path = self.path(folder)
        self.filesystem.invalidate_cache(path)
        return bool(self.filesystem.exists(f"{path}/{MANIFEST}"))

    def delete(self, folder: str) -> None:
        """Delete a folder and all in it. Raises OSError; then what is left can be deleted again.

        Also when somebody else changed it at the same time.
        """
        path = self.path(folder)
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(f"{path}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(path, recursive=True)
        self.filesystem.invalidate_cache(path)
        if self.filesystem.exists(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), folder)

    def free_bytes(self) -> int | None:
        """Bytes that can still be written; None where that cannot be known."""
        if not self.is_local:
            return None
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def check_free(self) -> None:
        """Raise StoreFull when so little space is left that uploads take no more of it.

        The state and the audit log may lie on the same disk: without space for a record, nothing
        could be aborted or deleted. Asked before every few megabytes.
        """
        free = self.free_bytes()
        if free is not None and free < MIN_FREE:
            raise StoreFull(
                f"the object store has less than {MIN_FREE >> 20} MiB left, which uploads do not "
                "take: free some, for example with `appliance upload abort`, then go on"
            )

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this server's own, or mounted there."""
        protocol = self.filesystem.protocol
        return bool(LOCAL.intersection((protocol,) if isinstance(protocol, str) else protocol))

    def holds_whole(self, folder: str) -> bool:
        """Whether there is an artifact in a folder, or one or two levels below it."""
        below = self.folders(folder)
        return self.is_whole(folder) or any(
            self.is_whole(each) or any(map(self.is_whole, self.folders(each))) for each in below
        )

    def check_mounted(self) -> None:
        """Raise Unavailable when what lies at the root is not this store.

        Such as the empty folder under a file system that is not mounted: then nothing that is
        missing is lost, and nothing is to be judged by that or deleted.
        """
        self.filesystem.invalidate_cache(self.root)
        if not self.filesystem.exists(self.path(MARK)):
            raise Unavailable(
                f"the object store is not there: {MARK} is missing in it. Mount its file system; if"
                " the store was moved, that file belongs to it",
                retry_after=5.0,
            )

    def mark(self, known: Sequence[str]) -> None:
        """Mark the root as this store, unless it is marked, or what is on record is not there.

        Args:
            known: folders of some artifacts on record.

        Raises Unavailable as `check_mounted`.
        """
        if known and not any(map(self.is_whole, known)):
            self.check_mounted()
            return
        if not self.filesystem.exists(self.path(MARK)):
            self.filesystem.pipe_file(self.path(MARK), b"This folder is an object store.\n")


def open_store(url: str) -> ObjectStore:
    """Open the store behind an fsspec URL such as `file:///var/lib/appliance/objects`.

    Raises InvalidInput when the URL names no known kind of storage, FailedPrecondition when a local
    folder is open to other users.
    """
    try:
        filesystem, root = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InvalidInput(f"{shown(url)} is not a storage location: {error}") from error
    store = ObjectStore(url, filesystem, root.rstrip("/"))
    if store.is_local:
        _make_private(Path(root))
    return store


def _make_private(root: Path) -> None:
    """Make and check the folder of the store; no longer than a healthy one takes.

    Raises FailedPrecondition when it is open to others. One that hangs is looked at by who needs
    it: the control plane starts without.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="store")
    made = pool.submit(make_private_dir, root)
    pool.shutdown(wait=False)
    done, _ = wait([made], START_SECONDS)
    if done:
        made.result()
    else:
        _logger.error("the object store does not answer: nothing in it can be read or written now")


def new_uid() -> str:
    """A new random 128-bit identifier, hexadecimal."""
    return secrets.token_hex(16)
