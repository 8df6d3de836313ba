"""Whether a job's spec can work, and what it needs. Pure.

Rules kept here:
* everything that can be known before devices are taken is checked before the job is accepted;
* all wrong fields are reported at once, with one sentence each;
* a field that is zero has the default its proto comment states.

Called by `services.jobs` (check) and by the scheduler (demand).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from appliance.api.jobs.v1 import job_pb2
from appliance.control.services import memory
from appliance.core.errors import InvalidInput
from appliance.core.names import Name
from appliance.core.numbers import span, written
from appliance.core.placement import Demand
from appliance.core.presence import given

KINDS: dict[str, type[Message]] = {
    "prepare": job_pb2.PrepareSpec,
    "train": job_pb2.TrainSpec,
    "quantize": job_pb2.QuantizeSpec,
    "evaluate": job_pb2.EvaluateSpec,
}
"""Kind of a job (the oneof's member) and the message that describes it."""

SCHEDULES = frozenset({"", "1F1B", "GPipe", "Interleaved1F1B", "ZBVZeroBubble"})
_TWO_STAGES = frozenset({"Interleaved1F1B", "ZBVZeroBubble"})
_MOST_RANKS = 4096
_MOST_DATASETS = 100
_LARGEST_SHAPE = 1 << 18
_MOST_TRAINED_PARAMETERS = 1 << 40
_MOST_STEPS = 99_999_999
"""The name of a checkpoint has eight digits."""


@dataclass(frozen=True)
class Input:
    """An artifact version a job reads: kind `dataset` or `model`, its facts, bytes of plaintext."""

    kind: str
    facts: Mapping[str, Any]
    size_bytes: int


@dataclass
class Problems:
    """What is wrong with a request, by field."""

    fields: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, sentence: str) -> None:
        """Note a problem; the first one of a field stands."""
        self.fields.setdefault(path, sentence)

    def check(self, path: str, *, holds: bool, sentence: str) -> bool:
        """Note a problem unless `holds`; returns `holds`."""
        if not holds:
            self.add(path, sentence)
        return holds

    def raise_if_any(self) -> None:
        """Raise InvalidInput with every problem."""
        if self.fields:
            text = "; ".join(f"{path} {sentence}" for path, sentence in self.fields.items())
            raise InvalidInput(f"{text}.", fields=self.fields)


def parse_name(text: str, kind: str, path: str, project: str, problems: Problems) -> Name | None:
    """A resource name of the job's own project, or None with a problem noted."""
    try:
        name = Name.parse(text, kind, field=path)
    except InvalidInput as error:
        problems.add(path, error.fields[path])
        return None
    if name.project != project:
        problems.add(
            path,
            f"is in project {name.project}; a job works inside its own project: name one of "
            f"{project}",
        )
        return None
    return name


def inputs_of(kind: str, spec: Message) -> dict[str, tuple[str, str]]:
    """Field path -> (resource name, kind of the name) of what a job reads."""
    match kind, spec:
        case "prepare", job_pb2.PrepareSpec():
            return {
                f"job.prepare.datasets[{index}]": (name, "datasetVersion")
                for index, name in enumerate(spec.datasets)
            }
        case "train", job_pb2.TrainSpec():
            return {"job.train.dataset": (spec.dataset, "datasetVersion")}
        case "quantize", job_pb2.QuantizeSpec():
            return {"job.quantize.model": (spec.model, "modelVersion")}
        case "evaluate", job_pb2.EvaluateSpec():
            return {
                "job.evaluate.model": (spec.model, "modelVersion"),
                "job.evaluate.dataset": (spec.dataset, "datasetVersion"),
            }
    raise InvalidInput(f"{kind} is not a kind of job")


def outputs_of(kind: str, spec: Message) -> dict[str, tuple[str, str, str]]:
    """Slot -> (field path, resource name, kind of the name) of what a job makes."""
    match kind, spec:
        case "prepare", job_pb2.PrepareSpec():
            return {
                "dataset": ("job.prepare.output_dataset", spec.output_dataset, "dataset"),
                "tokenizer": ("job.prepare.output_tokenizer", spec.output_tokenizer, "tokenizer"),
            }
        case "train", job_pb2.TrainSpec():
            return {"model": ("job.train.output_model", spec.output_model, "model")}
        case "quantize", job_pb2.QuantizeSpec():
            return {"model": ("job.quantize.output_model", spec.output_model, "model")}
    return {}


def check(kind: str, spec: Message, inputs: Mapping[str, Input], problems: Problems) -> None:
    """Note what is wrong with a spec.

    Args:
        kind: of the job.
        spec: the oneof's member.
        inputs: by field path, those that exist.
        problems: takes what is wrong.
    """
    match kind, spec:
        case "prepare", job_pb2.PrepareSpec():
            _check_prepare(spec, inputs, problems)
        case "train", job_pb2.TrainSpec():
            _check_train(spec, inputs, problems)
        case "quantize", job_pb2.QuantizeSpec():
            _check_quantize(spec, inputs, problems)
        case "evaluate", job_pb2.EvaluateSpec():
            _check_evaluate(spec, inputs, problems)


