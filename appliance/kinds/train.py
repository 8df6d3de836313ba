"""The kind `train`: train a model from scratch, or on from a checkpoint of another job.

What its spec says by itself is in `appliance.kinds.train_settings`, which its ranks read too. What
runs: `appliance.jobs.train`. Called by way of `appliance.kinds.kind_of`.
"""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf import json_format

from appliance.api.jobs.v1 import job_pb2
from appliance.core.artifact_kinds import MODEL, TOKENS
from appliance.core.numbers import written
from appliance.core.placement import Demand
from appliance.core.problems import Problems
from appliance.core.values import given
from appliance.kinds.kind import (
    CHECKPOINT,
    FLOAT,
    TORCH_PROCESS,
    Input,
    Inputs,
    Kind,
    Makes,
    Reads,
    flag_of,
)
from appliance.kinds.train_settings import (
    DecoderShape,
    Degrees,
    check_degrees,
    check_order,
    check_shape,
    check_vocabulary,
    microbatches,
    pipeline_schedule,
)

_MAX_PARAMETERS = 1 << 40
_SHAPE = tuple(
    f"architecture.{field.name}"
    for field in job_pb2.Architecture.DESCRIPTOR.fields
    if field.cpp_type != field.CPPTYPE_BOOL
)
# The trainer pads the embedding to a multiple of this in every layout.
_PADDED = 64
# Training in 32-bit floats with AdamW: weights, gradients and two moments; a checkpoint has no
# gradients.
_TRAINED_BYTES = 4 * FLOAT
_SAVED_BYTES = 3 * FLOAT
# Values that one decoder layer keeps for the backward pass, per token, in units of the width
# (attention and norms) and of the feed-forward width.
_KEPT_WIDTHS = 12
_KEPT_FEEDS = 4
# The output's values, their logarithms and their gradients.
_KEPT_LOGITS = 3


# --- what is checked --------------------------------------------------------------------------


