"""The state of an endpoint and what a person is told about it, from its replicas. Pure.

Rules kept here: what an endpoint waits for is said with it, and so is what can be done about it, as
a command to paste.

Called by `services.serving.replicas`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from appliance.control.services.serving.replica_plan import (
    DRAINING,
    LOST,
    PENDING,
    READY,
    ROOM_PAUSE,
    RUNNING,
    STARTING,
    STOPPED,
    Aim,
    Member,
    is_replaced,
    without_room,
)

DEGRADED, STOPPING, FAILED, UPDATING = "DEGRADED", "STOPPING", "FAILED", "UPDATING"
MAX_PAUSE_SECONDS = 30
HOPELESS = 5
"""Failures in a row after which it is said that a version does not start."""


@dataclass(frozen=True)
class Words:
    """Texts for sentences.

    Attributes:
        name: of the endpoint, whole.
        back: options of `endpoint update` that lead back to the version before.
    """

    name: str
    back: str = ""

    @property
    def update(self) -> str:
        """The command that changes the endpoint."""
        return f"appliance endpoint update {self.name}"


def judge(  # noqa: PLR0913  # what it is judged by
    aim: Aim,
    before: tuple[str, str],
    members: Sequence[Member],
    leaving: Collection[str],
    failures: int,
    words: Words,
) -> tuple[str, str]:
    """State and reason.

    Args:
        aim: what it is to have.
        before: state and reason as they were.
        members: its replicas.
        leaving: nodes that are drained.
        failures: how often each replica of the newest generation has failed in a row, at least;
            zero when nobody knows.
        words: for sentences.
    """
    if aim.goal != RUNNING:
        over = aim.goal == STOPPED and not members
        return (STOPPED, "") if over else (STOPPING, before[1])
    active = [member for member in members if member.state != DRAINING]
    if any(member.generation != aim.generation and member.was_ready for member in active):
        return _updating(aim, before, members, failures, words)
    ready = sum(member.state == READY for member in active)
    why = next((m.reason for m in active if m.state != READY and m.reason), "")
    moving = _moving(aim, active, leaving)
    if ready >= aim.replicas:
        return READY, moving
    if ready:
        return DEGRADED, moving or why or f"{ready} of {aim.replicas} replicas are ready"
    # While it is started again nothing is known of why it failed: what was said holds.
    if failures >= HOPELESS and (why or before[0] != FAILED):
        return FAILED, f"no replica stays up, tried again every {MAX_PAUSE_SECONDS} s: {why}"
    return (FAILED, before[1]) if before[0] == FAILED else (STARTING, why)


def _updating(
    aim: Aim,
    before: tuple[str, str],
    members: Sequence[Member],
    failures: int,
    words: Words,
) -> tuple[str, str]:
    new = [m for m in members if m.generation == aim.generation and m.state != DRAINING]
    ready = sum(member.state == READY for member in new)
    why = next((m.reason for m in new if m.reason), "")
    if not ready and failures >= HOPELESS and (why or before[0] != DEGRADED):
        back = f": go back with `{words.update} {words.back}`" if words.back else ""
        why = why or "it ends at once"
        return DEGRADED, f"the new version does not start ({why}); the one before answers{back}"
    if not ready and before[0] == DEGRADED:
        return before
    done = f"{ready} of {aim.replicas} replicas are of the new version"
    return UPDATING, "; ".join(filter(None, (done, _next_step(aim, new, members, words))))


def _next_step(aim: Aim, new: Sequence[Member], members: Sequence[Member], words: Words) -> str:
    """What an update waits for."""
    ending = next((m.id for m in members if m.state == DRAINING), "")
    if ending:
        return f"{ending} finishes its answers"
    for member in without_room(new):
        return f"{member.id} has no room: {member.reason}; {_advice(aim, member, members, words)}"
    for member in new:
        if member.state == LOST:
            return f"{member.id} failed and is started again: {member.reason}"
        if member.state in {PENDING, STARTING}:
            return f"{member.id} starts"
    return ""


def _advice(aim: Aim, waiting: Member, members: Sequence[Member], words: Words) -> str:
    ready = sum(member.state == READY for member in members)
    active = sum(member.state != DRAINING for member in members)
    if aim.allow_downtime:
        return "an older one makes room"
    if ready > 1 and active > aim.replicas and not waiting.failed:
        return f"an older one makes room after {ROOM_PAUSE.seconds} s"
    return (
        "free devices, or let an older one stop before the new one answers: "
        f"`{words.update} --allow-downtime`"
    )


def _moving(aim: Aim, active: Sequence[Member], leaving: Collection[str]) -> str:
    """What is said while replicas leave nodes that are drained."""
    moved = [member for member in active if is_replaced(aim, member, leaving) and member.node]
    if not moved:
        return ""
    said = f"{moved[0].id} leaves node {moved[0].node}, which is drained"
    for member in without_room(active):
        return f"{said}, when {member.id} has room: {member.reason}"
    return f"{said}, when another one is ready"
