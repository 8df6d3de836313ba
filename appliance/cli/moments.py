"""Times and durations as people read them: `3m ago`, `in 29d`, `2d4h`.

A resource has its times as RFC 3339 text in fields that end in `_time` (AIP-142). Tables show how
long ago that is; `get` shows both; JSON and YAML keep the text.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_PART = r"\d+(?:\.\d+)?[smhdw]"
_DURATION = re.compile(rf"(?:{_PART})+")
_BOTH_UP_TO = 10
"""Smaller numbers of a unit are followed by the next one: 2d4h, and 12d."""


def duration(seconds: float) -> str:
    """A length of time in one unit, or two where the first is a small number: `45s`, `2d4h`."""
    left = round(max(seconds, 0.0))
    for (unit, size), smaller in zip(_UNITS, (*_UNITS[1:], None), strict=True):
        if left >= size:
            number, rest = divmod(left, size)
            more = rest // smaller[1] if smaller and number < _BOTH_UP_TO else 0
            return f"{number}{unit}" + (f"{more}{smaller[0]}" if smaller and more else "")
    return "0s"


def seconds_of(text: str) -> float | None:
    """The seconds of `90s`, `15m`, `2h`, `3d`, `1w` or `2d4h`; None for anything else."""
    if _DURATION.fullmatch(text) is None:
        return None
    return sum(float(part[:-1]) * _SECONDS[part[-1]] for part in re.findall(_PART, text))


def time_of(text: object) -> datetime | None:
    """The time of a text such as `2026-11-28T10:00:00.5Z` or `2026-11-28`; None for others."""
    if not isinstance(text, str) or not re.match(r"\d{4}-\d\d-\d\d", text):
        return None
    # Python takes six digits of a second, protobuf may write nine.
    cut = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        found = datetime.fromisoformat(cut)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def ago(text: str, now: datetime | None = None) -> str:
    """How long ago a time is, or how long until then; what is no time stays as it is."""
    found = time_of(text)
    if found is None:
        return text
    passed = ((now or datetime.now(UTC)) - found).total_seconds()
    return f"{duration(passed)} ago" if passed >= 0 else f"in {duration(-passed)}"


def clock(text: str) -> str:
    """A time to the second: `2026-11-28 10:00:00 UTC`; what is no time stays as it is."""
    found = time_of(text)
    return text if found is None else found.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
