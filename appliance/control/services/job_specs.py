"""Whether a job's spec can work, and what it needs. Pure.

Rules kept here:
* everything that can be known before devices are taken is checked before the job is accepted;
* all wrong fields are reported at once, with one sentence each;
* bounds and defaults of single fields stand in the proto; what is here needs more than one field;
* a spec that is kept has every default filled in, and so says what runs.

Called by `services.jobs` (check, filled) and by the scheduler (demand).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from appliance.api.jobs.v1 import job_pb2
from appliance.control.services import memory
from appliance.control.services.problems import Problems
from appliance.core import values
from appliance.core.errors import InvalidInput
from appliance.core.names import Name
from appliance.core.numbers import written
from appliance.core.placement import Demand
from appliance.core.values import given

KINDS: dict[str, type[Message]] = {
    "prepare": job_pb2.PrepareSpec,
    "train": job_pb2.TrainSpec,
    "quantize": job_pb2.QuantizeSpec,
    "evaluate": job_pb2.EvaluateSpec,
}
"""Kind of a job (the oneof's member) and the message that describes it."""

_TWO_STAGES = frozenset({"Interleaved1F1B", "ZBVZeroBubble"})
_MOST_RANKS = 4096
_MOST_DATASETS = 100
_MOST_TRAINED_PARAMETERS = 1 << 40


@dataclass(frozen=True)
class Input:
    """An artifact version a job reads: kind `dataset` or `model`, its facts, bytes of plaintext."""

    kind: str
    facts: Mapping[str, Any]
    size_bytes: int


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
    problems.take(spec, f"job.{kind}")
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
            window = given(spec, "window", most=int(facts["context_length"]))
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


def _check_train(spec: job_pb2.TrainSpec, inputs: Mapping[str, Input], problems: Problems) -> None:
    at = "job.train"
    item = inputs.get(f"{at}.dataset")
    problems.check(
        f"{at}.dataset",
        holds=_is_tokens(item),
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
        holds=spec.sequence_length <= spec.architecture.context_length,
        sentence=f"is longer than the context of {written(spec.architecture.context_length)}",
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
    model = inputs.get("job.evaluate.model")
    if model is not None:
        context = int(model.facts["context_length"])
        problems.check(
            "job.evaluate.window",
            holds=spec.window <= context,
            sentence=f"must be 2 to the model's context of {written(context)} tokens",
        )


def filled(kind: str, spec: Message, inputs: Callable[[], Mapping[str, Input]]) -> Message:
    """A copy of a checked spec that says what runs: every field that has a default is set.

    Args:
        kind: of the job.
        spec: the oneof's member.
        inputs: returns what the job reads, by field path; asked where a default depends on it.
    """
    made = KINDS[kind]()
    made.CopyFrom(spec)
    values.fill(made)
    match kind, made:
        case "train", job_pb2.TrainSpec():
            made.microbatches = values.microbatches(made)
            if made.mesh.pipeline > 1:
                made.pipeline_schedule = values.pipeline_schedule(made)
            else:
                made.ClearField("pipeline_schedule")
        case "evaluate", job_pb2.EvaluateSpec():
            model = inputs().get("job.evaluate.model")
            if model is not None:
                made.window = min(made.window, int(model.facts["context_length"]))
    return made


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


def _train_demand(spec: job_pb2.TrainSpec, item: Input) -> Demand:
    data, tensor, pipeline = degrees(spec)
    need = memory.train_rank(
        _shape(spec, item),
        data=data,
        tensor=tensor,
        pipeline=pipeline,
        sequences=max(spec.batch_size // (data * values.microbatches(spec)), 1),
        length=spec.sequence_length,
    )
    return Demand(data * tensor * pipeline, memory_per_rank=need)


def _divides(problems: Problems, path: str, part: int, whole: int, what: str) -> None:
    problems.check(
        path,
        holds=whole % part == 0,
        sentence=f"is {part}, which does not divide the {what} of {whole}: use a divisor",
    )