def demand(kind: str, spec: Message, inputs: Mapping[str, Input]) -> Demand:
    """Ranks of a checked job and the memory of each."""
    match kind, spec:
        case "train", job_pb2.TrainSpec():
            return _train_demand(spec, inputs["job.train.dataset"])
        case "quantize", job_pb2.QuantizeSpec():
            largest = int(inputs["job.quantize.model"].facts.get("largest_tensor", 0))
            return Demand(1, memory_per_rank=memory.quantize_rank(largest))
        case "evaluate", job_pb2.EvaluateSpec():
            facts = inputs["job.evaluate.model"].facts
            count, vocabulary = int(facts["parameters"]), int(facts["vocabulary_size"])
            window = min(given(spec, "window", 512), int(facts["context_length"]))
            return Demand(1, memory_per_rank=memory.evaluate_rank(count, window, vocabulary))
    text = sum(item.size_bytes for item in inputs.values())
    return Demand(1, memory_per_rank=memory.prepare_rank(text))


def _is_text(item: Input | None) -> bool:
    return item is None or item.facts.get("kind") == "text"


def _is_tokens(item: Input | None) -> bool:
    return item is None or item.facts.get("kind") == "tokens"


def _check_prepare(
    spec: job_pb2.PrepareSpec, inputs: Mapping[str, Input], problems: Problems
) -> None:
    at = "job.prepare"
    count = len(spec.datasets)
    problems.check(
        f"{at}.datasets",
        holds=0 < count <= _MOST_DATASETS,
        sentence=f"must name 1 to {_MOST_DATASETS} versions",
    )
    problems.check(
        f"{at}.datasets",
        holds=len(set(spec.datasets)) == count,
        sentence="names the same version twice",
    )
    for path, item in inputs.items():
        problems.check(
            path,
            holds=_is_text(item),
            sentence="holds tokens; name a version of text",
        )
    _optional(problems, at, spec, "vocabulary_size", 8192, 512, 65536)
    _optional(problems, at, spec, "near_duplicate_threshold", 0.8, 0.1, 1)
    _optional(problems, at, spec, "validation_fraction", 0.02, 0, 0.5)
    _optional(problems, at, spec, "minimum_characters", 200, 1, 1 << 20)
    _optional(problems, at, spec, "shard_tokens", 1 << 20, 1024, 1 << 32)


def _check_train(spec: job_pb2.TrainSpec, inputs: Mapping[str, Input], problems: Problems) -> None:
    at = "job.train"
    item = inputs.get(f"{at}.dataset")
    problems.check(
        f"{at}.dataset",
        holds=_is_tokens(item),
        sentence="holds text; name a version that a prepare job made",
    )
    _check_shape(spec.architecture, problems)
    _between(problems, f"{at}.steps", spec.steps, 1, _MOST_STEPS)
    _between(problems, f"{at}.batch_size", spec.batch_size, 1, 1 << 20)
    _between(problems, f"{at}.sequence_length", spec.sequence_length, 2, 1 << 20)
    _optional(problems, at, spec, "learning_rate", 0.001, 1e-9, 10)
    _between(problems, f"{at}.warmup_steps", spec.warmup_steps, 0, max(spec.steps, 0))
    _between(problems, f"{at}.weight_decay", spec.weight_decay, 0, 10)
    _optional(problems, at, spec, "gradient_clip", 1.0, 1e-6, 1e6)
    _optional(problems, at, spec, "checkpoint_interval", 50, 1)
    problems.check(
        f"{at}.sequence_length",
        holds=spec.sequence_length <= spec.architecture.context_length,
        sentence=f"is longer than the context of {spec.architecture.context_length}",
    )
    if not problems.fields:
        _check_degrees(spec, int(item.facts["vocabulary_size"]) if item else 0, problems)
    if not problems.fields and item:
        problems.check(
            f"{at}.architecture",
            holds=memory.parameters(_shape(spec, item)) <= _MOST_TRAINED_PARAMETERS,
            sentence="has more parameters than can be trained",
        )


