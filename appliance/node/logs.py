"""The log file of one work: what its processes write, up to a size; and the last of it in memory.

A line of the file has a head: its number, when it was read, and which rank wrote it (`-` for what
leads the ranks). What no disk took has numbers too, so that whoever reads sees that it is missing.

Rules kept here:
* at most two files of half the size each, the older one dropped; mode 0600;
* what one rank writes is a stream of its own: its lines are whole, however many ranks write;
* bearer tokens and the keys of the work's own orders are taken out before anything is kept, also
  where one comes in two pieces;
* what a full disk, or a folder that is gone, does not take is lost, is counted, and the work goes
  on; the last lines are kept in any case;
* the event loop waits for no disk: one thread writes all logs. No more of an output is read while
  that writes what was read of it before, so all of it is kept, in its order and in bounded memory;
  a work that writes faster than its disk waits at its own pipe.

Called by the launcher; read by `node.log_files`.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import datetime as dt
import errno
import io
import os
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from appliance.core.files import FULL_DISK
from appliance.core.log import TOKEN_BEGIN, last_lines, redact

LAST_BYTES = 8 << 10
"""Bytes of output that are kept in memory, for whoever may read the log of a job."""

CHUNK_BYTES = 1 << 16
"""Bytes of output that are written at once; a reader with this limit holds twice as many more."""

TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
"""How the head of a line says when it was read."""

_MAX_LINE = 1 << 16
_MAX_SECRET = 1 << 10


@dataclass(frozen=True)
class LastOutput:
    """The end of what a work wrote, at most `LAST_BYTES` of UTF-8, and whether there was more."""

    text: str = ""
    cut: bool = False


@dataclass
class _RankOutput:
    """What one rank, or what leads them, writes: the beginning of a line that goes on."""

    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    rest: str = ""


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
        self._streams: dict[int | None, _RankOutput] = {}
        self._number = 0
        self._torn = False
        self._last = ""
        self._written = 0
        self._file = _open(path)
        self._size = 0
        self._lost = 0
        self._why = ""

    def write(self, chunk: bytes, rank: int | None = None) -> None:
        """Take what a rank wrote, or what leads them; whole lines are kept at once."""
        stream = self._streams.setdefault(rank, _RankOutput())
        text = stream.rest + stream.decoder.decode(chunk)
        lines, newline, stream.rest = text.rpartition("\n")
        self._keep(self._clean(lines + newline), rank)
        if len(stream.rest) > _MAX_LINE:
            place = self._between_secrets(stream.rest)
            self._keep(self._clean(stream.rest[:place]), rank)
            stream.rest = stream.rest[place:]

    def close(self) -> None:
        """Keep what is left."""
        for rank, stream in self._streams.items():
            stream.rest += stream.decoder.decode(b"", final=True)
            if stream.rest:
                self._keep(self._clean(stream.rest) + "\n", rank)
                stream.rest = ""
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

    def _keep(self, text: str, rank: int | None) -> None:
        if not text:
            return
        self._written += len(text)
        self._last = (self._last + text)[-LAST_BYTES:]
        lines = text.removesuffix("\n").split("\n")
        note = ""
        if self._lost:
            note = self._headed([f"({self._lost} bytes were lost here: {self._why})"], None)
        data = self._headed(lines, rank).encode()
        try:
            self._append(note.encode() + data)
        except OSError as error:
            # Whoever reads the output of a work goes on, or the work would stop at a full pipe.
            self._lost += len(text.encode())
            self._number -= bool(note)
            self._why = "the disk was full" if error.errno in FULL_DISK else error.strerror or ""
        else:
            self._lost = 0

    def _headed(self, lines: Iterable[str], rank: int | None) -> str:
        """Lines of the file; a line that never ends is several."""
        now = dt.datetime.now(dt.UTC).strftime(TIME)
        by = "-" if rank is None else rank
        made = []
        for line in lines:
            self._number += 1
            made.append(f"{self._number} {now} {by} {line}\n")
        return "".join(made)

    def _append(self, data: bytes) -> None:
        if self._size + len(data) > self._limit // 2 and self._size:
            self._file.close()
            # A try before may have come so far, and found no room for the new one.
            with contextlib.suppress(FileNotFoundError):
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = _open(self._path)
            self._size, self._torn = 0, False
        if len(data) > (half := self._limit // 2):
            data = data[: data.rfind(b"\n", 0, half) + 1] or data[: half - 1] + b"\n"
        # What a full disk took half of is a line that no head follows.
        begin = b"\n" if self._torn else b""
        written = self._file.write(begin + data)
        self._size += written
        self._torn = written < len(begin + data)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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

    async def copy(self, pipe: asyncio.StreamReader, rank: int | None = None) -> None:
        """Copy until the pipe ends. Cancel it only when it is not `busy`, or the rest is lost.

        Args:
            pipe: of the rank, or of what leads the ranks.
            rank: which; None of what leads them.
        """
        loop = asyncio.get_running_loop()
        while chunk := await pipe.read(CHUNK_BYTES):
            self._read += len(chunk)
            await asyncio.shield(loop.run_in_executor(self._disk, self._log.write, chunk, rank))
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
