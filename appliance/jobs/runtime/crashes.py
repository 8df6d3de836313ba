"""Why a rank could not go on: as an error that is final, or as a crash in a few words.

Rules kept here:
* the words are ours: a category, the class of an exception, a place in our own code. The text of an
  exception can quote what the job reads, and stays in the log;
* of the ranks of a node the first that crashes is the cause; what the others meet, because it is
  gone, is its consequence;
* a rank writes into its own slot alone, so that nothing is ever half of two.

Called by the ranks (`note`) and by the leader that forked them (`first`).
"""

from __future__ import annotations

import mmap
import struct
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import distributed

from appliance.core.errors import ApplianceError, Exhausted
from appliance.core.files import FULL_DISK
from appliance.core.needs import unimportable

_PACKAGE = "appliance"
_HEADER = struct.Struct("<qii?")  # time, round, length of the words, whether a peer was lost
_SLOT = 512
_MAX_CAUSES = 10
_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory")


@dataclass(frozen=True)
class Crash:
    """What a rank met, in words that follow its name; `peer`: it lost its connection to another."""

    words: str
    peer: bool = False


def final(error: BaseException, rank: int) -> ApplianceError | None:
    """The error of a job that starting again would not help; None when it may."""
    for each in _causes(error):
        match each:
            case torch.OutOfMemoryError():
                return Exhausted(
                    f"rank {rank} ran out of memory on its device: use a smaller batch or more"
                    " ranks"
                )
            case ImportError():
                return unimportable(each)
            case OSError() if each.errno in FULL_DISK:
                return Exhausted(
                    f"rank {rank} met a full disk: free some space in the object store, and for"
                    " temporary files on the node, then start the job again"
                )
        if isinstance(each, MemoryError) or _says(each, _NO_MEMORY):
            return Exhausted(
                f"rank {rank} ran out of the node's memory: use smaller batches, or fewer ranks on"
                " a node"
            )
    return None


def crash(error: BaseException) -> Crash:
    """A crash in words: the class of the exception, and where in our own code it passed last."""
    if isinstance(error, distributed.DistError) or _says(error, _PEER_GONE):
        return Crash("lost its connection to another rank", peer=True)
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] == _PACKAGE:
            place = f" in {module}, line {line}"
    return Crash(f"crashed with {type(error).__name__[:100]}{place}")


class Crashes:
    """The crashes of the ranks of one node, in memory that forked processes share.

    Args:
        ranks: how many ranks the node has.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._memory = mmap.mmap(-1, ranks * _SLOT)

    def note(self, local_rank: int, number: int, happened: Crash) -> None:
        """Rank `local_rank` crashed in round `number`, counted from 1."""
        words = happened.words.encode("ascii", "replace")[: _SLOT - _HEADER.size]
        start = local_rank * _SLOT
        self._memory[start + _HEADER.size : start + _HEADER.size + len(words)] = words
        header = (time.monotonic_ns(), number, len(words), happened.peer)
        _HEADER.pack_into(self._memory, start, *header)

    def first(self, number: int) -> tuple[int, Crash] | None:
        """The local rank that crashed first in a round, and how; None when none has said so."""
        found: list[tuple[int, int, Crash]] = []
        for local_rank in range(self._ranks):
            start = local_rank * _SLOT
            at, when, length, peer = _HEADER.unpack_from(self._memory, start)
            if when == number:
                words = self._memory[start + _HEADER.size : start + _HEADER.size + length]
                found.append((at, local_rank, Crash(words.decode("ascii"), peer)))
        return min(found, key=lambda each: each[:2])[1:] if found else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it says were its cause, newest first."""
    each: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if each is None:
            return
        yield each
        each = each.__cause__


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in texts)
