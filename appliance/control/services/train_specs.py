"""Whether the spec of a train job can work, and what it needs. Pure.

Called by `services.job_specs`.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import json_format

from appliance.api.jobs.v1 import job_pb2
from appliance.control.services import memory
from appliance.control.services.job_inputs import Input, is_tokens
from appliance.control.services.problems import Problems
from appliance.core import values
from appliance.core.numbers import written
from appliance.core.placement import Demand
from appliance.core.values import given

BEGINNING = "job.train.from_checkpoint"
"""Path of the field that names the checkpoint a job begins with."""
_TWO_STAGES = frozenset({"Interleaved1F1B", "ZBVZeroBubble"})
_MOST_RANKS = 4096
_MOST_TRAINED_PARAMETERS = 1 << 40


def check(spec: job_pb2.TrainSpec, inputs: Mapping[str, Input], problems: Problems) -> None:
    """Note what is wrong with a spec; `inputs` by field path, those that exist."""
    at = "job.train"
    item = inputs.get(f"{at}.dataset")
    problems.check(
        f"{at}.dataset",
        holds=is_tokens(item),
        sentence="holds text; name a version that a prepare job made",
    )
    _check_shape(spec.architecture, problems)
    problems.check(
        f"{at}.warmup_steps",
        holds=spec.steps < 1 or spec.warmup_steps <= spec.steps,
        sentence=f"must be 0 to the {written(spec.steps)} steps",
    )
    problems.check(
        f"{at}.sequence_length",
        holds=spec.sequence_length <= spec.architecture.context_length
        or not spec.HasField("architecture"),
        sentence=f"is longer than the context of {written(spec.architecture.context_length)}",
    )
    if spec.from_checkpoint:
        _check_beginning(spec, inputs, problems)
    if not problems.fields:
        _check_degrees(spec, int(item.facts["vocabulary_size"]) if item else 0, problems)
    if not problems.fields and item:
        problems.check(
            f"{at}.architecture",
            holds=memory.parameters(_shape(spec, item)) <= _MOST_TRAINED_PARAMETERS,
            sentence="has more parameters than can be trained",
        )


def _check_beginning(
    spec: job_pb2.TrainSpec, inputs: Mapping[str, Input], problems: Problems
) -> None:
    """Whether a job can begin with its checkpoint."""
    at, item = "job.train", inputs.get(BEGINNING)
    if item is None:
        return
    problems.check(
        BEGINNING,
        holds=bool(item.facts["ended"]),
        sentence="is of a job that has not ended: wait for it, or cancel it",
    )
    step = int(item.facts["step"])
    problems.check(
        f"{at}.steps",
        holds=spec.steps > step,
        sentence=f"is {written(spec.steps)}, and the checkpoint has done {written(step)} of them: "
        "steps count from the very beginning",
    )
    problems.check(
        f"{at}.architecture",
        holds=spec.architecture == architecture_of(item),
        sentence="is another than that of the checkpoint: leave it out to take that",
    )
    tokens = inputs.get(f"{at}.dataset")
    trained, now = item.facts.get("vocabulary_size"), tokens and tokens.facts.get("vocabulary_size")
    same = tokens is None or item.facts.get("tokenizer") == tokens.facts.get("tokenizer")
    problems.check(
        f"{at}.dataset",
        holds=trained is None or same,
        sentence="was made with another tokenizer than the tokens of the checkpoint: its numbers "
        "mean other words",
    )
    problems.check(
        f"{at}.dataset",
        holds=trained is None or now is None or trained == now,
        sentence=f"has a vocabulary of {now}, the checkpoint one of {trained}: name tokens that "
        "were made with the same tokenizer",
    )


def architecture_of(item: Input) -> job_pb2.Architecture:
    """The shape of the model in a checkpoint."""
    found = job_pb2.Architecture()
    json_format.ParseDict(item.facts["spec"].get("architecture", {}), found)
    return found


def _check_shape(shape: job_pb2.Architecture, problems: Problems) -> None:
    at = "job.train.architecture"
    if problems.fields:
        return
    _divides(
        problems,
        f"{at}.key_value_heads",
        shape.key_value_heads,
        shape.attention_heads,
        "attention heads",
    )
    _divides(problems, f"{at}.attention_heads", shape.attention_heads, shape.hidden_size, "width")
    problems.check(
        f"{at}.attention_heads",
        holds=shape.hidden_size // shape.attention_heads % 2 == 0,
        sentence="leave heads of odd width; rotary positions need an even one",
    )


def _check_degrees(spec: job_pb2.TrainSpec, vocabulary: int, problems: Problems) -> None:
    at = "job.train.mesh"
    data, tensor, pipeline = degrees(spec)
    shape = spec.architecture
    problems.check(
        at,
        holds=data * tensor * pipeline <= _MOST_RANKS,
        sentence=f"asks for more than {written(_MOST_RANKS)} ranks",
    )
    for size, what in (
        (shape.attention_heads, "attention heads"),
        (shape.key_value_heads, "key and value heads"),
        (shape.intermediate_size, "intermediate size"),
        # The trainer pads the embedding to a multiple of 64 in every layout.
        (-(-vocabulary // 64) * 64, "padded vocabulary"),
    ):
        _divides(problems, f"{at}.tensor", tensor, size, what)
    stages = pipeline * (2 if _two_stages(spec) else 1)
    problems.check(
        f"{at}.pipeline",
        holds=shape.layers % stages == 0,
        sentence=f"needs {stages} stages, which do not share {shape.layers} layers evenly: "
        "use a divisor",
    )
    problems.check(
        "job.train.pipeline_schedule",
        holds=pipeline > 1 or not spec.pipeline_schedule,
        sentence="has no effect without a pipeline: leave it out, or make mesh.pipeline 2 or more",
    )
    _check_batch(spec, problems)


def _check_batch(spec: job_pb2.TrainSpec, problems: Problems) -> None:
    data, _, pipeline = degrees(spec)
    pieces = values.microbatches(spec)
    problems.check(
        "job.train.batch_size",
        holds=spec.batch_size % (data * pieces) == 0,
        sentence=f"is {spec.batch_size}, which {data} data ranks with {pieces} microbatches each "
        f"do not share: use a multiple of {data * pieces}",
    )
    problems.check(
        "job.train.microbatches",
        holds=pipeline == 1 or pieces >= pipeline,
        sentence=f"must be at least the {pipeline} pipeline ranks, or some would only wait",
    )
    if _two_stages(spec):
        problems.check(
            "job.train.microbatches",
            holds=pieces % pipeline == 0,
            sentence=f"must be a multiple of the {pipeline} pipeline ranks for this schedule",
        )


def checkpoint_bytes(spec: job_pb2.TrainSpec, item: Input) -> int:
    """Bytes of a checkpoint, about: weights and both moments as 32-bit numbers."""
    return 12 * memory.parameters(_shape(spec, item))


def degrees(spec: job_pb2.TrainSpec) -> tuple[int, int, int]:
    """Data, tensor and pipeline degree."""
    mesh = spec.mesh
    return given(mesh, "data"), given(mesh, "tensor"), given(mesh, "pipeline")


def _two_stages(spec: job_pb2.TrainSpec) -> bool:
    """Whether each pipeline rank holds two stages."""
    return values.pipeline_schedule(spec) in _TWO_STAGES


def _shape(spec: job_pb2.TrainSpec, item: Input) -> memory.Shape:
    shape = spec.architecture
    return memory.Shape(
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        attention_heads=shape.attention_heads,
        key_value_heads=shape.key_value_heads,
        vocabulary_size=int(item.facts["vocabulary_size"]),
        tie_embeddings=shape.tie_embeddings,
    )


def demand(spec: job_pb2.TrainSpec, item: Input) -> Demand:
    """Ranks of a checked job and the memory of each; `item` holds its tokens."""
    data, tensor, pipeline = degrees(spec)
    need = memory.train_rank(
        _shape(spec, item),
        data=data,
        tensor=tensor,
        pipeline=pipeline,
        sequences=max(spec.batch_size // (data * values.microbatches(spec)), 1),
        length=spec.sequence_length,
    )
    # An agent of 0.1.0 would leave out the field that it does not know, and train from scratch.
    return Demand(
        data * tensor * pipeline, memory_per_rank=need, new_agent=bool(spec.from_checkpoint)
    )


def _divides(problems: Problems, path: str, part: int, whole: int, what: str) -> None:
    problems.check(
        path,
        holds=whole % part == 0,
        sentence=f"is {part}, which does not divide the {what} of {whole}: use a divisor",
    )
