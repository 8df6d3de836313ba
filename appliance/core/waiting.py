"""How long to wait, and how that is said to a person.

Rules kept here: a time that is said is rounded up, so that nobody is told to wait 0 seconds or
comes back too early; pauses between tries grow, have an end, and begin anew after a success. Pure,
but for chance.

Called by everything that tries something again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import timedelta

_GROWTHS = 10


def in_seconds(seconds: float) -> str:
    """A time to wait in whole seconds: `1 second` at least, then `2 seconds` and so on."""
    whole = max(1, math.ceil(seconds))
    return "1 second" if whole == 1 else f"{whole} seconds"


def grown(times: int, first: float, most: float, growth: int = 2) -> float:
    """The pause after something went wrong so many times in a row, 1 or more, in seconds.

    The first pause, `growth` times as long each further time, `most` at most. Exact: for what one
    process decides alone, keeps in a row or says to a person.
    """
    # The exponent is bounded before it is used: nobody waits for 2 ** 95 seconds.
    factor: int = growth ** min(times - 1, _GROWTHS)
    return min(first * factor, most)


def pause_after(times: int, first: timedelta, most: timedelta, growth: int = 2) -> timedelta:
    """The same as `grown`, of periods."""
    return timedelta(seconds=grown(times, first.total_seconds(), most.total_seconds(), growth))


class Backoff:
    """Pauses between tries of one thing that many may try: each is a random part of `grown`.

    All of it is random ("full jitter"; M. Brooker, "Exponential Backoff And Jitter", AWS 2015), so
    that those who lost a server together do not come back together.

    Args:
        first: the longest first pause, in seconds.
        most: the longest pause.
        chance: a number between two others.
    """

    def __init__(
        self, first: float, most: float, chance: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._first = first
        self._most = most
        self._chance = chance
        self._times = 0

    def reset(self) -> None:
        """It went well: the next pause is a first one."""
        self._times = 0

    def failed(self, most: float | None = None) -> float:
        """It went wrong: seconds to wait before the next try.

        Args:
            most: the longest pause this time, if it is another.
        """
        self._times += 1
        return self._chance(
            0.0, grown(self._times, self._first, self._most if most is None else most)
        )
