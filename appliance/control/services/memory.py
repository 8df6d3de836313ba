"""How much memory work needs, estimated before it starts. Pure.

Estimates are a little too high rather than too low: they decide where work may run, and a job that
is killed for memory after an hour costs more than one that is refused with a sentence. Bytes
throughout.

Called by the job and endpoint services when they accept, and by the scheduler when it places.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30

TORCH_PROCESS = 400 * MIB
"""A rank that has imported torch and done nothing yet."""
ENGINE_PROCESS = 3 * GIB // 2
"""An inference engine of one device: its processes without weights and cache."""
_FLOAT = 4
# Training in 32-bit floats with AdamW: weights, gradients and two moments.
_TRAINED_BYTES = 4 * _FLOAT
# Values that one decoder layer keeps for the backward pass, per token, in units of the width
# (attention and norms) and of the feed-forward width.
_KEPT_WIDTHS = 12
_KEPT_FEEDS = 4
# The output's values, their logarithms and their gradients.
_KEPT_LOGITS = 3


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes, and how a training job cuts it."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    vocabulary_size: int
    tie_embeddings: bool


def parameters(shape: Shape) -> int:
    """Parameters of a Llama-style decoder."""
    embedding = shape.vocabulary_size * shape.hidden_size
    ends = embedding if shape.tie_embeddings else 2 * embedding
    return shape.layers * _layer(shape) + ends + shape.hidden_size


def _layer(shape: Shape) -> int:
    """Parameters of one decoder layer."""
    head = shape.hidden_size // shape.attention_heads
    attention = shape.hidden_size * head * (2 * shape.attention_heads + 2 * shape.key_value_heads)
    return attention + 3 * shape.hidden_size * shape.intermediate_size + 2 * shape.hidden_size


def train_rank(  # noqa: PLR0913  # the degrees and sizes of one job
    shape: Shape, *, data: int, tensor: int, pipeline: int, sequences: int, length: int
) -> int:
    """Memory of one rank of a training job.

    Args:
        shape: of the model.
        data: ranks that shard parameters (FSDP).
        tensor: ranks that split each layer.
        pipeline: ranks that hold different layers.
        sequences: in one microbatch of one data rank.
        length: tokens in a sequence.
    """
    total = parameters(shape)
    held = total * _TRAINED_BYTES // (data * tensor * pipeline)
    # While it computes, weights and gradients are whole again over the data ranks: all of a
    # pipeline stage, without a pipeline what is outside the layers and one layer at a time.
    whole = total if pipeline > 1 else total - (shape.layers - 1) * _layer(shape)
    gathered = 2 * _FLOAT * whole // (tensor * pipeline) if data > 1 else 0
    tokens = sequences * length
    per_layer = _KEPT_WIDTHS * shape.hidden_size + _KEPT_FEEDS * shape.intermediate_size // tensor
    layers = -(-shape.layers // pipeline)
    # With a pipeline, as many microbatches as stages are under way at the first of them.
    kept = tokens * per_layer * layers * _FLOAT * pipeline
    scores = sequences * shape.attention_heads * length * length * _FLOAT // tensor
    logits = tokens * shape.vocabulary_size * _KEPT_LOGITS * _FLOAT
    return TORCH_PROCESS + held + gathered + kept + scores + logits


def prepare_rank(text_bytes: int) -> int:
    """Memory of a prepare job, whose signatures and tokenizer counts grow with the text.

    Two documents of 3 MiB that are compared with each other, of a script whose letters are words,
    take 800 MiB: more than all else.
    """
    return GIB + 6 * text_bytes


def quantize_rank(largest_tensor: int) -> int:
    """Memory of a quantize job, which holds one tensor at a time in 32-bit floats, thrice."""
    return TORCH_PROCESS + 256 * MIB + 3 * _FLOAT * largest_tensor


def evaluate_rank(count: int, window: int, vocabulary: int) -> int:
    """Memory of an evaluate job: the model in 32-bit floats and the values of one window."""
    return TORCH_PROCESS + GIB // 2 + _FLOAT * count + _KEPT_LOGITS * _FLOAT * window * vocabulary


def replica_device(weights: int, tensor_parallel: int, cache: int) -> int:
    """Memory of a replica on each of its devices: a part of the weights, the cache, the engine."""
    return ENGINE_PROCESS + weights // tensor_parallel + cache


def readable(size: int) -> str:
    """Bytes for a person, such as `3.1 GiB`."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{max(size // MIB, 1)} MiB"
