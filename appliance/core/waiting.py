"""How a time to wait is said to a person.

Rule kept here: a time is rounded up, so that nobody is told to wait 0 seconds or comes back too
early. Used wherever a refusal says when to try again.
"""

from __future__ import annotations

import math


def in_seconds(seconds: float) -> str:
    """A time to wait in whole seconds: `1 second` at least, then `2 seconds` and so on."""
    whole = max(1, math.ceil(seconds))
    return "1 second" if whole == 1 else f"{whole} seconds"
