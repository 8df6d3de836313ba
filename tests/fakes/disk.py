"""A small disk of its own, to be filled."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of this size on a folder; skips the test when this user may not mount one."""
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leave no byte on a disk."""
    filler = disk / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        # At once, so that nobody is done before the disk is full.
        found = os.statvfs(disk)
        os.posix_fallocate(file.fileno(), 0, max(1, (found.f_bavail - 64) * found.f_frsize))
    for size in (1 << 20, 1 << 12, 1):
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * size)
    assert os.statvfs(disk).f_bavail == 0
    try:
        yield
    finally:
        filler.unlink()
