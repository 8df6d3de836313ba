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

from google.protobuf.message import Message

from appliance.api.jobs.v1 import job_pb2
from appliance.control.services import memory, train_specs
from appliance.control.services.job_inputs import Input, is_tokens
from appliance.control.services.problems import Problems
from appliance.core import families, values
from appliance.core.artifact_kinds import ARTIFACT_KINDS, MODEL, TOKENIZER, TOKENS
from appliance.core.errors import InvalidInput
from appliance.core.families import Use
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

BEGINNING = train_specs.BEGINNING
_MOST_DATASETS = 100


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
            found = {"job.train.dataset": (spec.dataset, "datasetVersion")}
            if spec.from_checkpoint:
                found[BEGINNING] = (spec.from_checkpoint, "checkpoint")
            return found
        case "quantize", job_pb2.QuantizeSpec():
            return {"job.quantize.model": (spec.model, "modelVersion")}
        case "evaluate", job_pb2.EvaluateSpec():
            return {
                "job.evaluate.model": (spec.model, "modelVersion"),
                "job.evaluate.dataset": (spec.dataset, "datasetVersion"),
            }
    raise InvalidInput(f"{kind} is not a kind of job")


@dataclass(frozen=True)
class Output:
    """What a job makes in one slot: field path, name of the resource, artifact kind."""

    path: str
    name: str
    kind: str

    @property
    def resource(self) -> str:
        """The resource that gets the version, a kind of name."""
        return ARTIFACT_KINDS[self.kind].resource


def outputs_of(kind: str, spec: Message) -> dict[str, Output]:
    """Slot -> what a job makes there."""
    match kind, spec:
        case "prepare", job_pb2.PrepareSpec():
            return {
                "dataset": Output("job.prepare.output_dataset", spec.output_dataset, TOKENS),
                "tokenizer": Output(
                    "job.prepare.output_tokenizer", spec.output_tokenizer, TOKENIZER
                ),
            }
        case "train", job_pb2.TrainSpec():
            return {"model": Output("job.train.output_model", spec.output_model, MODEL)}
        case "quantize", job_pb2.QuantizeSpec():
            return {"model": Output("job.quantize.output_model", spec.output_model, MODEL)}
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
            train_specs.check(spec, inputs, problems)
        case "quantize", job_pb2.QuantizeSpec():
            _check_quantize(spec, inputs, problems)
        case "evaluate", job_pb2.EvaluateSpec():
            _check_evaluate(spec, inputs, problems)


def checkpoint_bytes(kind: str, spec: Message, inputs: Mapping[str, Input]) -> int:
    """Bytes of a checkpoint of a job, about; 0 for kinds that keep none."""
    if kind == "train" and isinstance(spec, job_pb2.TrainSpec):
        return train_specs.checkpoint_bytes(spec, inputs["job.train.dataset"])
    return 0


def completed(kind: str, spec: Message, inputs: Mapping[str, Input]) -> Message:
    """A copy of a spec with what is taken from the checkpoint that it begins with."""
    made = KINDS[kind]()
    made.CopyFrom(spec)
    item = inputs.get(BEGINNING)
    if isinstance(made, job_pb2.TrainSpec) and item and not made.HasField("architecture"):
        made.architecture.CopyFrom(train_specs.architecture_of(item))
    return made


def demand(kind: str, spec: Message, inputs: Mapping[str, Input]) -> Demand:
    """Ranks of a checked job and the memory of each."""
    match kind, spec:
        case "train", job_pb2.TrainSpec():
            return train_specs.demand(spec, inputs["job.train.dataset"])
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
        why = families.refusal(str(item.facts.get("architecture", "")), Use.QUANTIZE)
        problems.check("job.quantize.model", holds=not why, sentence=why)
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
        holds=is_tokens(inputs.get("job.evaluate.dataset")),
        sentence="holds no held-out text; name a version that a prepare job made",
    )
    model = inputs.get("job.evaluate.model")
    if model is not None:
        why = families.refusal(str(model.facts.get("architecture", "")), Use.EVALUATE)
        problems.check("job.evaluate.model", holds=not why, sentence=why)
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


def with_mesh(spec: Message, mesh: job_pb2.Mesh) -> Message:
    """A spec with another mesh, and what follows from the mesh left out.

    Raises InvalidInput for a kind that has no mesh.
    """
    if not isinstance(spec, job_pb2.TrainSpec):
        raise InvalidInput(
            "only a train job has a mesh: leave it out", fields={"mesh": "is of train jobs alone"}
        )
    made = job_pb2.TrainSpec()
    made.CopyFrom(spec)
    made.mesh.CopyFrom(mesh)
    made.ClearField("microbatches")
    made.ClearField("pipeline_schedule")
    return made


def check_on_lost(job: job_pb2.Job, problems: Problems) -> None:
    """How long a job waits for a silent node."""
    problems.take(job.on_lost, "job.on_lost")
    problems.check(
        "job.on_lost.wait",
        holds=job.on_lost.WhichOneof("policy") != "wait" or job.on_lost.wait,
        sentence="is true, or left out: then the job waits for as long as the site says",
    )
