"""Where a checkpoint of a job lies in its series, and which of two is the newer.

The attack: a node that is cut off goes on with a job that another node has taken over, and saves
checkpoints. Rule kept here: every epoch has a folder of its own, and the epoch counts before the
step, so that what an older epoch saves, however far it came, stands beside what a newer one reads
and never in its place.

Pure. Called by the ranks that save and resume, and by the control plane that registers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.core.errors import InvalidInput

MAX_STEP = 10**8 - 1
_EPOCH = re.compile(r"e([1-9][0-9]{0,17})")
_STEP = re.compile(r"step-([0-9]{8})")
_ID = re.compile(r"e(0|[1-9][0-9]{0,17})-step-([1-9][0-9]{0,7})")


@dataclass(frozen=True, order=True)
class CheckpointPoint:
    """A moment of a job: `epoch`, then optimizer `step`.

    Epoch 0 is that of checkpoints of release 0.1.0, which had no folder for each epoch.
    """

    epoch: int
    step: int

    def __post_init__(self) -> None:
        """Refuse a step that the name cannot hold."""
        if not 0 <= self.step <= MAX_STEP:
            raise InvalidInput(f"a checkpoint has a step from 0 to {MAX_STEP}, not {self.step}")

    @property
    def name(self) -> str:
        """Path below the folder, and below the object, of the series."""
        step = f"step-{self.step:08d}"
        return f"{epoch_folder(self.epoch)}/{step}" if self.epoch else step

    @property
    def id(self) -> str:
        """Last part of its resource name."""
        return f"e{self.epoch}-step-{self.step}"

    @classmethod
    def of_id(cls, text: str) -> CheckpointPoint | None:
        """The point whose id this is; None when it is something else."""
        match = _ID.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None


def superseded(
    points: Iterable[CheckpointPoint], keep_last: int, keep_every: int
) -> list[CheckpointPoint]:
    """The checkpoints of a job that its rule of retention keeps no longer, newest first.

    Args:
        points: on record.
        keep_last: how many of the newest are kept; at least one.
        keep_every: checkpoints of a step that this divides are kept too, of each such step the one
            of the newest epoch; 0 for none.
    """
    ordered = sorted(points, reverse=True)
    kept = set(ordered[: max(keep_last, 1)])
    steps: set[int] = set()
    for point in ordered:
        if keep_every and point.step % keep_every == 0 and point.step not in steps:
            kept.add(point)
            steps.add(point.step)
    return [point for point in ordered if point not in kept]


def epoch_folder(epoch: int) -> str:
    """Name of the folder of an epoch, below that of the series."""
    return f"e{epoch}"


def epoch_of(folder: str) -> int | None:
    """The epoch whose folder has this name; None when it is something else."""
    match = _EPOCH.fullmatch(folder)
    return int(match[1]) if match else None


def step_of(folder: str) -> int | None:
    """The step of a checkpoint whose folder has this name; None when it is something else."""
    match = _STEP.fullmatch(folder)
    return int(match[1]) if match else None
