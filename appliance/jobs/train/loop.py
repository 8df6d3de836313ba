"""The training loop: batch, forward and backward, gradients, update, report, checkpoint.

Rules kept here:
* the fence is asked every step;
* ranks that are told to save and end do so after one and the same step: what each has heard rides
  on the sum of the losses, so that all of them know after it. The losses do not change by that;
* everything that decides the next step (weights, moments, step count, data order) is in the
  checkpoint or a function of seed and step, so a resumed run equals an unbroken one;
* a loss or a gradient that is no number ends the run at once, before a weight or a checkpoint can
  hold it.

Called by `job`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import distributed

from appliance.core.errors import FailedPrecondition, Paused
from appliance.crypto.artifacts import ArtifactReader
from appliance.jobs.runtime.checkpoints import CheckpointSeries
from appliance.jobs.runtime.reporter import Reporter
from appliance.jobs.train import checkpoint
from appliance.jobs.train.optimizer import learning_rate
from appliance.jobs.train.parallel.gradients import clip, redistribute_like_parameters
from appliance.jobs.train.recipe import TrainingState
from appliance.jobs.train.tokens import Batches


@dataclass
class Loop:
    """One rank's training run.

    Args:
        assembly: this rank's part of the model.
        batches: the data.
        rank: of this process.
        report: says how it goes.
        checkpoints: of this job.
        fence: raises when the job must stop.
        saving: whether this rank has heard that the job must save a checkpoint and end.
        mark: says what begins, and that what came before is done.
        beginning: opens the checkpoint of another job that this one begins with.
    """

    assembly: TrainingState
    batches: Batches
    rank: int
    report: Reporter
    checkpoints: CheckpointSeries
    fence: Callable[[], None]
    saving: Callable[[], bool]
    mark: Callable[[str], None]
    beginning: Callable[[], ArtifactReader] | None = None
    losses: checkpoint.Losses | None = None
    resumed_at: int | None = None
    _speeds: list[float] = field(default_factory=list)

    def run(self) -> dict[str, float]:
        """Train to the last step; returns what the job found, by name.

        Raises Paused when the job was told to save and end, after it has saved.
        """
        settings = self.assembly.settings
        self._resume()
        for step in range(self.assembly.optimizer.updates, settings.steps):
            self.fence()
            pausing = self._step(step)
            done = step + 1
            if pausing or done % settings.checkpoint_interval == 0:
                self._save(done)
            if pausing:
                raise Paused.at(done)
        return self._result()

    def _save(self, done: int) -> None:
        if self.losses is not None:
            self.mark(f"saves the checkpoint of step {done}")
            write = partial(checkpoint.write, self.assembly, self.rank, self.losses)
            self.checkpoints.save(done, write)

    def _resume(self) -> None:
        self.mark("looks for a checkpoint")
        found = self.checkpoints.latest()
        if found is not None:
            self.resumed_at, reader = found
            self.mark(f"reads the checkpoint of step {self.resumed_at}")
            self.losses = checkpoint.read(self.assembly, reader)
        elif self.beginning is not None:
            self.mark("reads the checkpoint that it begins with")
            self.losses = checkpoint.read(self.assembly, self.beginning(), same_run=False)
            self.resumed_at = self.assembly.optimizer.updates

    def _step(self, step: int) -> bool:
        """One step; whether the job must pause after it, on which all ranks agree."""
        settings, start = self.assembly.settings, time.perf_counter()
        self.mark(f"step {step + 1}")
        loss, pausing = self._forward_backward(step)
        self.mark(f"step {step + 1}, gradients")
        _check_number("loss", loss, step)
        norm = self._finish_gradients()
        _check_number("gradient", norm, step)
        rate = learning_rate(step, settings.steps, settings.warmup_steps, settings.learning_rate)
        self.mark(f"step {step + 1}, update")
        self.assembly.optimizer.update(rate)
        self.losses = checkpoint.Losses(self.losses.first if self.losses else loss, loss)
        tokens = settings.batch_size * settings.sequence_length
        self._speeds.append(tokens / (time.perf_counter() - start))
        self.report.progress(
            step + 1,
            settings.steps,
            loss=loss,
            tokens_per_second=self._speeds[-1],
            grad_norm=norm,
            learning_rate=rate,
        )
        return pausing

    def _forward_backward(self, step: int) -> tuple[float, bool]:
        """Mean loss over the whole batch, in nats per token, and whether a rank is to pause.

        Both are the same on every rank.
        """
        assembly = self.assembly
        compute, at, device = assembly.forward_backward, assembly.mesh.at, assembly.device
        inputs = targets = None
        if compute.reads_inputs or compute.reads_targets:
            rows = assembly.settings.rows_per_rank
            inputs, targets = self.batches.rows(step, at.data * rows, rows)
        loss = compute(
            inputs.to(device) if inputs is not None and compute.reads_inputs else None,
            targets.to(device) if targets is not None and compute.reads_targets else None,
        )
        total = torch.tensor([0.0, float(self.saving())], device=device)
        if loss is not None:
            total[0] = loss
        if distributed.is_initialized():
            # Ranks without the last stage add nothing; those on the tensor axis add the same.
            distributed.all_reduce(total)
        summed, told = total.tolist()
        return summed / (at.data_size * at.tensor_size), told > 0

    def _finish_gradients(self) -> float:
        assembly = self.assembly
        redistribute_like_parameters(assembly.parameters)
        # Tied weights before the norm: it is the sum of both gradients that counts.
        if assembly.tied_embedding is not None:
            assembly.tied_embedding.add_up(assembly.parameters)
        return clip(
            assembly.parameters,
            assembly.mesh.at,
            assembly.settings.gradient_clip,
            tied=assembly.config.tie_word_embeddings,
        )

    def _result(self) -> dict[str, float]:
        result = {"steps": float(self.assembly.optimizer.updates)}
        if self.losses is not None:
            result |= {"loss_first": self.losses.first, "loss_last": self.losses.last}
        if self._speeds:
            result["tokens_per_second"] = statistics.median(self._speeds)
        if self.resumed_at is not None:
            result["resumed_at_step"] = float(self.resumed_at)
        return result


def _check_number(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise FailedPrecondition(
            f"The {what} became NaN or infinite at step {step + 1}. Lower learning_rate or raise"
            " warmup_steps, and start a new job."
        )
