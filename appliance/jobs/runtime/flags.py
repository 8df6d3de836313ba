"""Two flags that a leader and its ranks share: memory that forked processes have in common.

Called by the leader (`stop`, `final`) and by its ranks.
"""

from __future__ import annotations

import mmap

_STOP = 0
_FINAL = 1


class Flags:
    """Shared by the process that made it and all it forks; a flag is never taken back."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def stop(self) -> None:
        """Tell all ranks to stop at their next fence."""
        self._memory[_STOP] = 1

    @property
    def stopping(self) -> bool:
        """Whether ranks must stop."""
        return self._memory[_STOP] == 1

    def settle(self) -> bool:
        """The job must not start again; whether this call was the first to say so."""
        first = self._memory[_FINAL] == 0
        self._memory[_FINAL] = 1
        return first

    @property
    def final(self) -> bool:
        """Whether starting again would not help."""
        return self._memory[_FINAL] == 1 or self.stopping
