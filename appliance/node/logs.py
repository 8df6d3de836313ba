"""The log file of one work: what its processes write, up to a size; and the last of it in memory.

Rules kept here:
* at most two files of half the size each, the older one dropped; mode 0600;
* bearer tokens and the keys of the work's own orders are taken out before anything is kept, also
  where one comes in two pieces;
* what a full disk, or a folder that is gone, does not take is lost, is counted, and the work goes
  on; the last lines are kept in any case;
* the event loop waits for no disk: one thread writes all logs. No more of an output is read while
  that writes what was read of it before, so all of it is kept, in its order and in bounded memory;
  a work that writes faster than its disk waits at its own pipe.

Called by the launcher.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import io
import os
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from appliance.core.files import FULL_DISK
from appliance.core.log import TOKEN_BEGIN, last_lines, redact

LAST_BYTES = 8 << 10
"""Bytes of output that are kept in memory, for whoever may read the log of a job."""

CHUNK_BYTES = 1 << 16
"""Bytes of output that are written at once; a reader with this limit holds twice as many more."""

_MAX_LINE = 1 << 16
_MAX_SECRET = 1 << 10


@dataclass(frozen=True)
class LastOutput:
    """The end of what a work wrote, at most `LAST_BYTES` of UTF-8, and whether there was more."""

    text: str = ""
    cut: bool = False


class CappedLog:
    """Appends to `path`, and keeps what was before it in `path.1`.

    Args:
        path: of the newer file.
        limit: bytes of both together.
        secrets: texts that must not be kept, at most a kilobyte each.
    """

    def __init__(self, path: Path, limit: int, secrets: Iterable[str] = ()) -> None:
        self._path = path
        self._limit = limit
        self._secrets = tuple(secrets)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._last = ""
        self._written = 0
        self._file = _open(path)
        self._size = 0
        self._lost = 0
        self._why = ""

    def write(self, chunk: bytes) -> None:
        """Take what a process wrote; whole lines are kept at once."""
        text = self._rest + self._decoder.decode(chunk)
        lines, newline, self._rest = text.rpartition("\n")
        self._keep(self._clean(lines + newline))
        if len(self._rest) > _MAX_LINE:
            place = self._between_secrets(self._rest)
            self._keep(self._clean(self._rest[:place]))
            self._rest = self._rest[place:]

    def close(self) -> None:
        """Keep what is left."""
        self._rest += self._decoder.decode(b"", final=True)
        if self._rest:
            self._keep(self._clean(self._rest) + "\n")
            self._rest = ""
        self._file.close()

    @property
    def last(self) -> LastOutput:
        """The last lines that were kept, once the log is closed."""
        text = last_lines(self._last, LAST_BYTES)
        return LastOutput(text, cut=len(text) < self._written)

    def _between_secrets(self, text: str) -> int:
        """Where a text is cut so that a secret is on one side, also one whose end is to come."""
        place = len(text) - _MAX_SECRET
        begins = [place]
        for secret in (*self._secrets, TOKEN_BEGIN):
            # Those that begin before the place; a token is at most as long as any secret.
            length = _MAX_SECRET if secret == TOKEN_BEGIN else len(secret)
            found = text.find(secret, place - length + 1, place + len(secret) - 1)
            begins += [found] if found >= 0 else []
        return min(begins)

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return redact(text)

    def _keep(self, text: str) -> None:
        if not text:
            return
        self._written += len(text)
        self._last = (self._last + text)[-LAST_BYTES:]
        data = text.encode()
        note = f"({self._lost} bytes were lost here: {self._why})\n" if self._lost else ""
        try:
            self._append(note.encode() + data)
        except OSError as error:
            # Whoever reads the output of a work goes on, or the work would stop at a full pipe.
            self._lost += len(data)
            self._why = "the disk was full" if error.errno in FULL_DISK else error.strerror or ""
        else:
            self._lost = 0

    def _append(self, data: bytes) -> None:
        if self._size + len(data) > self._limit // 2 and self._size:
            self._file.close()
            # A try before may have come so far, and found no room for the new one.
            with contextlib.suppress(FileNotFoundError):
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = _open(self._path)
            self._size = 0
        self._file.write(data[: self._limit // 2])
        self._size += len(data)


class WorkOutput:
    """Brings what the processes of one work write into its log; for the event loop.

    Args:
        log: of the work.
        disk: one thread, which writes the logs of all works, a chunk of each in turn.
    """

    def __init__(self, log: CappedLog, disk: Executor) -> None:
        self._log = log
        self._disk = disk
        self._read = self._written = 0

    async def copy(self, pipe: asyncio.StreamReader) -> None:
        """Copy until the pipe ends. Cancel it only when it is not `busy`, or the rest is lost."""
        loop = asyncio.get_running_loop()
        while chunk := await pipe.read(CHUNK_BYTES):
            self._read += len(chunk)
            await asyncio.shield(loop.run_in_executor(self._disk, self._log.write, chunk))
            self._written += len(chunk)

    @property
    def written(self) -> int:
        """Bytes that the log has taken, or counted as lost."""
        return self._written

    @property
    def busy(self) -> bool:
        """Whether something that was read is not written yet."""
        return self._written < self._read

    async def close(self) -> None:
        """Close the log, after all that was read before; once `copy` is over."""
        await asyncio.get_running_loop().run_in_executor(self._disk, self._log.close)

    @property
    def last(self) -> LastOutput:
        """The last lines, once this is closed."""
        return self._log.last


def _open(path: Path) -> io.FileIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return io.FileIO(os.open(path, flags, 0o600), "w")