def _check_shape(shape: job_pb2.Architecture, problems: Problems) -> None:
    at = "job.train.architecture"
    for name in ("layers", "hidden_size", "intermediate_size", "attention_heads"):
        _between(problems, f"{at}.{name}", getattr(shape, name), 1, _LARGEST_SHAPE)
    _between(problems, f"{at}.key_value_heads", shape.key_value_heads, 1, _LARGEST_SHAPE)
    _between(problems, f"{at}.context_length", shape.context_length, 2, 1 << 20)
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
    for name, degree in (("data", data), ("tensor", tensor), ("pipeline", pipeline)):
        _between(problems, f"{at}.{name}", degree, 1, _MOST_RANKS)
    if problems.fields:
        return
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
    stages = pipeline * (2 if spec.pipeline_schedule in _TWO_STAGES else 1)
    problems.check(
        f"{at}.pipeline",
        holds=shape.layers % stages == 0,
        sentence=f"needs {stages} stages, which do not share {shape.layers} layers evenly: "
        "use a divisor",
    )
    problems.check(
        "job.train.pipeline_schedule",
        holds=spec.pipeline_schedule in SCHEDULES,
        sentence=f"must be one of {', '.join(sorted(SCHEDULES - {''}))}",
    )
    problems.check(
        "job.train.pipeline_schedule",
        holds=pipeline > 1 or not spec.pipeline_schedule,
        sentence="has no effect without a pipeline: leave it out, or make mesh.pipeline 2 or more",
    )
    _check_batch(spec, problems)


def _check_batch(spec: job_pb2.TrainSpec, problems: Problems) -> None:
    data, _, pipeline = degrees(spec)
    pieces = microbatches(spec)
    _between(problems, "job.train.microbatches", pieces, 1, 1 << 16)
    problems.check(
        "job.train.batch_size",
        holds=pieces < 1 or spec.batch_size % (data * pieces) == 0,
        sentence=f"is {spec.batch_size}, which {data} data ranks with {pieces} microbatches each "
        f"do not share: use a multiple of {data * pieces}",
    )
    problems.check(
        "job.train.microbatches",
        holds=pipeline == 1 or pieces >= pipeline,
        sentence=f"must be at least the {pipeline} pipeline ranks, or some would only wait",
    )
    if spec.pipeline_schedule in _TWO_STAGES:
        problems.check(
            "job.train.microbatches",
            holds=pieces % pipeline == 0,
            sentence=f"must be a multiple of the {pipeline} pipeline ranks for this schedule",
        )


def _check_quantize(
    spec: job_pb2.QuantizeSpec, inputs: Mapping[str, Input], problems: Problems
) -> None:
    problems.check(
        "job.quantize.scheme",
        holds=spec.scheme == job_pb2.QuantizeSpec.SCHEME_W8A8_INT8,
        sentence="must be SCHEME_W8A8_INT8",
    )
    item = inputs.get("job.quantize.model")
    if item is not None:
        problems.check(
            "job.quantize.model",
            holds=not str(item.facts.get("format", "")).startswith("w8"),
            sentence="is quantized already; name the version it was made from",
        )


def _check_evaluate(
    spec: job_pb2.EvaluateSpec, inputs: Mapping[str, Input], problems: Problems
) -> None:
    problems.check(
        "job.evaluate.dataset",
        holds=_is_tokens(inputs.get("job.evaluate.dataset")),
        sentence="holds no held-out text; name a version that a prepare job made",
    )
    _optional(problems, "job.evaluate", spec, "max_tokens", 4096, 2)
    _optional(problems, "job.evaluate", spec, "window", 512, 2, 1 << 20)


def degrees(spec: job_pb2.TrainSpec) -> tuple[int, int, int]:
    """Data, tensor and pipeline degree; 1 where not set."""
    mesh = spec.mesh
    return given(mesh, "data", 1), given(mesh, "tensor", 1), given(mesh, "pipeline", 1)


def microbatches(spec: job_pb2.TrainSpec) -> int:
    """Pieces a pipeline rank cuts its batch into."""
    _, _, pipeline = degrees(spec)
    return given(spec, "microbatches", 2 * pipeline if pipeline > 1 else 1)


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


def _train_demand(spec: job_pb2.TrainSpec, item: Input) -> Demand:
    data, tensor, pipeline = degrees(spec)
    need = memory.train_rank(
        _shape(spec, item),
        data=data,
        tensor=tensor,
        pipeline=pipeline,
        sequences=max(spec.batch_size // (data * microbatches(spec)), 1),
        length=spec.sequence_length,
    )
    return Demand(data * tensor * pipeline, memory_per_rank=need)


def _optional(problems: Problems, at: str, spec: Message, name: str, *numbers: float) -> None:
    """Check a field that has a default, and bounds; a zero that was given is a zero."""
    default, *bounds = numbers
    _between(problems, f"{at}.{name}", given(spec, name, default), *bounds)


def _between(
    problems: Problems, path: str, value: float, low: float, high: float | None = None
) -> None:
    # NaN compares false with everything, so it is refused too.
    holds = low <= value <= (math.inf if high is None else high)
    problems.check(path, holds=holds, sentence=f"must be {span(low, high)}")


def _divides(problems: Problems, path: str, part: int, whole: int, what: str) -> None:
    problems.check(
        path,
        holds=whole % part == 0,
        sentence=f"is {part}, which does not divide the {what} of {whole}: use a divisor",
    )
