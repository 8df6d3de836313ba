"""The leader's watch over the ranks of its job: says who is waited for, and decides who has hung.

Rules kept here:
* the leader of the first node, on which rank 0 is, watches the ranks of all nodes and is the only
  one to decide; the others hand on the signs of theirs. When it ends its own ranks, the others see
  that it has gone on to the next round, and follow;
* what is waited for is said from a third of the time on, before anything is done about it;
* a decision holds until the ranks have started again, and they can say why they did.

Called by the leader's elastic agent, again and again.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple

from appliance.core.process import signal_name
from appliance.jobs.runtime.orders import JobOrders
from appliance.jobs.runtime.rendezvous import FixedRendezvous
from appliance.jobs.runtime.reporter import Reporter
from appliance.jobs.runtime.signs import RankState, Sign, Signs
from appliance.jobs.runtime.stalls import Stall, StallWatch

LOOK_SECONDS = 0.5
PARTS = 6
SAID_FROM = 2
"""A stall is said when two sixths of the time are over, and at each further one."""

CRASHED = 1
PEER_LOST = 3
"""Exit codes of ranks: an error of their own, or that the connection to another rank broke."""
_CAUSES = {CRASHED: "a rank crashed", PEER_LOST: "a rank lost its connection to another"}
ELSEWHERE = "ranks of another node ended"

MAX_WORD = 256
"""Characters of a node's name, or of what a rank does."""

logger = logging.getLogger(__name__)


class GangWatch:
    """Watches the ranks of a job from the leader of one node.

    Args:
        orders: of this node.
        limit: seconds after which ranks that do not go on are started again; None: this kind of job
            has no such limit, and nobody is watched.
        rendezvous: where the leaders of the nodes meet.
        report: of the leader.
        clock: seconds, monotonic.

    Attributes:
        signs: what the ranks of this node write.
        cause: why the ranks of this round have ended; empty while they work.
        before: why those of the round before did; ranks say it when they start again.
        stalled: whether the cause is that a rank has hung.
    """

    def __init__(
        self,
        orders: JobOrders,
        limit: int | None,
        rendezvous: FixedRendezvous,
        report: Reporter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.signs = Signs(orders.local_ranks)
        self.cause = ""
        self._orders = orders
        self._limit = limit
        self._rendezvous = rendezvous
        self._report = report
        self._clock = clock
        here = range(orders.rank_base, orders.rank_base + orders.local_ranks)
        self._elsewhere = frozenset(range(orders.world_size)).difference(here)
        self.begin()

    def begin(self) -> None:
        """Ranks are about to start."""
        self.before, self.cause, self.stalled = self.cause or ELSEWHERE, "", False
        self.signs.clear()
        self._watch = StallWatch(self._orders.world_size)
        self._nodes: dict[int, str] = {}
        # The first look is at once: from then on the first node knows whose ranks are where.
        self._looked, self._said = self._clock() - LOOK_SECONDS, 0

    def check_ranks(self) -> None:
        """Look at the ranks when it is time to; there is a `cause` when they must end."""
        now = self._clock()
        elapsed = now - self._looked
        if self._limit is None or self.cause or elapsed < LOOK_SECONDS:
            return
        self._looked = now
        base = self._orders.rank_base
        own = {base + number: sign for number, sign in enumerate(self.signs.read())}
        if self._orders.node_rank > 0:
            self._rendezvous.publish(_encoded(self._orders.node, own))
            return
        self._nodes |= dict.fromkeys(own, self._orders.node)
        for document in self._rendezvous.published():
            node, others = _decoded(document)
            # Whoever reaches the store can write into it.
            others = {rank: sign for rank, sign in others.items() if rank in self._elsewhere}
            self._nodes |= dict.fromkeys(others, node)
            own |= others
        stall = self._watch.observe(own, elapsed)
        if stall is not None and stall.seconds >= self._limit:
            self.cause, self.stalled = self._verdict(stall, self._limit), True
            logger.error("%s", self.cause)
            self._report.waiting(f"{self.cause}; all ranks are started again")
        elif stall is not None:
            self._say(stall, self._limit)

    def ended(self, codes: Iterable[int]) -> None:
        """Ranks have ended badly: exit codes, or minus the signals that killed them.

        What is its own fault counts before what followed from it.
        """
        ends = sorted(codes, key=lambda code: (code == PEER_LOST, code > 0))
        if not ends or self.cause:
            return
        if ends[0] < 0:
            self.cause = f"a rank was killed by {signal_name(-ends[0])}"
        else:
            self.cause = _CAUSES.get(ends[0], _CAUSES[CRASHED])

    def _say(self, stall: Stall, limit: int) -> None:
        """Say whom the job waits for, and take it back when it has gone on."""
        part = int(PARTS * stall.seconds / limit)
        if part < SAID_FROM:
            part = 0
        if part == self._said:
            return
        self._said = part
        text = ""
        if part:
            text = (
                f"waits for {self._name(stall.rank)}{_during(stall)} for {int(stall.seconds)} s; "
                f"all ranks are started again after {limit} s"
            )
        self._report.waiting(text)

    def _verdict(self, stall: Stall, limit: int) -> str:
        since = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=stall.seconds)
        return (
            f"{self._name(stall.rank)} has hung{_during(stall)}: no rank has gone on since "
            f"{since:%Y-%m-%d %H:%M:%S} UTC, which is longer than stall_seconds ({limit}), and "
            f"{stall.how}"
        )

    def _name(self, rank: int) -> str:
        node = self._nodes.get(rank)
        return f"rank {rank} on {node}" if node else f"rank {rank}"


def _during(stall: Stall) -> str:
    return f" ({stall.doing})" if stall.doing else ""


def _encoded(node: str, signs: Mapping[int, Sign]) -> bytes:
    rows = [[rank, *astuple(sign)] for rank, sign in signs.items()]
    return json.dumps({"node": node, "signs": rows}).encode()


def _decoded(document: bytes) -> tuple[str, dict[int, Sign]]:
    """What another node has published; nothing when it is something else."""
    try:
        found = json.loads(document)
        return _word(found["node"]), {
            int(rank): Sign(int(marks), int(beats), RankState(state), _word(doing))
            for rank, marks, beats, state, doing in found["signs"]
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        logger.warning("what another node says of its ranks is unreadable (%s)", type(error))
        return "", {}


def _word(text: str) -> str:
    """A text for people. Raises ValueError when it is no short line of ASCII."""
    if len(text) > MAX_WORD or not (text.isascii() and text.isprintable()):
        raise ValueError("it is no short line of ASCII")
    return text