def _check(spec: job_pb2.TrainSpec, inputs: Inputs, problems: Problems) -> None:
    tokens = inputs.get(KIND.path("dataset"))
    mine = Problems()
    check_order(spec, mine)
    if not problems.fields:
        check_shape(spec.architecture, mine)
    _take(mine, problems)
    if spec.from_checkpoint:
        _check_beginning(spec, inputs, problems)
    if not problems.fields:
        check_degrees(spec, mine)
        if tokens:
            padded = -(-int(tokens.facts["vocabulary_size"]) // _PADDED) * _PADDED
            check_vocabulary(given(spec.mesh, "tensor"), padded, mine)
        _take(mine, problems)
    if not problems.fields and tokens:
        problems.check(
            KIND.path("architecture"),
            holds=parameters(DecoderShape.of(spec.architecture), _vocabulary(tokens))
            <= _MAX_PARAMETERS,
            sentence="has more parameters than can be trained",
        )


def _take(found: Problems, problems: Problems) -> None:
    """Note what was found in a spec as problems of the job."""
    for path, sentence in found.fields.items():
        problems.add(KIND.path(path), sentence)


# --- a checkpoint to begin with ---------------------------------------------------------------


def _complete(spec: job_pb2.TrainSpec, inputs: Inputs) -> None:
    item = inputs.get(KIND.beginning)
    if item and not spec.HasField("architecture"):
        spec.architecture.CopyFrom(_architecture_of(item))


def _architecture_of(item: Input) -> job_pb2.Architecture:
    """The shape of the model in a checkpoint."""
    found = job_pb2.Architecture()
    json_format.ParseDict(item.facts["spec"].get("architecture", {}), found)
    return found


def _check_beginning(spec: job_pb2.TrainSpec, inputs: Inputs, problems: Problems) -> None:
    """Whether a job can begin with its checkpoint."""
    item, at = inputs.get(KIND.beginning), KIND.path("dataset")
    if item is None:
        return
    problems.check(
        KIND.beginning,
        holds=bool(item.facts["ended"]),
        sentence="is of a job that has not ended: wait for it, or cancel it",
    )
    step = int(item.facts["step"])
    problems.check(
        KIND.path("steps"),
        holds=spec.steps > step,
        sentence=f"is {written(spec.steps)}, and the checkpoint has done {written(step)} of them: "
        "steps count from the very beginning",
    )
    problems.check(
        KIND.path("architecture"),
        holds=spec.architecture == _architecture_of(item),
        sentence="is another than that of the checkpoint: leave it out to take that",
    )
    trained, tokens = item.facts["inputs"].get(at, {}), inputs.get(at)
    before, now = trained.get("vocabulary_size"), tokens and tokens.facts.get("vocabulary_size")
    problems.check(
        at,
        holds=before is None
        or tokens is None
        or trained.get("tokenizer") == tokens.facts.get("tokenizer"),
        sentence="was made with another tokenizer than the tokens of the checkpoint: its numbers "
        "mean other words",
    )
    problems.check(
        at,
        holds=before is None or now is None or before == now,
        sentence=f"has a vocabulary of {now}, the checkpoint one of {before}: name tokens that "
        "were made with the same tokenizer",
    )


# --- what it needs ----------------------------------------------------------------------------


def parameters(shape: DecoderShape, vocabulary: int) -> int:
    """Parameters of a Llama-style decoder."""
    embedding = vocabulary * shape.hidden_size
    ends = embedding if shape.tie_embeddings else 2 * embedding
    return shape.layers * _layer(shape) + ends + shape.hidden_size


def _layer(shape: DecoderShape) -> int:
    """Parameters of one decoder layer."""
    head = shape.hidden_size // shape.attention_heads
    attention = shape.hidden_size * head * (2 * shape.attention_heads + 2 * shape.key_value_heads)
    return attention + 3 * shape.hidden_size * shape.intermediate_size + 2 * shape.hidden_size


def memory(
    shape: DecoderShape, vocabulary: int, cut: Degrees, *, sequences: int, length: int
) -> int:
    """Bytes of one rank, a little too high rather than too low.

    Args:
        shape: of the model.
        vocabulary: its entries.
        cut: how ranks share the work.
        sequences: in one microbatch of one data rank.
        length: tokens in a sequence.
    """
    total = parameters(shape, vocabulary)
    held = total * _TRAINED_BYTES // cut.ranks
    # While it computes, weights and gradients are whole again over the data ranks: all of a
    # pipeline stage, without a pipeline what is outside the layers and one layer at a time.
    whole = total if cut.pipeline > 1 else total - (shape.layers - 1) * _layer(shape)
    gathered = 2 * FLOAT * whole // (cut.tensor * cut.pipeline) if cut.data > 1 else 0
    tokens = sequences * length
    feeds = _KEPT_FEEDS * shape.intermediate_size // cut.tensor
    layers = -(-shape.layers // cut.pipeline)
    # With a pipeline, as many microbatches as stages are under way at the first of them.
    kept = tokens * (_KEPT_WIDTHS * shape.hidden_size + feeds) * layers * FLOAT * cut.pipeline
    scores = sequences * shape.attention_heads * length * length * FLOAT // cut.tensor
    logits = tokens * vocabulary * _KEPT_LOGITS * FLOAT
    return TORCH_PROCESS + held + gathered + kept + scores + logits


def _vocabulary(tokens: Input) -> int:
    return int(tokens.facts["vocabulary_size"])


def _demand(spec: job_pb2.TrainSpec, inputs: Inputs) -> Demand:
    cut = Degrees.of(spec.mesh)
    need = memory(
        DecoderShape.of(spec.architecture),
        _vocabulary(inputs[KIND.path("dataset")]),
        cut,
        sequences=max(spec.batch_size // (cut.data * microbatches(spec)), 1),
        length=spec.sequence_length,
    )
    # An agent of 0.1.0 would leave out the field that it does not know, and train from scratch.
    return Demand(cut.ranks, memory_per_rank=need, new_agent=bool(spec.from_checkpoint))


def _checkpoint_bytes(spec: job_pb2.TrainSpec, inputs: Inputs) -> int:
    """Weights and both moments as 32-bit numbers."""
    vocabulary = _vocabulary(inputs[KIND.path("dataset")])
    return _SAVED_BYTES * parameters(DecoderShape.of(spec.architecture), vocabulary)


# --- what fills it ----------------------------------------------------------------------------


def _fill(spec: job_pb2.TrainSpec, inputs: Inputs) -> None:
    del inputs
    spec.microbatches = microbatches(spec)
    if spec.mesh.pipeline > 1:
        spec.pipeline_schedule = pipeline_schedule(spec)
    else:
        spec.ClearField("pipeline_schedule")


def _with_mesh(spec: job_pb2.TrainSpec, mesh: job_pb2.Mesh) -> None:
    spec.mesh.CopyFrom(mesh)
    spec.ClearField("microbatches")
    spec.ClearField("pipeline_schedule")


def _unsaid(typed: Collection[str]) -> str:
    """A model has its whole shape, or that of the checkpoint it begins with."""
    missing = [path for path in _SHAPE if path not in typed]
    if not missing or ("from_checkpoint" in typed and len(missing) == len(_SHAPE)):
        return ""
    flags = ", ".join(map(flag_of, missing))
    return (
        f"Missing options {flags}: give the whole shape, or {flag_of('from_checkpoint')} without "
        "any of it"
    )


KIND = Kind(
    spec=job_pb2.TrainSpec,
    run="appliance.jobs.train.job:run",
    modules=frozenset({"fsspec", "numpy", "rfc8785", "tokenizers", "torch", "transformers"}),
    reads=(Reads("dataset", (TOKENS,)), Reads("from_checkpoint", (CHECKPOINT,))),
    makes=(Makes("model", "output_model", MODEL),),
    demand=_demand,
    less_memory="use more pipeline or tensor ranks, a smaller batch or more microbatches",
    check=_check,
    complete=_complete,
    fill=_fill,
    checkpoint_bytes=_checkpoint_bytes,
    with_mesh=_with_mesh,
    unsaid=_unsaid,
    measures=("loss", "tokens_per_second"),
)
