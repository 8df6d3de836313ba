"""How one rank's part of the training is put together: read this first.

Called by `appliance.jobs.train.job`. Every rank calls `build_training_state` with the same
settings.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig

from appliance.jobs.train.model import Mark, Stage, allocate, meta_stage, seed_weights
from appliance.jobs.train.optimizer import Optimizer
from appliance.jobs.train.parallel import data, tensor
from appliance.jobs.train.parallel.gradients import TiedEmbedding
from appliance.jobs.train.parallel.mesh import Mesh
from appliance.jobs.train.parallel.pipeline import ForwardBackward, Pipeline, SingleStage
from appliance.jobs.train.parallel.schedules import (
    layers_of_stage,
    rank_of_stage,
    stages_of_rank,
)
from appliance.jobs.train.parallel.slices import DATA, PIPELINE, TENSOR
from appliance.kinds.train_settings import TrainSettings


@dataclass(frozen=True)
class TrainingState:
    """One rank's part: where it stands, what it holds, how it computes."""

    settings: TrainSettings
    config: LlamaConfig
    mesh: Mesh
    device: torch.device
    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    forward_backward: ForwardBackward
    tied_embedding: TiedEmbedding | None


def build_training_state(
    settings: TrainSettings,
    config: LlamaConfig,
    rank: int,
    device: torch.device,
    mark: Mark | None = None,
) -> TrainingState:
    """Cut the model, apply the parallelisms, seed the weights.

    `mark` is called, then and in each step, when a layer or some parameters are done.
    """
    mesh = Mesh.build(settings.degrees, rank, device)
    stages = _stages(settings, config, mesh, mark)
    for stage in stages.values():
        # Tensor parallel first: it decides which part of a matrix this rank computes with, and
        # FSDP then shards that part. The other way round, layers would be cut across their shards.
        if axis := mesh.axis(TENSOR):
            tensor.split_layers(stage, config, axis)
        if axis := mesh.axis(DATA):
            data.shard(stage, axis, keep_gathered=settings.stages > 1)
        # Memory last: until here everything was on the meta device, and now only the slices that
        # are left to this rank are allocated.
        allocate(stage, config, device)
        seed_weights(stage, config, settings.seed, mesh.at)
    # Names are unique over stages, so one flat table serves optimiser, checkpoint and export.
    parameters = {
        name: parameter
        for stage in stages.values()
        for name, parameter in stage.parameters_by_name().items()
    }
    return TrainingState(
        settings=settings,
        config=config,
        mesh=mesh,
        device=device,
        parameters=parameters,
        # After allocation: the optimiser's moments have the shapes of the local slices.
        optimizer=Optimizer(parameters, settings.weight_decay, mark),
        forward_backward=_forward_backward(settings, mesh, stages, device),
        tied_embedding=_tied_embedding(settings, config, mesh),
    )


def _stages(
    settings: TrainSettings, config: LlamaConfig, mesh: Mesh, mark: Mark | None
) -> dict[int, Stage]:
    count, ranks = settings.stages, settings.degrees.pipeline
    return {
        index: meta_stage(
            config,
            layers_of_stage(index, count, settings.shape.layers),
            first=index == 0,
            last=index == count - 1,
            mark=mark,
        )
        for index in stages_of_rank(settings.schedule, mesh.pipeline, ranks, count)
    }


def _forward_backward(
    settings: TrainSettings, mesh: Mesh, stages: dict[int, Stage], device: torch.device
) -> ForwardBackward:
    arithmetic = _arithmetic(device)
    if axis := mesh.axis(PIPELINE):
        return Pipeline(stages, settings, axis, device, arithmetic)
    return SingleStage(stages[0], settings, arithmetic)


def _tied_embedding(
    settings: TrainSettings, config: LlamaConfig, mesh: Mesh
) -> TiedEmbedding | None:
    if not config.tie_word_embeddings or settings.stages == 1:
        return None
    last = rank_of_stage(settings.schedule, settings.stages - 1, settings.degrees.pipeline)
    return TiedEmbedding(mesh, first=0, last=last)


def _arithmetic(device: torch.device) -> AbstractContextManager[None]:
    """Weights and optimiser are float32 everywhere; GPUs multiply in bfloat16."""
    if device.type == "cpu":
        return nullcontext()
    # No cache of converted weights: they belong to one microbatch, FSDP frees them after it.
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)
