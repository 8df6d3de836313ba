"""What the row of a job says of a pause that somebody has asked for, in sentences for people. Pure.

Called by `services.work.pauses`, `runs` and `job_rows`.
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


def asked(pause: Mapping[str, Any]) -> str:
    """Why a job is PAUSING."""
    return (
        f"{pause['by']} has paused it: it saves a checkpoint, in {pause['grace_seconds']:g} s at"
        " most, and ends"
    )


def saved(pause: Mapping[str, Any], what: str) -> str:
    """Why a job is PAUSED that has saved a checkpoint; `what` its ranks say."""
    return f"paused by {pause['by']}: {what}"


def unsaved(pause: Mapping[str, Any], why: str, then: str) -> str:
    """Why a job is PAUSED that has not saved a checkpoint; `then` it does this."""
    return f"paused by {pause['by']} without a new checkpoint, because {why}; then it {then}"


def anew(pause: Mapping[str, Any], kind: str) -> str:
    """Why a job is PAUSED whose kind keeps no checkpoints."""
    return (
        f"paused by {pause['by']}: a job of kind {kind} keeps no checkpoints, and begins anew when"
        " it is resumed"
    )
