"""Signs of life of the ranks of one node: memory that the leader shares with all it forks.

A rank leaves a *mark* whenever a piece of its work is done (a layer, a tensor, a megabyte read),
and says now and then what it is doing. A thread of its own *beats* four times a second and notes
whether the rank waits for others. The leader reads both.

Rules kept here:
* a mark takes about a microsecond and never waits: the reader may see a text that is being written;
* a rank waits when the innermost Python frame of its main thread is in torch.distributed, which is
  where it stands during a collective of whatever kind;
* what a rank does is said in words of ours, without text of users.

Called by ranks (`Life`) and by the leader (`Signs.read`).
"""

from __future__ import annotations

import mmap
import struct
import sys
import threading
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType

import torch
from torch import distributed

BEAT_SECONDS = 0.25
_SLOT = 256
_MARKS, _BEATS, _STATE, _TEXT = 0, 8, 16, 17
_COUNT = struct.Struct("<Q")
DISTRIBUTED = f"{Path(distributed.__file__).parent}/"
TORCH = Path(torch.__file__).parent
_OPERATORS = (f"{TORCH}/_ops.py", f"{TORCH}/_library/")
"""Where Python calls an operator of torch, such as `wait_tensor`."""
_FRAMES = 8


class RankState(IntEnum):
    """What a rank is about."""

    WORKS = 0
    WAITS = 1
    """It stands in a collective."""
    DONE = 2
    """It has returned."""


@dataclass(frozen=True)
class Sign:
    """What is known of a rank: its marks and beats so far, its state, what it said it does."""

    marks: int = 0
    beats: int = 0
    state: RankState = RankState.WORKS
    doing: str = ""


class Signs:
    """The signs of so many ranks, in memory that forked processes have in common."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._memory = mmap.mmap(-1, ranks * _SLOT)

    def clear(self) -> None:
        """Forget everything, before ranks start."""
        self._memory[:] = bytes(len(self._memory))

    def life(self, local_rank: int) -> Life:
        """What the rank of this number on its node writes with."""
        return Life(memoryview(self._memory)[local_rank * _SLOT : (local_rank + 1) * _SLOT])

    def read(self) -> list[Sign]:
        """The signs of all ranks of the node, in order."""
        return [self._read(rank * _SLOT) for rank in range(self._ranks)]

    def _read(self, at: int) -> Sign:
        text = self._memory[at + _TEXT : at + _SLOT].partition(b"\0")[0]
        return Sign(
            marks=_COUNT.unpack_from(self._memory, at + _MARKS)[0],
            beats=_COUNT.unpack_from(self._memory, at + _BEATS)[0],
            state=RankState(self._memory[at + _STATE]),
            doing=text.decode("ascii", "replace"),
        )


class Life:
    """One rank's slot: written by the rank alone."""

    def __init__(self, slot: memoryview) -> None:
        self._slot = slot
        self._marks = 0
        self._beats = 0
        self._ended = threading.Event()

    def mark(self, doing: str = "") -> None:
        """A piece of work is done; with `doing`, what begins now, in a few ASCII words."""
        if doing:
            text = doing.encode("ascii", "replace")[: _SLOT - _TEXT - 1]
            self._slot[_TEXT : _TEXT + len(text) + 1] = text + b"\0"
        self._marks += 1
        _COUNT.pack_into(self._slot, _MARKS, self._marks)

    def begin(self) -> None:
        """Beat from now on, in a thread that ends with the process; the main thread calls."""
        main = threading.get_ident()
        threading.Thread(target=self._beat, args=(main,), name="life", daemon=True).start()

    def end(self) -> None:
        """The rank has returned: nobody waits for it any more."""
        self._ended.set()
        self._slot[_STATE] = RankState.DONE

    def _beat(self, main: int) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            state = RankState.WAITS if _waits(main) else RankState.WORKS
            if not self._ended.is_set():
                self._slot[_STATE] = state
            self._beats += 1
            _COUNT.pack_into(self._slot, _BEATS, self._beats)


def _waits(thread: int) -> bool:
    """Whether a thread stands in torch.distributed."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented, though named so
    files: list[str] = []
    while frame is not None and len(files) < _FRAMES:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back
    return _collective(files)


def in_collective(trace: TracebackType | None) -> bool:
    """Whether an error came out of torch.distributed: another rank is gone."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    return _collective(reversed(files))


def _collective(innermost_first: Iterable[str]) -> bool:
    for file in innermost_first:
        if not file.startswith(_OPERATORS):
            return file.startswith(DISTRIBUTED)
    return False
