"""A file that only grows, by one writer who knows how it must look.

Rules kept here:
* the writer knows the file by device, inode, length and time of change; what differs from that was
  done by somebody else, and the file is `Tampered` from then on;
* after a failed write or sync the file is cut back to what was durable before, under another
  descriptor, and those bytes are asked of the disk again: nothing that failed is ever synced anew,
  so no sync can say that it was written.

The attack: records removed, cut off or replaced while the process runs and holds the file open, so
that it goes on writing where nobody can read. Called by `segments` alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path

from appliance.core.errors import Tampered
from appliance.core.files import free_bytes

MIN_RESERVE = 4 << 20
"""Bytes; how many there should be is a setting of the control plane (`audit.reserve_bytes`)."""
SHARE = 64
"""A reserve takes one in so many bytes of its disk."""
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class FileIdentity:
    """How a file or folder looks to its owner."""

    device: int
    inode: int
    size: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileIdentity:
        """As the kernel says it now."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def file_identity(path: Path) -> FileIdentity | None:
    """How the thing under this name looks; None when there is nothing."""
    try:
        return FileIdentity.of(path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return None


def expect(path: Path, known: FileIdentity) -> None:
    """Raise Tampered when the file under this name is not what is known of it."""
    found = file_identity(path)
    if found == known:
        return
    if found is None:
        how = "was removed"
    elif (found.device, found.inode) != (known.device, known.inode):
        how = "was replaced by another file"
    elif found.size < known.size:
        how = "was cut off"
    else:
        how = "was changed by somebody else"
    raise Tampered(f"{path.name} {how} while the control plane used it", object=path.name)


class GrowingFile:
    """An open file, made if it is new. Its folder is made durable by who calls.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, _APPEND | os.O_CREAT, 0o600)
        self._known = FileIdentity.of(os.fstat(self._descriptor))

    @property
    def size(self) -> int:
        """Bytes that are durable."""
        return self._known.size

    @property
    def known(self) -> FileIdentity:
        """How it looked after the last write."""
        return self._known

    def check(self) -> None:
        """Raise Tampered when somebody else touched it."""
        expect(self.path, self._known)

    def append(self, data: bytes) -> None:
        """Write and make durable. After an OSError call `roll_back` before anything else."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.fdatasync(self._descriptor)
        found = FileIdentity.of(os.fstat(self._descriptor))
        if found.size != self._known.size + len(data):
            raise Tampered(
                f"{self.path.name} was changed by somebody else while the control plane used it",
                object=self.path.name,
            )
        self._known = found

    def roll_back(self) -> None:
        """Cut off what a failed `append` left, and forget what the kernel remembers of the file.

        Raises Tampered when it is another file by now, OSError when even this fails.
        """
        descriptor = os.open(self.path, _APPEND)
        try:
            found = FileIdentity.of(os.fstat(descriptor))
            if (found.device, found.inode) != (self._known.device, self._known.inode):
                expect(self.path, self._known)
            if found.size < self._known.size:
                expect(self.path, self._known)
            os.ftruncate(descriptor, self._known.size)
            os.fdatasync(descriptor)
            # What is read from here on comes from the disk.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except BaseException:
            os.close(descriptor)
            raise
        # The old one may report its failed bytes once more; that is over.
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = descriptor
        self._known = FileIdentity.of(os.fstat(descriptor))

    def close(self) -> None:
        """Close it. Everything appended is durable already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Reserve:
    """Room on the disk that is kept for records of what has already happened.

    Args:
        path: of the file that holds the room.
        size: bytes that are wanted. It is less on a small disk, or one that has less than twice
            that free, but not less than `least`; the next process tries again.
        least: bytes.
    """

    def __init__(self, path: Path, size: int, least: int) -> None:
        self._path = path
        # Left by the process before, perhaps smaller.
        held = path.stat().st_blocks * 512 if path.exists() else 0
        found = os.statvfs(path.parent)
        self.size = fitting_size(size, least, found.f_blocks * found.f_frsize, self._room(), held)
        """Bytes that are kept."""
        self._held = held >= self.size
        self._there = 0 if self._held else held
        """Bytes of a smaller one from before, which become part of this one."""

    def take(self) -> None:
        """Hold the room, when the disk has as much again.

        The other half is what others write next: without it, room that was just given up would
        look like a disk that is no longer full. Raises OSError; what is held already stays held.
        """
        # Asked first: an attempt that fails would take the last room from others for a moment.
        wanted = self.size if self._held else 2 * self.size - self._there
        if self._room() < wanted:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        descriptor = os.open(self._path, _APPEND | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, 2 * self.size)
            self._held, self._there = True, 0
        finally:
            os.ftruncate(descriptor, self.size if self._held else 0)
            os.close(descriptor)

    def is_needed(self) -> bool:
        """Whether the disk is as good as full: it has less than half of the room held here.

        `take` asks for all of it once more, so the two do not follow each other every second.
        """
        return self._room() < self.size // 2

    def _room(self) -> int:
        return free_bytes(self._path.parent)

    def release(self) -> None:
        """Give the room to what is written next."""
        self._held, self._there = False, 0
        self._path.unlink(missing_ok=True)


def fitting_size(size: int, least: int, disk: int, free: int, held: int) -> int:
    """How large a reserve is: half as large again and again, until the disk has as much beside it.

    Args:
        size: that is wanted.
        least: that is tried in any case.
        disk: bytes of all of it; a reserve takes one in `SHARE` of them at most.
        free: bytes on it.
        held: bytes of the reserve that is there.
    """
    while size // 2 >= least and (size > disk // SHARE or free + held < 2 * size):
        size //= 2
    return size
