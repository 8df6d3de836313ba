"""What a kind of job is given: its spec, its rank, its device, and sealed ways in and out.

A kind is `run(context: Context) -> None`. It runs once in every rank, with the process group
already set up (`gloo` for CPU tensors, and `nccl` for CUDA tensors on GPU nodes) when there is more
than one rank.

Rules kept here:
* a kind never sees a path of the object store, a key or the pipe: only readers, writers and
  reports;
* `fence()` is called at least once a step; it raises LeaseLost when this epoch must stop, and the
  kind lets that exception pass;
* where other ranks may wait, `mark()` is called for every piece of work that is done, small enough
  to take seconds: a rank that leaves no mark for long is taken for hung. Fences, and bytes that are
  read and written, are marks;
* when `saving()` is true a kind that keeps checkpoints saves one and raises `Paused`, every rank at
  the same step. Ranks may see it at different times, so they agree by a collective; a kind that
  keeps none never hears of it;
* after a crash all ranks start again from the beginning of `run`, which therefore begins with
  `checkpoints().latest()`.

Made by the runtime (`ranks`), and by tests (`tests/fakes/job_context.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from appliance.core.errors import InvalidInput, LeaseLost
from appliance.crypto.artifacts import ArtifactReader
from appliance.crypto.store import ArtifactStore
from appliance.jobs.runtime.checkpoints import CheckpointSeries
from appliance.jobs.runtime.gather import gather
from appliance.jobs.runtime.orders import JobOrders
from appliance.jobs.runtime.outputs import OutputWriter
from appliance.jobs.runtime.reporter import Reporter
from appliance.jobs.runtime.signs import Life

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Context:
    """One rank's view of its job.

    `spec` is the message of the job's kind, such as `TrainSpec`. `scratch` is a folder that goes
    away with the job; plain weights and plain text do not belong there.
    """

    orders: JobOrders = field(repr=False)
    rank: int
    local_rank: int
    device: torch.device
    report: Reporter = field(repr=False)
    scratch: Path
    stopping: Callable[[], bool] = field(repr=False)
    saving: Callable[[], bool] = field(repr=False)
    life: Life = field(repr=False)

    @property
    def job(self) -> str:
        """Resource name of the job."""
        return self.orders.job

    @property
    def uid(self) -> str:
        """Stable identifier of the job."""
        return self.orders.uid

    @property
    def epoch(self) -> int:
        """Epoch of the lease."""
        return self.orders.epoch

    @property
    def project(self) -> str:
        """Id of the project."""
        return self.orders.project

    @property
    def spec(self) -> Any:  # noqa: ANN401  # one of the spec messages of a job, as the kind knows
        """The message of the job's kind."""
        return self.orders.spec

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.orders.world_size

    def input(self, name: str) -> ArtifactReader:
        """Open an input by its resource name.

        Raises NotFound, Tampered, Stale; InvalidInput for a name not ordered.
        """
        try:
            artifact = self.orders.inputs[name]
        except KeyError as error:
            raise InvalidInput(f"the job has no input {name}") from error
        return self._store().reader(artifact)

    def output(self, slot: str) -> OutputWriter:
        """A writer for the output of a slot, such as `model`.

        With one writing rank, `finish(facts)`; when every rank writes files, all call
        `finish_together(rank, facts)`.
        """
        try:
            artifact = self.orders.outputs[slot]
        except KeyError as error:
            raise InvalidInput(f"the job has no output {slot}") from error
        return OutputWriter(
            self._store(),
            artifact,
            slot=slot,
            epoch=self.epoch,
            report=self.report,
            fence=self.fence,
        )

    def checkpoints(self) -> CheckpointSeries:
        """The checkpoints of this job; InvalidInput when its kind keeps none."""
        try:
            series = self.orders.outputs[CHECKPOINTS]
        except KeyError as error:
            raise InvalidInput("the job has no checkpoints") from error
        return CheckpointSeries(
            self._store(),
            series,
            self.epoch,
            self.rank,
            self.report,
            self.fence,
            self.orders.resume,
        )

    def mark(self, doing: str = "") -> None:
        """A piece of work is done; `doing` says what begins now, in a few ASCII words of ours."""
        self.life.mark(doing)

    def fence(self) -> None:
        """Raise LeaseLost when this epoch must stop."""
        self.mark()
        if self.stopping():
            raise LeaseLost("the job was told to stop on this node")

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401  # whatever JSON holds
        """The JSON values of all ranks, by rank; every rank calls. Also a barrier."""
        return gather(value)

    def _store(self) -> ArtifactStore:
        return ArtifactStore.at(self.orders.objects, moved=self.mark)
