"""Take a version out of the appliance into a folder: whole and checked, or nothing under its name.

Rules kept here:
* everything is written into a hidden folder beside the one that is wanted (`.NAME.download`, this
  user's alone), each file under another name until its digest is right; the wanted folder gets the
  files when all of them are there and were read back from the disk with the right digests;
* what was interrupted is gone on with by the same call: file by file and byte by byte, when it is
  the same content, and from the beginning when it is not;
* what may pass by itself (a link that breaks, a control plane that starts again, a limit of
  downloads at a time) is waited for; a right that was taken away is not;
* names come from the server and are checked: none leads out of the folder.

The attack: a server that is not ours writes where it likes. Called by the command.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from appliance.api.data.v1 import download_pb2
from appliance.core.errors import (
    AlreadyExists,
    ApplianceError,
    Conflict,
    Exhausted,
    FailedPrecondition,
    Tampered,
    Unavailable,
    Untrusted,
)
from appliance.core.files import (
    free_bytes,
    full_disk_is_exhausted,
    make_private_dir,
    sync_dir,
    write_durably,
)
from appliance.core.names import shown
from appliance.core.numbers import written
from appliance.core.waiting import Backoff
from appliance.crypto.manifest import FILE_NAME

PATIENCE = 120.0
"""Seconds without a byte after which a link that breaks is given up."""
FIRST_PAUSE, MAX_PAUSE = 0.2, 5.0
_READ_BYTES = 1 << 20
_STATE, _LOCK, _PARTIAL = ".state.json", ".lock", ".partial"

Advance = Callable[[int, int], None]
"""Told the bytes that are there, and those of all files."""
Open = Callable[[str, int], Iterator[download_pb2.DownloadPart]]
"""Begins the stream with a file (empty: the first) and an offset."""


@dataclass
class Downloaded:
    """What has come so far.

    Attributes:
        name: resource name of the version.
        manifest_digest: of its content.
        sizes: bytes by file, in the order in which they come.
        digests: SHA-256 by file, of those that are there whole.
    """

    name: str
    manifest_digest: str
    sizes: dict[str, int]
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())


def check_target(target: Path, *, force: bool) -> None:
    """Raise unless a version may be put into a folder: AlreadyExists, FailedPrecondition."""
    if not os.path.lexists(target):
        if not target.parent.is_dir():
            raise FailedPrecondition(
                f"there is no folder {target.parent}: make it first, or choose another"
            )
    elif target.is_symlink() or not target.is_dir():
        raise AlreadyExists(f"{target} is no folder: choose another name")
    elif not force and any(target.iterdir()):
        raise AlreadyExists(
            f"{target} holds something: choose another folder, or --force, which replaces files "
            "of the same names and leaves the others alone"
        )


class Download:
    """One version on its way into a folder; a context manager.

    Args:
        name: resource name of what is downloaded.
        target: the folder that is wanted.
        force: replace files of the same names there.
        say: told what is waited for.

    Raises AlreadyExists or FailedPrecondition when it cannot be put there.
    """

    def __init__(self, name: str, target: Path, *, force: bool, say: Callable[[str], None]) -> None:
        self.name = name
        self.target = target.absolute()
        self._force = force
        self._say = say
        check_target(self.target, force=force)
        self.folder = self.target.parent / f".{self.target.name}.download"
        make_private_dir(self.folder)
        self._lock = _locked(self.folder)
        self._state = self._read_state()

    def __enter__(self) -> Self:
        """The download itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let others go on with it; nothing stays when nothing has come."""
        if self._state is None:
            with contextlib.suppress(OSError):
                (self.folder / _LOCK).unlink()
                self.folder.rmdir()
        os.close(self._lock)

    @property
    def begun(self) -> bool:
        """Whether something has come, with which the same call goes on."""
        return self._state is not None and self.folder.is_dir()

    def run(
        self,
        begin: Open,
        advance: Advance = lambda _, __: None,
        *,
        patience: float = PATIENCE,
        pause: Callable[[float], None] = time.sleep,
    ) -> Downloaded:
        """Get what is missing, check all of it, and put it into the folder.

        Args:
            begin: the stream, from a file and an offset on.
            advance: called whenever bytes came.
            patience: seconds without progress for which a broken link is tried again.
            pause: waits so many seconds.

        Raises:
            Tampered: what came is not what was sent, twice.
            Exhausted: this disk is full, or there are too many downloads.
            ApplianceError: what the server said. What came is kept in all these cases.
        """
        failures, since, before = 0, time.monotonic(), -1
        backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)
        while True:
            try:
                self._receive(begin, advance)
                break
            except (Unavailable, Exhausted, _Again) as error:
                have = self._there()
                if have > before:
                    failures, since, before = 0, time.monotonic(), have
                    backoff.reset()
                failures += 1
                wait = _pause(error, failures, backoff)
                if wait is None or time.monotonic() - since + wait > patience:
                    raise
                if failures == 1:
                    self._say(f"{error.message}; trying again")
                pause(wait)
        state = self._known()
        self._verify(state)
        self._publish(state)
        return state

    def _receive(self, begin: Open, advance: Advance) -> None:
        """One stream, as far as it goes."""
        file, offset = self._next()
        if self._state is not None and not file:
            return
        parts = begin(file, offset)
        with _closing(parts):
            first = next(parts, None)
            if first is None or not first.HasField("listing"):
                raise Unavailable("the download ended before it began")
            self._take_listing(first.listing)
            expected, start = self._next()
            if (expected, start) != (file or expected, offset):
                raise _Again("the version on the server is another one than before")
            for name in list(self._known().sizes):
                if name not in self._known().digests:
                    self._take_file(name, parts, advance)

    def _take_listing(self, listing: download_pb2.DownloadListing) -> None:
        if listing.name != self.name:
            raise Tampered(f"the server sent {shown(listing.name)} instead of {self.name}")
        sizes = {each.file: each.size_bytes for each in listing.files}
        for name in sizes:
            if not FILE_NAME.fullmatch(name) or name.endswith(_PARTIAL):
                raise Tampered(f"the server named a file {shown(name)}, which no file is called")
        if not sizes or len(sizes) != len(listing.files) or min(sizes.values()) < 0:
            raise Tampered("the server sent a list of files that cannot be one")
        state = self._state
        if state is None or (state.manifest_digest, state.sizes) != (
            listing.manifest_digest,
            sizes,
        ):
            self._check_names(sizes)
            self._empty()
            self._state = Downloaded(listing.name, listing.manifest_digest, sizes)
            self._check_room(self._state.size)
            self._write_state()

    def _take_file(
        self,
        name: str,
        parts: Iterator[download_pb2.DownloadPart],
        advance: Advance,
    ) -> None:
        """The rest of one file, up to its end."""
        state, path = self._known(), self.folder / f"{name}{_PARTIAL}"
        before = sum(state.sizes[each] for each in state.digests)
        with full_disk_is_exhausted(path), open(path, "ab", opener=_private) as file:
            digest, size = _digest_of(path)
            for part in parts:
                if part.HasField("end"):
                    break
                digest.update(part.data)
                size += len(part.data)
                if size > state.sizes[name]:
                    self._refuse(path, f"{name} is longer than was said")
                file.write(part.data)
                advance(before + size, state.size)
            else:
                file.flush()
                raise Unavailable("the download ended early")
            file.flush()
            os.fsync(file.fileno())
        found = (part.end.file, part.end.size_bytes, part.end.sha256)
        if found != (name, size, digest.hexdigest()) or size != state.sizes[name]:
            self._refuse(path, f"{name} did not come as it was sent")
        path.rename(self.folder / name)
        sync_dir(self.folder)
        state.digests[name] = digest.hexdigest()
        self._write_state()

    def _refuse(self, path: Path, why: str) -> None:
        """Drop what came of a file: it comes again."""
        path.unlink()
        raise _Again(why)

    def _next(self) -> tuple[str, int]:
        """The file to go on with, and how much of it is there; no file before the first list."""
        if self._state is None:
            return "", 0
        for name in self._state.sizes:
            if name not in self._state.digests:
                path = self.folder / f"{name}{_PARTIAL}"
                return name, path.stat().st_size if path.exists() else 0
        return "", 0

    def _there(self) -> int:
        if self._state is None:
            return 0
        return sum(self._state.sizes[name] for name in self._state.digests) + self._next()[1]

    def _verify(self, state: Downloaded) -> None:
        """Read everything back. Raises Tampered for what this disk did not keep."""
        for name, expected in list(state.digests.items()):
            digest, size = _digest_of(self.folder / name)
            if (digest.hexdigest(), size) != (expected, state.sizes[name]):
                (self.folder / name).unlink(missing_ok=True)
                del state.digests[name]
                self._write_state()
                raise Tampered(
                    f"{self.folder / name} is not on the disk as it was written: look at that "
                    "disk, then repeat; what is right is not sent again"
                )

    def _publish(self, state: Downloaded) -> None:
        """Give the folder its files."""
        check_target(self.target, force=self._force)
        left = self.folder
        if not self.target.exists() or not any(self.target.iterdir()):
            # In one step: the folder is there with everything, or is not.
            self.folder.rename(self.target)
            left = self.target
        else:
            self._check_names(state.sizes)
            for name in state.sizes:
                (self.folder / name).replace(self.target / name)
            sync_dir(self.target)
        (left / _STATE).unlink()
        (left / _LOCK).unlink()
        if left is self.folder:
            self.folder.rmdir()
        sync_dir(self.target.parent)

    def _check_names(self, names: Iterable[str]) -> None:
        """Raise AlreadyExists where no file can take its name: before any of them is replaced."""
        for path in (self.target / name for name in names):
            if path.is_dir() and not path.is_symlink():
                raise AlreadyExists(f"{path} is a folder: move it, or choose another folder")

    def _known(self) -> Downloaded:
        if self._state is None:
            raise Unavailable("the download ended before it began")
        return self._state

    def _check_room(self, size: int) -> None:
        free = free_bytes(self.folder)
        if free < size:
            raise Exhausted(
                f"{self.name} has {written(size)} bytes, and the disk of {self.target.parent} has "
                f"room for {written(free)}: free some space, or choose another folder"
            )

    def _read_state(self) -> Downloaded | None:
        there = {path.name for path in self.folder.iterdir()} - {_LOCK}
        if there and _STATE not in there:
            # The state is written before the first byte.
            raise FailedPrecondition(
                f"{self.folder} is in the way, and no download made it: move it, or choose another "
                "folder"
            )
        if not there:
            return None
        try:
            state = Downloaded(**json.loads((self.folder / _STATE).read_text()))
        except (ValueError, TypeError):
            return None
        for name in set(state.digests) - there:
            del state.digests[name]
        return state if state.name == self.name else None

    def _write_state(self) -> None:
        text = json.dumps(vars(self._known()))
        write_durably(self.folder / _STATE, text.encode())

    def _empty(self) -> None:
        """Forget what came of another content; last the state, by which the folder is known."""
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == _STATE):
            if path.name != _LOCK:
                path.unlink()


class _Again(Tampered):
    """What came is dropped, and comes once more."""


def _pause(error: ApplianceError, failures: int, backoff: Backoff) -> float | None:
    """Seconds to wait before the same again; None when waiting does not help."""
    if isinstance(error, Untrusted):
        return None
    if isinstance(error, Exhausted):
        return error.retry_after
    if isinstance(error, _Again) and failures > 1:
        return None
    return backoff.failed()


def _private(path: str, flags: int) -> int:
    """Opens a file as this user's alone, also for a folder that others may read (`--force`)."""
    return os.open(path, flags, 0o600)


def _digest_of(path: Path) -> tuple[Any, int]:
    """SHA-256 so far, and the size, of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            size += len(piece)
    return digest, size


def _locked(folder: Path) -> int:
    """The lock of a folder. Raises Conflict when another command downloads into it."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise Conflict(
            f"another command downloads into {folder}: let it end, or choose another folder"
        ) from error
    return descriptor


@contextmanager
def _closing(parts: Iterator[Any]) -> Iterator[None]:
    """End the call with the block."""
    try:
        yield
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()
