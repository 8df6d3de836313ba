"""How long to wait, and how that is said to a person.

Rules kept here: a time that is said is rounded up, so that nobody is told to wait 0 seconds or
comes back too early; pauses grow, and have an end. Pure.
"""

from __future__ import annotations

import math
from datetime import timedelta

_GROWTHS = 10


def in_seconds(seconds: float) -> str:
    """A time to wait in whole seconds: `1 second` at least, then `2 seconds` and so on."""
    whole = max(1, math.ceil(seconds))
    return "1 second" if whole == 1 else f"{whole} seconds"


def pause_after(times: int, first: timedelta, most: timedelta, growth: int = 2) -> timedelta:
    """How long to wait after something went wrong so many times in a row, 1 or more.

    The first pause, `growth` times as long each further time, `most` at most.
    """
    factor: int = growth ** min(times - 1, _GROWTHS)
    return min(first * factor, most)
