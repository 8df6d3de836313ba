"""What an engine says: outputs of answers, and how it is.

Made by the engine, read by the service; pure.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

STOP = "stop"
LENGTH = "length"


@dataclass(frozen=True)
class Output:
    """New tokens of one answer.

    `finish` is empty, `stop` or `length`; `failed`: the engine lost the answer.
    """

    tokens: list[int]
    finish: str = ""
    failed: bool = False


class EngineActivity:
    """How the engine is, as of its last step."""

    def __init__(self) -> None:
        self.steps = 0
        self.running = 0
        self.waiting = 0
        self._last = time.monotonic()

    def note_step(self, running: int, waiting: int) -> None:
        """A step ended."""
        self.steps += 1
        self.running = running
        self.waiting = waiting
        self._last = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last step ended."""
        return time.monotonic() - self._last
