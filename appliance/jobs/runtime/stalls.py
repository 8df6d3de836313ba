"""Whether the ranks of a job still go on, and whom they wait for when they do not. Pure.

A job is stalled for as long as *none* of its ranks has left a mark: while one of them works, the
others may wait as long as it takes. Which rank it hangs on is told from the outside:

* one that does not even beat (its process is stopped, or its node cannot be reached), else
* one that beats but stands outside all collectives, where the others wait for it, else
* when all stand in a collective, the one that has been quiet for the longest.

Rules kept here: only time is counted in which somebody looked, so that a leader that was stopped
itself, or a machine that slept, takes nobody for hung; a rank that has returned counts no more.

Called by `watching`, once every half second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from appliance.jobs.runtime.signs import RankState, Sign

MAX_GAP = 2.0
"""Seconds that count between two looks at most."""


class How(StrEnum):
    """How a rank hangs."""

    SILENT = "its process does not answer"
    WORKS = "its process is alive"
    WAITS = "it waits for the others as they do for it"


@dataclass(frozen=True)
class Stall:
    """No rank has gone on for so many seconds, because of this one."""

    seconds: float
    rank: int
    doing: str
    how: How


@dataclass
class _Rank:
    """What was seen of a rank last, and for how many seconds nothing of it has changed."""

    sign: Sign = field(default_factory=Sign)
    quiet: float = 0.0
    silent: float = 0.0

    def see(self, sign: Sign, elapsed: float) -> None:
        self.quiet = 0.0 if sign.marks != self.sign.marks else self.quiet + elapsed
        self.silent = 0.0 if sign.beats != self.sign.beats else self.silent + elapsed
        self.sign = sign


class StallWatch:
    """The ranks of a job from one start of them to the next.

    Args:
        ranks: of the whole job.
    """

    def __init__(self, ranks: int) -> None:
        self._ranks = [_Rank() for _ in range(ranks)]

    def observe(self, signs: Mapping[int, Sign], elapsed: float) -> Stall | None:
        """Take in what ranks show now.

        Args:
            signs: by rank; what is known of a rank that is left out has not changed.
            elapsed: seconds since the look before.

        Returns:
            How long the job has been stalled; None when every rank has returned.
        """
        elapsed = min(elapsed, MAX_GAP)
        for number, rank in enumerate(self._ranks):
            rank.see(signs.get(number, rank.sign), elapsed)
        there = [n for n, rank in enumerate(self._ranks) if rank.sign.state != RankState.DONE]
        if not there:
            return None
        seconds = min(self._ranks[n].quiet for n in there)
        hangs = min(there, key=lambda n: (list(How).index(self._how(n, seconds)), -self._quiet(n)))
        return Stall(seconds, hangs, self._ranks[hangs].sign.doing, self._how(hangs, seconds))

    def _quiet(self, number: int) -> float:
        return self._ranks[number].quiet

    def _how(self, number: int, seconds: float) -> How:
        rank = self._ranks[number]
        # A beat may come late where processors are busy.
        if rank.silent > seconds / 2:
            return How.SILENT
        return How.WAITS if rank.sign.state == RankState.WAITS else How.WORKS
