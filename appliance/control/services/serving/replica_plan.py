"""Which replicas an endpoint should have: what to add, and what may go. Pure.

Rules kept here:
* a replica of an older generation of the spec, or on a node that is drained, is replaced: another
  one is started beside it, and it goes when that one is ready. So as many as wanted answer, and
  there is one more than wanted at most;
* what has never been ready, and is of an older generation, goes at once: nobody asks it;
* one that has been ready is started again when it is lost, also of an older generation, until it
  is replaced: a new version that does not start takes nothing away;
* where there is no room for one more, an older one makes room after a minute, when others answer;
  the last one does only if its owner has allowed a downtime;
* a replica that failed is no reason to take down one that answers.

Called by `services.serving.replicas`; what is said about it is in `endpoint_state`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

PENDING, STARTING, READY, DRAINING, LOST = "PENDING", "STARTING", "READY", "DRAINING", "LOST"
RUNS = (STARTING, READY, DRAINING)
"""States of a replica that has a process."""
RUNNING, STOPPED, DELETED = "RUNNING", "STOPPED", "DELETED"
"""What an endpoint is to become."""
ROOM_PAUSE = timedelta(seconds=60)
DOWNTIME_PAUSE = timedelta(seconds=5)
"""How long a replica waits for room before another one makes some; the second if a downtime is
allowed. Long enough to be tried again after one has gone."""


@dataclass(frozen=True)
class Aim:
    """What an endpoint is to have.

    Attributes:
        goal: RUNNING, STOPPED or DELETED.
        replicas: how many, while it is to run.
        generation: of what they are to be.
        allow_downtime: whether the last one that answers may make room.
    """

    goal: str
    replicas: int
    generation: int
    allow_downtime: bool = False


@dataclass(frozen=True)
class Member:
    """One replica.

    Attributes:
        reason: why it is in its state; of a PENDING one, why it has not been placed.
        node: where it runs; empty while it does not.
        was_ready: it has answered.
        failed: its newest start was none that answered.
        since: when it came into its state.
    """

    id: str
    generation: int
    state: str
    reason: str = ""
    node: str = ""
    was_ready: bool = False
    failed: bool = False
    since: datetime | None = None

    @property
    def number(self) -> int:
        """Of its id."""
        return int(self.id[1:])


@dataclass(frozen=True)
class Plan:
    """How many replicas to add, and which are to go, each with why."""

    add: int = 0
    drain: tuple[tuple[str, str], ...] = ()


def aim_of(endpoint: Any) -> Aim:  # noqa: ANN401  # a row of the table `endpoint`
    """What a row of an endpoint asks for."""
    return Aim(endpoint.goal, endpoint.replicas, endpoint.generation, endpoint.allow_downtime)


def member_of(row: Any) -> Member:  # noqa: ANN401  # a row of the table `replica`
    """A row of a replica."""
    was_ready = row.ready_time is not None
    never = row.start_time is None
    return Member(
        row.id,
        row.generation,
        row.state,
        row.reason,
        row.node or "",
        was_ready,
        not never and not (was_ready and row.ready_time >= row.start_time),
        row.state_time,
    )


def plan(aim: Aim, members: Sequence[Member], leaving: Collection[str], now: datetime) -> Plan:
    """What to do now.

    Args:
        aim: what the endpoint is to have.
        members: its replicas.
        leaving: nodes that are drained.
        now: aware time.
    """
    active = [member for member in members if member.state != DRAINING]
    if aim.goal != RUNNING:
        why = "the endpoint was stopped" if aim.goal == STOPPED else "the endpoint was deleted"
        return Plan(0, tuple((member.id, why) for member in active))
    old = [member for member in active if is_replaced(aim, member, leaving)]
    new = [member for member in active if member not in old]
    kept = [member for member in old if member.was_ready]
    gone = [member for member in old if not member.was_ready]
    ready = sum(member.state == READY for member in new)
    over = max(0, ready + len(kept) - aim.replicas)
    first = _first_to_go(kept, active)[:over]
    first += _first_to_go(new, active)[: max(0, len(new) - aim.replicas)]
    if not first and (maker := _makes_room(aim, new, kept, members, leaving, now)):
        first = [maker]
    ending = sum(member.state == DRAINING for member in members)
    ending += sum(member.state == STARTING for member in gone)
    add = aim.replicas - len(new)
    if kept:
        most = aim.replicas + 1 - len(new) - len(kept) - ending
        add = 0 if without_room(new) else min(add, most)
    return Plan(max(0, add), tuple((each.id, _why(aim, each, leaving)) for each in gone + first))


def is_replaced(aim: Aim, member: Member, leaving: Collection[str]) -> bool:
    """Whether a replica has to make place for another one."""
    return member.generation != aim.generation or member.node in leaving


def without_room(members: Sequence[Member]) -> list[Member]:
    """Replicas for which no place was found."""
    return [member for member in members if member.state == PENDING and member.reason]


def _first_to_go(some: Sequence[Member], all_: Sequence[Member]) -> list[Member]:
    """Those that do not answer, then of the newest generation, of the fullest node, the newest.

    Of what is replaced, the newest generation is one that an update has overtaken.
    """
    crowd = Counter(member.node for member in all_)
    return sorted(
        some,
        key=lambda each: (
            each.state == READY,
            -each.generation,
            -crowd[each.node],
            -each.number,
        ),
    )


def _makes_room(  # noqa: PLR0913  # what it is decided from
    aim: Aim,
    new: Sequence[Member],
    kept: Sequence[Member],
    members: Sequence[Member],
    leaving: Collection[str],
    now: datetime,
) -> Member | None:
    """An older replica whose devices one of the newest generation needs, and may have."""
    waiting = [m for m in without_room(new) if not m.failed]
    # Room on a node that is drained is no room.
    makers = [m for m in kept if m.state in RUNS and m.node not in leaving]
    if not waiting or not makers or any(m.state == DRAINING for m in members):
        return None
    since = min((m.since for m in waiting if m.since), default=now)
    if now - since < (DOWNTIME_PAUSE if aim.allow_downtime else ROOM_PAUSE):
        return None
    maker = _first_to_go(makers, members)[0]
    if aim.allow_downtime:
        return maker
    others = sum(m.state == READY and m is not maker for m in (*new, *kept))
    is_surplus = len(new) + len(kept) > aim.replicas
    return maker if others and is_surplus else None


def _why(aim: Aim, member: Member, leaving: Collection[str]) -> str:
    if member.node in leaving:
        return f"node {member.node} is being drained"
    if member.generation != aim.generation:
        return "another version takes its place"
    return "the endpoint needs fewer replicas"
