"""Options of each kind of job, one for every field of its spec."""

from __future__ import annotations

import math
from typing import Any

import click

from appliance.cli.fields import Field
from appliance.cli.following import Duration

PREPARE = (
    Field("datasets", "datasetVersion", "Text to read; repeat it for more.", True, many=True),
    Field("output_dataset", "dataset", "Gets the new version; made if missing.", True),
    Field("output_tokenizer", "tokenizer", "Tokenizer to make; must not exist.", True),
    Field("vocabulary_size", int, "Entries in the vocabulary."),
    Field("near_duplicate_threshold", float, "Similarity of near duplicates."),
    Field("validation_fraction", float, "Share of documents held out."),
    Field("keep_personal_data", bool, "Keep personal data as it is."),
    Field("minimum_characters", int, "Shortest document kept."),
    Field("shard_tokens", int, "Tokens per shard."),
    Field("seed", int, "Seed of the split."),
)


def _shape(name: str, text: str) -> Field:
    """A part of a model's shape that a checkpoint can say too."""
    return Field(f"architecture.{name}", int, text, otherwise="that of --from-checkpoint")


TRAIN = (
    Field("dataset", "datasetVersion", "Tokens to read.", True),
    Field("output_model", "model", "Gets the new version; made if missing.", True),
    _shape("layers", "Decoder layers."),
    _shape("hidden_size", "Width of the residual stream."),
    _shape("intermediate_size", "Width of the feed-forward layer."),
    _shape("attention_heads", "Attention heads."),
    _shape("key_value_heads", "Key and value heads."),
    _shape("context_length", "Longest sequence, in tokens."),
    Field("architecture.tie_embeddings", bool, "Input embedding is output projection too."),
    Field("mesh.data", int, "Ranks that see different data."),
    Field("mesh.tensor", int, "Ranks that split each layer."),
    Field("mesh.pipeline", int, "Ranks that hold different layers."),
    Field("steps", int, "Optimiser steps.", True),
    Field("batch_size", int, "Sequences per step, over all data ranks.", True),
    Field("sequence_length", int, "Tokens per sequence.", True),
    Field(
        "microbatches",
        int,
        "Pieces of a data rank's batch, one after the other: they take less memory, and fill a "
        "pipeline.",
        otherwise="1; with a pipeline twice its ranks",
    ),
    Field("learning_rate", float, "Highest learning rate."),
    Field("warmup_steps", int, "Steps of linear warm-up."),
    Field("weight_decay", float, "AdamW weight decay."),
    Field("gradient_clip", float, "Gradient norm to clip to."),
    Field("seed", int, "Seed of weights and data order."),
    Field("checkpoint_interval", int, "Steps between checkpoints."),
    Field("keep_last", int, "How many of the newest checkpoints are kept."),
    Field("keep_every", int, "Checkpoints of steps that this divides are kept too."),
    Field(
        "from_checkpoint",
        "checkpoint",
        "Checkpoint of another job to begin with; its shape is taken if none is given.",
    ),
    Field(
        "stall_seconds",
        int,
        "Seconds without any sign of work after which all ranks are started again.",
    ),
    Field(
        "pipeline_schedule",
        ("1F1B", "GPipe", "Interleaved1F1B", "ZBVZeroBubble"),
        "Order of the work where there is a pipeline.",
    ),
)
SCHEMES = {"w8a8-int8": "SCHEME_W8A8_INT8"}
QUANTIZE = (
    Field("model", "modelVersion", "Version to read.", True),
    Field("output_model", "model", "Gets the new version; made if missing.", True),
    Field("scheme", SCHEMES, "How numbers are stored.", True),
)
EVALUATE = (
    Field("model", "modelVersion", "Version to measure.", True),
    Field("dataset", "datasetVersion", "Tokens whose held-out text is read.", True),
    Field("max_tokens", int, "Tokens to measure on at most."),
    Field("window", int, "Tokens per window, at most the model's context."),
)
MESSAGES = {
    "prepare": "jobs.v1.job.PrepareSpec",
    "train": "jobs.v1.job.TrainSpec",
    "quantize": "jobs.v1.job.QuantizeSpec",
    "evaluate": "jobs.v1.job.EvaluateSpec",
}
"""The message of each kind's spec, below `appliance.api`."""
KINDS: dict[str, tuple[Field, ...]] = {
    "prepare": PREPARE,
    "train": TRAIN,
    "quantize": QUANTIZE,
    "evaluate": EVALUATE,
}
SHAPE = tuple(
    field.variable
    for field in TRAIN
    if field.path.startswith("architecture.") and field.kind is not bool
)
"""What must be given of a model's shape, unless a checkpoint says it."""
AXES = ("data", "tensor", "pipeline")


class OnLost(click.ParamType[dict[str, Any]]):
    """The message OnLost of `wait`, or of a time such as `300s`."""

    name = "on-lost"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """The message as a dictionary."""
        if value == "wait":
            return {"wait": True}
        try:
            return {"replace_after_seconds": math.ceil(Duration().convert(value, param, ctx))}
        except click.BadParameter as error:
            raise click.BadParameter(f"{error.message}, or `wait`", ctx, param) from error


def mesh_of(text: str) -> dict[str, int]:
    """Degrees of `data=2,tensor=2`. Raises click.UsageError for anything else."""
    mesh: dict[str, int] = {}
    for part in text.split(","):
        axis, _, degree = part.strip().partition("=")
        if axis not in AXES or axis in mesh or not degree.isdecimal():
            raise click.UsageError(f"--mesh {text}: write it like data=2,tensor=2,pipeline=1")
        mesh[axis] = int(degree)
    return mesh
