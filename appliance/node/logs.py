"""The log file of one work: what its processes write, up to a size.

Rules kept here: at most two files of half the size each, the older one dropped; bearer tokens are
taken out; mode 0600; what a full disk does not take is lost, is counted, and the work goes on.
Called by the launcher.
"""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

from appliance.core.log import redact

_LONGEST_LINE = 1 << 16
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class CappedLog:
    """Appends to `path`, and keeps what was before it in `path.1`.

    Args:
        path: of the newer file.
        limit: bytes of both together.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._rest = b""
        self._file = _open(path)
        self._size = 0
        self._lost = 0

    def write(self, chunk: bytes) -> None:
        """Take what a process wrote; whole lines are kept at once."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        self._keep(b"".join(line + b"\n" for line in lines))

    def close(self) -> None:
        """Keep what is left."""
        if self._rest:
            self._keep(self._rest + b"\n")
            self._rest = b""
        self._file.close()

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        data = redact(data.decode("utf-8", "replace")).encode()
        note = b"(%d bytes were lost here: the disk was full)\n" % self._lost if self._lost else b""
        try:
            self._append(note + data)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            # Whoever reads the output of a work goes on, or the work would stop at a full pipe.
            self._lost += len(data)
        else:
            self._lost = 0

    def _append(self, data: bytes) -> None:
        if self._size + len(data) > self._limit // 2 and self._size:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = _open(self._path)
            self._size = 0
        self._file.write(data[: self._limit // 2])
        self._size += len(data)


def _open(path: Path) -> io.FileIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return io.FileIO(os.open(path, flags, 0o600), "w")
