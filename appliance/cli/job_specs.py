"""Options of each kind of job, one for every field of its spec, and the spec made from them.

`Field` says once what the flag is called, where its value goes in the spec and what it means; the
documentation and the completion come from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

Resolve = Callable[[str, str], str]
"""Turns a kind of resource and what was typed into a full name."""


@dataclass(frozen=True)
class Field:
    """One flag.

    Attributes:
        path: field of the spec, `architecture.layers`; the flag is its last part.
        kind: what it takes: int, float, bool, a tuple of choices, or a kind of resource.
        help: what it means.
        required: whether a job needs it.
        many: whether it may be given more than once.
    """

    path: str
    kind: Any
    help: str
    required: bool = False
    many: bool = False

    @property
    def flag(self) -> str:
        """What is typed."""
        return "--" + self.variable.replace("_", "-")

    @property
    def variable(self) -> str:
        """Name of the value in the command's function."""
        leaf = self.path.rpartition(".")[2]
        return leaf.removesuffix("s") if self.many else leaf

    def option(self) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """The click option."""
        if self.kind is bool:
            return click.option(self.flag, is_flag=True, help=self.help)
        if isinstance(self.kind, tuple):
            chosen: Any = click.Choice(self.kind)
        else:
            chosen = self.kind if self.kind in (int, float) else str
        metavar = _METAVARS.get(self.kind) if isinstance(self.kind, str) else None
        return click.option(
            self.flag,
            type=chosen,
            required=self.required,
            multiple=self.many,
            metavar=metavar,
            help=self.help,
        )


_METAVARS = {
    "dataset": "DATASET",
    "datasetVersion": "DATASET/VERSION",
    "model": "MODEL",
    "modelVersion": "MODEL/VERSION",
    "text": "TEXT",
    "tokenizer": "TOKENIZER",
}

PREPARE = (
    Field("datasets", "datasetVersion", "Text to read; repeat it for more.", True, many=True),
    Field("output_dataset", "dataset", "Gets the new version; made if missing.", True),
    Field("output_tokenizer", "tokenizer", "Tokenizer to make; must not exist.", True),
    Field("vocabulary_size", int, "Entries in the vocabulary.  [default: 8192]"),
    Field("near_duplicate_threshold", float, "Similarity of near duplicates.  [default: 0.8]"),
    Field("validation_fraction", float, "Share of documents held out.  [default: 0.02]"),
    Field("keep_personal_data", bool, "Keep personal data as it is."),
    Field("minimum_characters", int, "Shortest document kept.  [default: 200]"),
    Field("shard_tokens", int, "Tokens per shard.  [default: 1048576]"),
    Field("seed", int, "Seed of the split."),
)
TRAIN = (
    Field("dataset", "datasetVersion", "Tokens to read.", True),
    Field("output_model", "model", "Gets the new version; made if missing.", True),
    Field("architecture.layers", int, "Decoder layers.", True),
    Field("architecture.hidden_size", int, "Width of the residual stream.", True),
    Field("architecture.intermediate_size", int, "Width of the feed-forward layer.", True),
    Field("architecture.attention_heads", int, "Attention heads.", True),
    Field("architecture.key_value_heads", int, "Key and value heads.", True),
    Field("architecture.context_length", int, "Longest sequence, in tokens.", True),
    Field("architecture.tie_embeddings", bool, "Input embedding is output projection too."),
    Field("mesh.data", int, "Ranks that see different data.  [default: 1]"),
    Field("mesh.tensor", int, "Ranks that split each layer.  [default: 1]"),
    Field("mesh.pipeline", int, "Ranks that hold different layers.  [default: 1]"),
    Field("steps", int, "Optimiser steps.", True),
    Field("batch_size", int, "Sequences per step, over all data ranks.", True),
    Field("sequence_length", int, "Tokens per sequence.", True),
    Field(
        "microbatches",
        int,
        "Pieces of a data rank's batch, one after the other: they take less memory, and fill a "
        "pipeline.  [default: 1; with a pipeline twice its ranks]",
    ),
    Field("learning_rate", float, "Highest learning rate.  [default: 0.001]"),
    Field("warmup_steps", int, "Steps of linear warm-up."),
    Field("weight_decay", float, "AdamW weight decay."),
    Field("gradient_clip", float, "Gradient norm to clip to.  [default: 1.0]"),
    Field("seed", int, "Seed of weights and data order."),
    Field("checkpoint_interval", int, "Steps between checkpoints.  [default: 50]"),
    Field(
        "pipeline_schedule",
        ("1F1B", "GPipe", "Interleaved1F1B", "ZBVZeroBubble"),
        "Pipeline schedule.  [default: 1F1B]",
    ),
)
SCHEMES = {"w8a8-int8": "SCHEME_W8A8_INT8"}
QUANTIZE = (
    Field("model", "modelVersion", "Version to read.", True),
    Field("output_model", "model", "Gets the new version; made if missing.", True),
    Field("scheme", tuple(SCHEMES), "How numbers are stored.", True),
)
EVALUATE = (
    Field("model", "modelVersion", "Version to measure.", True),
    Field("dataset", "datasetVersion", "Tokens whose held-out text is read.", True),
    Field("max_tokens", int, "Tokens to measure on at most.  [default: 4096]"),
    Field("window", int, "Tokens per window.  [default: 512]"),
)
KINDS: dict[str, tuple[Field, ...]] = {
    "prepare": PREPARE,
    "train": TRAIN,
    "quantize": QUANTIZE,
    "evaluate": EVALUATE,
}
AXES = ("data", "tensor", "pipeline")


def options(fields: Sequence[Field]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function the options of a spec, in the order of the table."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(fields):
            function = field.option()(function)
        return function

    return decorate


def spec_of(fields: Sequence[Field], values: Mapping[str, Any], resolve: Resolve) -> dict[str, Any]:
    """The spec as nested dictionaries; what was not given is left out."""
    spec: dict[str, Any] = {}
    for field in fields:
        value = values[field.variable]
        # A zero that was asked for is a zero, and equals False.
        if value is None or value is False or value == ():
            continue
        if isinstance(field.kind, str):
            value = (
                [resolve(field.kind, v) for v in value]
                if field.many
                else resolve(field.kind, value)
            )
        elif field.path == "scheme":
            value = SCHEMES[value]
        head, _, leaf = field.path.rpartition(".")
        (spec.setdefault(head, {}) if head else spec)[leaf] = value
    return spec


def mesh_of(text: str) -> dict[str, int]:
    """Degrees of `data=2,tensor=2`. Raises click.UsageError for anything else."""
    mesh: dict[str, int] = {}
    for part in text.split(","):
        axis, _, degree = part.strip().partition("=")
        if axis not in AXES or axis in mesh or not degree.isdecimal():
            raise click.UsageError(f"--mesh {text}: write it like data=2,tensor=2,pipeline=1")
        mesh[axis] = int(degree)
    return mesh
