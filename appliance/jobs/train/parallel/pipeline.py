"""Pipeline parallel: forward and backward of one batch, in microbatches, over the stages.

`Pipeline` hands the schedule to torch.distributed.pipelining; `SingleStage` is the same without a
pipeline axis: microbatches one after the other, gradients added up. Both give the mean loss over
this data rank's rows and leave in `.grad` the gradient of that mean.

Made by `appliance.jobs.train.recipe`; `loop` calls what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class
from torch.nn import functional

from appliance.core.errors import Internal
from appliance.jobs.train.model import Stage
from appliance.kinds.train_settings import TrainSettings


def next_token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats.

    Args:
        logits: float32 of shape (rows, tokens, vocabulary).
        targets: token ids of shape (rows, tokens).
    """
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def marked_loss(stage: Stage) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """`next_token_loss`, marked as a piece of a stage's work when it is done."""

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found = next_token_loss(logits, targets)
        stage.done()
        return found

    return loss


class ForwardBackward(Protocol):
    """Computes loss and gradients of a batch on this rank."""

    reads_inputs: bool
    reads_targets: bool

    def __call__(
        self, inputs: torch.Tensor | None, targets: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Mean loss over the rows, on ranks with the last stage; None on the others."""


class SingleStage:
    """Every layer on this rank.

    Args:
        stage: first and last at once.
        settings: for the number of microbatches.
        arithmetic: context of the forward pass, for reduced precision.
    """

    reads_inputs = True
    reads_targets = True

    def __init__(
        self, stage: Stage, settings: TrainSettings, arithmetic: AbstractContextManager[None]
    ) -> None:
        self._stage = stage
        self._pieces = settings.microbatches
        self._arithmetic = arithmetic

    def __call__(
        self, inputs: torch.Tensor | None, targets: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Forward and backward of every microbatch."""
        if inputs is None or targets is None:
            raise Internal("This rank computes every layer and needs inputs and targets.")
        total = torch.zeros((), device=inputs.device)
        pairs = zip(inputs.chunk(self._pieces), targets.chunk(self._pieces), strict=True)
        for number, (piece, wanted) in enumerate(pairs, start=1):
            if isinstance(self._stage, FSDPModule):
                # Gradients are exchanged once, after the last microbatch.
                self._stage.set_requires_gradient_sync(number == self._pieces)
            with self._arithmetic:
                loss = marked_loss(self._stage)(self._stage(piece), wanted) / self._pieces
            loss.backward()
            total += loss.detach()
        return total


class Pipeline:
    """Some of the layers on this rank.

    Args:
        stages: of this rank, by their index in the pipeline.
        settings: for schedule, microbatches and sizes.
        axis: the pipeline axis.
        device: of this rank.
        arithmetic: context of the forward pass, for reduced precision.
    """

    def __init__(
        self,
        stages: dict[int, Stage],
        settings: TrainSettings,
        axis: DeviceMesh,
        device: torch.device,
        arithmetic: AbstractContextManager[None],
    ) -> None:
        parts = [
            _pipeline_stage(stage, index, settings, axis, device) for index, stage in stages.items()
        ]
        kind = get_schedule_class(settings.schedule)
        single = issubclass(kind, PipelineScheduleSingle)
        self._schedule = kind(
            parts[0] if single else parts,
            settings.microbatches,
            loss_fn=marked_loss(next(iter(stages.values()))),
        )
        self._arithmetic = arithmetic
        self.reads_inputs = any(stage.first for stage in stages.values())
        self.reads_targets = any(stage.last for stage in stages.values())

    def __call__(
        self, inputs: torch.Tensor | None, targets: torch.Tensor | None
    ) -> torch.Tensor | None:
        """One turn of the schedule; every rank of the pipeline axis calls."""
        given = () if inputs is None else (inputs,)
        losses: list[torch.Tensor] = []
        wanted = {} if targets is None else {"target": targets, "losses": losses}
        with self._arithmetic:
            self._schedule.step(*given, return_outputs=False, **wanted)
        return torch.stack(losses).mean().detach() if losses else None


def _pipeline_stage(
    stage: Stage, index: int, settings: TrainSettings, axis: DeviceMesh, device: torch.device
) -> PipelineStage:
    """The stage with its shapes, so that ranks need not ask each other for them (in pickles)."""
    rows, length = settings.rows_per_piece, settings.sequence_length
    width = stage.model.config.hidden_size
    hidden = torch.empty(rows, length, width, device="meta", requires_grad=True)
    ids = torch.empty(rows, length, dtype=torch.int64, device="meta")
    logits = torch.empty(
        rows, length, stage.model.config.vocab_size, device="meta", requires_grad=True
    )
    return PipelineStage(
        stage,
        index,
        settings.stages,
        device,
        input_args=ids if stage.first else hidden,
        output_args=logits if stage.last else hidden,
        group=axis.get_group(),
    )
