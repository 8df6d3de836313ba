"""What the row of a job says of a pause that somebody has asked for, in sentences for people. Pure.

A job that leaves a node which is drained pauses too, and is queued again (`leaving`).

Called by `services.work.pauses`, `drains`, `runs` and `job_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def order(by: str, grace_seconds: float) -> dict[str, Any]:
    """What the column `pause` holds.

    Args:
        by: who or what has asked, as a resource name or a few words.
        grace_seconds: in which a checkpoint must be saved.
    """
    return {"by": by, "grace_seconds": grace_seconds}


def leaving(node: str, grace_seconds: float) -> dict[str, Any]:
    """What the column `pause` holds while a job leaves a node that is drained.

    Args:
        node: its resource name.
        grace_seconds: in which a checkpoint must be saved.
    """
    return {**order(node, grace_seconds), "leaves": True}


def leaves(pause: Mapping[str, Any]) -> bool:
    """Whether a pause is that of a job which leaves a node, and is queued again."""
    return bool(pause.get("leaves"))


def asked(pause: Mapping[str, Any]) -> str:
    """Why a job is PAUSING."""
    if leaves(pause):
        return (
            f"{pause['by']} is drained: it saves a checkpoint, in {pause['grace_seconds']:g} s at"
            " most, and is queued again"
        )
    return (
        f"{pause['by']} has paused it: it saves a checkpoint, in {pause['grace_seconds']:g} s at"
        " most, and ends"
    )


def saved(pause: Mapping[str, Any], what: str) -> str:
    """Why a job is PAUSED, or queued again, that has saved a checkpoint; `what` its ranks say."""
    return f"{_because(pause)}: {what}"


def unsaved(pause: Mapping[str, Any], why: str, then: str) -> str:
    """Why a job is PAUSED, or queued again, without a new checkpoint; `then` it does this."""
    if leaves(pause):
        return f"{_because(pause)}: no new checkpoint was saved, because {why}; it {then}"
    return f"{_because(pause)} without a new checkpoint, because {why}; then it {then}"


def anew(pause: Mapping[str, Any], kind: str) -> str:
    """Why a job is PAUSED, or queued again, whose kind keeps no checkpoints."""
    when = "" if leaves(pause) else " when it is resumed"
    return f"{_because(pause)}: a job of kind {kind} keeps no checkpoints, and begins anew{when}"


def _because(pause: Mapping[str, Any]) -> str:
    return f"{pause['by']} is drained" if leaves(pause) else f"paused by {pause['by']}"
