"""Which steps of a long series are kept: so many at most, evenly, with the first and the newest.

A loss curve of a million steps is looked at in some hundred points, and must not cost a million
rows. Every point is kept until there are too many. Then the steps are divided into sections, each
a power of two long and counted from zero, and the first point of each is kept; the sections are
the shortest that leave few enough. So it does not matter how far apart a job measures, a series
that is thinned twice is thinned as if once, and two who thin the same series apart from each other
keep the same points.

Pure. Called by the agent, for what waits while the control plane is away, and by the control plane,
for what it keeps of a job.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

MAX_POINTS = 2048
"""Points of one series; between half of that and all of it once there were more."""


def thin(steps: Iterable[int], most: int = MAX_POINTS) -> list[int]:
    """Those of some steps that are kept, in ascending order: `most` (4 or more) at most.

    The older half of what is kept is as far apart as the newer one, also when it was thinned before
    and newer steps were added since.
    """
    ordered = sorted(set(steps))
    if len(ordered) <= most:
        return ordered
    # Two neighbours are in one section from this power of two on.
    meet = [(step ^ after).bit_length() for step, after in pairwise(ordered)]
    # What is there in any case: sections in which the older ones have been thinned.
    power = max(min(meet[: most // 2 - 1]) - 1, 0)
    while _points(meet, power) > most:
        power += 1
    begins = [step for step, met in zip(ordered[1:], meet, strict=True) if met > power]
    return [ordered[0], *begins, *(ordered[-1:] if meet[-1] <= power else [])]


def _points(meet: list[int], power: int) -> int:
    """How many steps are kept: the first of each section, and the last of all."""
    return 1 + sum(met > power for met in meet) + (meet[-1] <= power)
