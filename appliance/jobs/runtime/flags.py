"""Flags that a leader and its ranks share: memory that forked processes have in common.

Called by the leader (`stop`, `save`, `final`, `paused_at`) and by its ranks.
"""

from __future__ import annotations

import mmap
import struct

_STOP = 0
_FINAL = 1
_SAVE = 2
_PAUSED_AT = 8
_STEP = struct.Struct("<Q")


class Flags:
    """Shared by the process that made it and all it forks.

    What ranks are told is never taken back; that they have paused belongs to one round of them.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def stop(self) -> None:
        """Tell all ranks to stop at their next fence."""
        self._memory[_STOP] = 1

    @property
    def stopping(self) -> bool:
        """Whether ranks must stop."""
        return self._memory[_STOP] == 1

    def save(self) -> None:
        """Tell all ranks to save a checkpoint, then end."""
        self._memory[_SAVE] = 1

    @property
    def saving(self) -> bool:
        """Whether ranks must save and end; those of one gang may see it at different times."""
        return self._memory[_SAVE] == 1

    def begin_round(self) -> None:
        """Ranks start, or start again: in this round nobody has paused yet."""
        self.pause(0)

    def pause(self, step: int) -> None:
        """The ranks have saved the checkpoint of this step, 1 or more, and end."""
        _STEP.pack_into(self._memory, _PAUSED_AT, step)

    @property
    def paused_at(self) -> int:
        """Step of the checkpoint after which the ranks of this node have ended; 0: not so."""
        return int(_STEP.unpack_from(self._memory, _PAUSED_AT)[0])

    def forbid_restart(self) -> bool:
        """The job must not start again; whether this call was the first to say so."""
        first = self._memory[_FINAL] == 0
        self._memory[_FINAL] = 1
        return first

    @property
    def final(self) -> bool:
        """Whether starting again would not help."""
        return self._memory[_FINAL] == 1 or self.stopping
