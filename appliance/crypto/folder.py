"""One folder of an object store, local or remote, in which a file appears whole or not at all.

Rules kept here: a new file is written under a name of its own kind (`.<file>.<random>.partial`),
made durable, and renamed; on a local file system that is fsync of the file, rename, fsync of the
folder, and links are never followed. A full disk is one clear sentence.

Called by `appliance.crypto.artifacts`. Knows nothing about keys: what it stores is sealed by its
caller.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from fsspec import AbstractFileSystem

from appliance.core.errors import InvalidInput, NotFound, StoreFull, Tampered
from appliance.core.files import sync_dir

Moved = Callable[[], None]
SYNC_BYTES = 1 << 28
"""Bytes of a watched file that are written before they are synced: 13 seconds at 20 MB/s."""

PARTIAL = re.compile(r"\.[A-Za-z0-9._-]+\.[0-9a-f]{16}\.partial")


class NewFile:
    """A file on its way: `write` all of it, then `commit` or `discard`."""

    def __init__(self, folder: Folder, file: str, raw: BinaryIO, partial: str) -> None:
        self._raw = raw
        self._folder = folder
        self._file = file
        self._partial = partial

    def write(self, data: bytes | memoryview, /) -> int:
        """Append all the bytes; returns how many."""
        view = memoryview(data)
        with self._folder.guarded(self._file):
            while view:
                # An unbuffered file may take less than it is given.
                view = view[self._raw.write(view) :]
        return len(data)

    def commit(self) -> None:
        """Make it durable and give it its name; an older file of that name is replaced."""
        with self._folder.guarded(self._file):
            self._folder.publish(self._raw, self._partial, self._file)

    def discard(self) -> None:
        """Drop it."""
        with contextlib.suppress(OSError):
            self._raw.close()
        self._folder.remove(self._partial)


class _Watched:
    """A file that tells somebody each time its bytes move.

    What is written to a local disk moves only when it is synced, which may take minutes for all of
    a large file: so it is synced on the way.
    """

    def __init__(self, raw: Any, moved: Moved, *, local: bool) -> None:  # noqa: ANN401 - whatever a file system opens
        self._raw = raw
        self._moved = moved
        self._local = local
        self._dirty = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - everything else is the file's own
        return getattr(self._raw, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._raw.close()

    def write(self, data: bytes | memoryview, /) -> int:
        written: int = self._raw.write(data)
        self._dirty += written
        if self._local and self._dirty >= SYNC_BYTES:
            os.fdatasync(self._raw.fileno())
            self._dirty = 0
        self._moved()
        return written

    def read(self, size: int = -1, /) -> bytes:
        data: bytes = self._raw.read(size)
        self._moved()
        return data

    def readinto(self, target: memoryview, /) -> int | None:
        count: int | None = self._raw.readinto(target)
        self._moved()
        return count


class Folder:
    """A folder of a file system.

    Args:
        fs: where it is.
        path: of the folder on `fs`; a local one may begin with `file://`.
        moved: called whenever bytes of a file are read or written, so that somebody who watches a
            long transfer sees it go on.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, moved: Moved | None = None) -> None:
        protocols = (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
        self._fs = fs
        self._path = path.rstrip("/")
        self._moved = moved
        self._local = Path(path.removeprefix("file://")) if "file" in protocols else None
        if self._local is not None and not self._local.is_absolute():
            raise InvalidInput(f"{path} is not an absolute path; give the folder from the root on.")

    def __str__(self) -> str:
        """The path."""
        return self._path

    @contextlib.contextmanager
    def guarded(self, file: str) -> Iterator[None]:
        """Turn a full disk into `StoreFull`."""
        try:
            yield
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            # Whoever hears this may be far away: no path of the server.
            raise StoreFull(
                f"no space is left for {file} in the object store: free some"
            ) from error

    def create(self, file: str) -> NewFile:
        """Begin a file; the folder and those above it are made when they are missing."""
        partial = f".{file}.{secrets.token_hex(8)}.partial"
        with self.guarded(file):
            if self._local is None:
                self._fs.makedirs(self._path, exist_ok=True)
                remote = self._watched(self._fs.open(self._full(partial), "wb"))
                return NewFile(self, file, remote, partial)
            _make_durable_dir(self._local)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._local / partial, flags, 0o600)
            raw = self._watched(os.fdopen(descriptor, "wb", buffering=0))
            return NewFile(self, file, raw, partial)

    def publish(self, raw: BinaryIO, partial: str, file: str) -> None:
        """Close `raw` and rename its file; only `NewFile.commit` calls this."""
        if self._local is None:
            raw.close()
            self._fs.mv(self._full(partial), self._full(file))
            return
        os.fsync(raw.fileno())
        raw.close()
        (self._local / partial).replace(self._local / file)
        sync_dir(self._local)

    def list(self) -> dict[str, int | None]:
        """Every name in the folder with its size in bytes, None for what is no plain file.

        Empty when there is no folder.
        """
        if self._local is not None:
            return self._list_local(self._local)
        self._fs.invalidate_cache(self._path)
        try:
            found = self._fs.ls(self._path, detail=True)
        except FileNotFoundError:
            return {}
        own = self._path.strip("/")
        return {
            entry["name"].rstrip("/").rpartition("/")[2]: entry["size"]
            if entry["type"] == "file"
            else None
            for entry in found
            if entry["name"].strip("/") != own
        }

    def open(self, file: str) -> BinaryIO:
        """Open for reading, unbuffered when local; the caller closes it.

        Raises:
            NotFound: there is no such file.
            Tampered: there is something else than a plain file.
        """
        try:
            if self._local is None:
                return self._watched(self._fs.open(self._full(file), "rb"))
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self._local / file, flags)
        except FileNotFoundError as error:
            raise NotFound(f"There is no {file} in {self}.", path=f"{self}/{file}") from error
        except OSError as error:
            # What a link, a socket or a device without a driver answers.
            if error.errno not in {errno.ELOOP, errno.ENXIO, errno.ENODEV}:
                raise
            raise self._not_plain(file) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._not_plain(file)
        return self._watched(os.fdopen(descriptor, "rb", buffering=0))

    def remove(self, file: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self._local is None:
                self._fs.rm_file(self._full(file))
            else:
                (self._local / file).unlink()

    def _watched(self, raw: Any) -> BinaryIO:  # noqa: ANN401 - whatever a file system opens
        if self._moved is not None:
            raw = _Watched(raw, self._moved, local=self._local is not None)
        return cast("BinaryIO", raw)

    def _not_plain(self, file: str) -> Tampered:
        return Tampered(
            f"{file} in {self} is not a plain file. Restore it from a backup.", object=file
        )

    def _full(self, name: str) -> str:
        return f"{self._path}/{name}"

    @staticmethod
    def _list_local(path: Path) -> dict[str, int | None]:
        try:
            with os.scandir(path) as found:
                return {
                    entry.name: entry.stat(follow_symlinks=False).st_size
                    if entry.is_file(follow_symlinks=False)
                    else None
                    for entry in found
                }
        except FileNotFoundError:
            return {}


def _make_durable_dir(path: Path) -> None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        sync_dir(folder.parent)
