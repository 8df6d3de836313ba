"""Numbers in sentences, as a person reads them: `65,536`, `0.001`, `1 or more`.

Called wherever a sentence states a bound. Pure.
"""

from __future__ import annotations

import math
from decimal import Decimal

MIB = 1 << 20
GIB = 1 << 30


def written(value: float) -> str:
    """A number in digits, whatever its size: 65536 is `65,536`, 1e-06 is `0.000001`."""
    if not math.isfinite(value):
        return str(value)
    text = f"{Decimal(repr(value)):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def typed(value: float) -> str:
    """The same as somebody types it: without commas."""
    return written(value).replace(",", "")


def readable(size: int) -> str:
    """Bytes for a person, such as `3.1 GiB`."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{max(size // MIB, 1)} MiB"


def span(least: float, most: float | None = None) -> str:
    """The numbers from `least` to `most`, both included; `1 or more` when there is no end."""
    return f"{written(least)} or more" if most is None else f"{written(least)} to {written(most)}"
