"""Which steps of a long series are kept: so many at most, evenly, with the first and the newest.

A loss curve of a million steps is looked at in some hundred points, and must not cost a million
rows. Every point is kept until there are too many; then each second, fourth, eighth and so on,
counted from zero, so that two who thin the same series apart from each other keep the same points.

Pure. Called by the agent, for what waits while the control plane is away, and by the control plane,
for what it keeps of a job.
"""

from __future__ import annotations

MOST_POINTS = 2048
"""Points of one series; between half of that and all of it once there were more."""


def stride(first: int, last: int, most: int = MOST_POINTS) -> int:
    """How far apart the steps from `first` to `last` lie of which at most `most` are kept.

    The smallest power of two that leaves room for `first` and `last` themselves.
    """
    found = 1
    while _points(first, last, found) > most:
        found *= 2
    return found


def is_kept(step: int, first: int, last: int, apart: int) -> bool:
    """Whether a step from `first` to `last` is kept, of a series whose steps lie so far `apart`."""
    return step % apart == 0 or step in (first, last)


def _points(first: int, last: int, apart: int) -> int:
    """How many steps are kept."""
    multiples = last // apart - (first - 1) // apart
    return multiples + (first % apart != 0) + (last % apart != 0 and last != first)
