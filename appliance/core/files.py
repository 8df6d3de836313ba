"""Files that survive a power cut, and files that hold secrets.

Rules kept here:
* a file appears under its name whole or not at all: temporary file, fsync, rename, fsync of the
  folder;
* a secret is read only from a regular file that the running user owns and nobody else can read or
  write, and never through a symbolic link (the check is made on the opened file, not on its name);
* what is private has its mode whatever the umask of the one who starts us;
* a full disk is one clear sentence, the old file stays as it was, and no half file is left.

The attack: a key file left readable to the group, or a link planted where the service looks for its
key. Called by whatever writes keys, certificates, configuration and manifests to a local folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from appliance.core.errors import Exhausted, FailedPrecondition

FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error numbers that say that a disk, or what one may use of it, is full."""


@contextlib.contextmanager
def full_disk_is_exhausted(path: Path) -> Iterator[None]:
    """Within it, a full disk is the error Exhausted, which names `path` and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise Exhausted(
                f"no space left for {path}: free some space, then repeat", path=path
            ) from error
        raise


def sync_dir(path: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the bytes to a descriptor, also where the kernel takes fewer at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write `data` under `path`, durable when this returns.

    An older file there is replaced in one step.

    Raises Exhausted when the disk is full and OSError for other failures; then the older file is
    untouched.
    """
    with durable_file(path, mode) as descriptor:
        write_all(descriptor, data)


@contextlib.contextmanager
def durable_file(path: Path, mode: int = 0o600) -> Iterator[int]:
    """A new file, open for writing, that gets its name when the block ends without an error.

    For what must not be made before there is a place for it. Raises as `write_durably`; after an
    error nothing is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with full_disk_is_exhausted(path):
        descriptor = os.open(temporary, flags, mode)
        try:
            try:
                os.fchmod(descriptor, mode)
                yield descriptor
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_dir(path.parent)


def named_streams(parts: Iterable[tuple[str, Path]]) -> Iterator[tuple[str, BinaryIO]]:
    """Files under names, each opened when its turn comes and closed before the next one."""
    for name, path in parts:
        with path.open("rb") as stream:
            yield name, stream


def last_line(path: Path) -> bytes:
    """The last line of a file, without the line end; reads from the back. Raises OSError."""
    reach = 1 << 14
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        while True:
            stream.seek(max(0, size - reach))
            _, found, last = stream.read().rstrip(b"\n").rpartition(b"\n")
            if found or reach >= size:
                return last
            reach *= 16


def free_bytes(folder: Path) -> int:
    """What an ordinary user can still write on the disk of a folder. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def open_private(path: Path, flags: int) -> int:
    """Open a file of this user alone, mode 0600, made if it is new; the descriptor.

    One that others could read or write, left by an older version or made by hand, is closed to
    them.

    Args:
        path: of the file; its folder exists.
        flags: of open(2), such as `os.O_WRONLY | os.O_APPEND`.

    Raises OSError, also when a symbolic link stands there.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_secret(path: Path) -> bytes:
    """The bytes of a secret file.

    Raises FailedPrecondition when it is missing or others could have read it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise FailedPrecondition(f"there is no file {path}", path=path) from error
    except PermissionError as error:
        raise FailedPrecondition(
            f"{path} cannot be read by this user: check its owner and mode", path=path
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FailedPrecondition(
                f"{path} is a symbolic link: put the file itself there", path=path
            ) from error
        raise
    try:
        _check_private(path, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _check_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise FailedPrecondition(f"{path} is not a regular file", path=path)
    _check_owner_and_mode(path, found, "600")


def _check_owner_and_mode(path: Path, found: os.stat_result, wanted: str) -> None:
    if found.st_uid != os.geteuid():
        raise FailedPrecondition(
            f"{path} belongs to user {found.st_uid}, not to user {os.geteuid()} who runs this: "
            f"chown it or run as its owner",
            path=path,
        )
    if found.st_mode & 0o077:
        raise FailedPrecondition(
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):o}): "
            f"`chmod {wanted} {path}`, and replace the secret if it may have been read",
            path=path,
        )


def make_private_dir(path: Path) -> Path:
    """Create a folder of mode 0700 (and missing parents) or check the one that is there.

    Returns it.

    Raises FailedPrecondition when it is no folder, a link, owned by somebody else or open to
    others.
    """
    path = Path(path)
    with full_disk_is_exhausted(path):
        for missing in reversed([p for p in (path, *path.parents) if not p.exists()]):
            with contextlib.suppress(FileExistsError):
                missing.mkdir(mode=0o700)
                sync_dir(missing.parent)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise FailedPrecondition(f"{path} is not a folder", path=path)
    _check_owner_and_mode(path, found, "700")
    return path
