"""Files that commands write for a person."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from appliance.core.errors import AlreadyExists, FailedPrecondition
from appliance.core.files import durable_file

_OTHER = "choose another place for the file"


@contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """A file of this user alone, which gets its name when the block ends without an error.

    Raises FailedPrecondition when it cannot be made there.
    """
    with _opened(path, 0o600) as file:
        yield file


@contextmanager
def new_secret(path: Path) -> Iterator[BinaryIO]:
    """The same for a secret that is shown once: open it before the secret is made.

    A secret that is made first, and cannot be written then, is lost and stays good.

    Raises AlreadyExists when something is there: it may be a secret that is still needed.
    """
    if os.path.lexists(path):
        raise AlreadyExists(f"{path} holds something: choose another name")
    with private_file(path) as file:
        yield file


def write_public(path: Path, data: bytes) -> None:
    """Write what everybody may read, whole or not at all."""
    with _opened(path, 0o644) as file:
        file.write(data)


@contextmanager
def _opened(path: Path, mode: int) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(durable_file(path.absolute(), mode))
        except OSError as error:
            raise FailedPrecondition(_why_not(path.absolute().parent, error), path=path) from error
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            yield file


def _why_not(folder: Path, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"there is no folder {folder}: make it first, or {_OTHER}"
    if error.errno == errno.ENOTDIR:
        return f"{folder} is no folder: {_OTHER}"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"this user may not write in the folder {folder}: {_OTHER}"
    return f"nothing can be written in the folder {folder} ({error.strerror}): {_OTHER}"
