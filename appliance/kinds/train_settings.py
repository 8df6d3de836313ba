"""What the spec of a train job says, with every default filled in and every degree checked.

A spec is checked when the job is accepted, and again by its ranks, because the number of ranks and
the size of the vocabulary are known for certain only there. Rule kept here: what cannot work is one
sentence per field, before a process group or a byte of memory is spent on it.

Pure. Called by `appliance.kinds.train` and by the ranks (`appliance.jobs.train`).
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.api.jobs.v1 import job_pb2
from appliance.core.numbers import written
from appliance.core.problems import Problems
from appliance.core.values import given, value_of, wrong

STAGES_PER_RANK = {"1F1B": 1, "GPipe": 1, "Interleaved1F1B": 2, "ZBVZeroBubble": 2}
"""Pipeline schedule -> stages that each pipeline rank holds."""
MAX_RANKS = 4096


@dataclass(frozen=True)
class DecoderShape:
    """Shape of a Llama-style decoder; the fields mean what they mean in `Architecture`."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    context_length: int
    tie_embeddings: bool

    @classmethod
    def of(cls, architecture: job_pb2.Architecture) -> DecoderShape:
        """Read a shape."""
        return cls(**{name: getattr(architecture, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Degrees:
    """How many ways the work is cut along each axis of the mesh."""

    data: int
    tensor: int
    pipeline: int

    @classmethod
    def of(cls, mesh: job_pb2.Mesh) -> Degrees:
        """Read a mesh."""
        return cls(given(mesh, "data"), given(mesh, "tensor"), given(mesh, "pipeline"))

    @property
    def ranks(self) -> int:
        """Ranks of the whole mesh."""
        return self.data * self.tensor * self.pipeline

    def __str__(self) -> str:
        """For messages."""
        return f"data {self.data} x tensor {self.tensor} x pipeline {self.pipeline}"


@dataclass(frozen=True)
class TrainSettings:
    """One training run, with every default filled in.

    `batch_size` counts sequences per optimiser step over all data ranks, `sequence_length` tokens
    per sequence, `microbatches` pieces of one data rank's part of the batch.
    """

    shape: DecoderShape
    degrees: Degrees
    schedule: str
    steps: int
    batch_size: int
    sequence_length: int
    microbatches: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    gradient_clip: float
    seed: int
    checkpoint_interval: int

    @classmethod
    def from_spec(cls, spec: job_pb2.TrainSpec) -> TrainSettings:
        """Read a spec; what was left out has its default.

        Raises:
            InvalidInput: what it says cannot work, with a sentence for each field.
        """
        problems = Problems(wrong(spec))
        if not problems.fields:
            check_order(spec, problems)
            check_shape(spec.architecture, problems)
        if not problems.fields:
            check_degrees(spec, problems)
        problems.raise_if_any()
        defaulted = ("learning_rate", "warmup_steps", "weight_decay", "gradient_clip", "seed")
        return cls(
            shape=DecoderShape.of(spec.architecture),
            degrees=Degrees.of(spec.mesh),
            schedule=pipeline_schedule(spec),
            steps=spec.steps,
            batch_size=spec.batch_size,
            sequence_length=spec.sequence_length,
            microbatches=microbatches(spec),
            checkpoint_interval=given(spec, "checkpoint_interval"),
            **{name: given(spec, name) for name in defaulted},
        )

    @property
    def rows_per_rank(self) -> int:
        """Sequences per step that one data rank sees."""
        return self.batch_size // self.degrees.data

    @property
    def rows_per_piece(self) -> int:
        """Sequences in one microbatch."""
        return self.rows_per_rank // self.microbatches

    @property
    def stages(self) -> int:
        """Pipeline stages over all ranks; 1 without pipeline, whatever the schedule."""
        pipeline = self.degrees.pipeline
        return pipeline * STAGES_PER_RANK[self.schedule] if pipeline > 1 else 1

    def check(self, ranks: int, vocabulary: int | None = None) -> None:
        """Refuse what the job has another number of ranks for, or another vocabulary.

        Args:
            ranks: how many ranks this job has.
            vocabulary: (padded) entries of the embedding, where they are known.

        Raises:
            InvalidInput: with a sentence per field that is wrong.
        """
        problems = Problems()
        problems.check(
            "mesh",
            holds=self.degrees.ranks == ranks,
            sentence=f"is {self.degrees}, which needs {self.degrees.ranks} ranks, but the job has "
            f"{ranks}: make the product of the degrees the number of ranks",
        )
        if vocabulary is not None:
            check_vocabulary(self.degrees.tensor, vocabulary, problems)
        problems.raise_if_any()


def microbatches(spec: job_pb2.TrainSpec) -> int:
    """Pieces that a data rank's share of the batch is cut into."""
    if spec.HasField("microbatches"):
        return spec.microbatches
    pipeline = int(given(spec.mesh, "pipeline"))
    return 2 * pipeline if pipeline > 1 else 1


def pipeline_schedule(spec: job_pb2.TrainSpec) -> str:
    """The schedule of the pipeline, where there is one."""
    if spec.pipeline_schedule:
        return spec.pipeline_schedule
    value = value_of(spec.DESCRIPTOR.fields_by_name["pipeline_schedule"])
    return value.words[0] if value is not None else ""


def check_order(spec: job_pb2.TrainSpec, problems: Problems) -> None:
    """What must not be more than something else."""
    problems.check(
        "warmup_steps",
        holds=spec.steps < 1 or spec.warmup_steps <= spec.steps,
        sentence=f"must be 0 to the {written(spec.steps)} steps",
    )
    context = spec.architecture.context_length
    problems.check(
        "sequence_length",
        holds=not spec.HasField("architecture") or spec.sequence_length <= context,
        sentence=f"is longer than the context of {written(context)}",
    )


def check_shape(shape: job_pb2.Architecture, problems: Problems) -> None:
    """Whether the parts of a model fit each other; each is within its bounds."""
    heads, width = shape.attention_heads, shape.hidden_size
    at = "architecture.key_value_heads"
    _divides(problems, at, shape.key_value_heads, heads, "attention heads")
    at = "architecture.attention_heads"
    _divides(problems, at, heads, width, "width")
    problems.check(
        at,
        holds=width // heads % 2 == 0,
        sentence="leave heads of odd width; rotary positions need an even one",
    )


def check_degrees(spec: job_pb2.TrainSpec, problems: Problems) -> None:
    """Whether the mesh divides what it splits; shape and bounds are right."""
    degrees, shape = Degrees.of(spec.mesh), spec.architecture
    problems.check(
        "mesh",
        holds=degrees.ranks <= MAX_RANKS,
        sentence=f"asks for more than {written(MAX_RANKS)} ranks",
    )
    for size, what in (
        (shape.attention_heads, "attention heads"),
        (shape.key_value_heads, "key and value heads"),
        (shape.intermediate_size, "intermediate size"),
    ):
        _divides(problems, "mesh.tensor", degrees.tensor, size, what)
    stages = degrees.pipeline * (STAGES_PER_RANK[pipeline_schedule(spec)])
    problems.check(
        "mesh.pipeline",
        holds=degrees.pipeline == 1 or shape.layers % stages == 0,
        sentence=f"needs {stages} stages, which do not share {shape.layers} layers evenly: "
        "use a divisor",
    )
    problems.check(
        "pipeline_schedule",
        holds=degrees.pipeline > 1 or not spec.pipeline_schedule,
        sentence="has no effect without a pipeline: leave it out, or make mesh.pipeline 2 or more",
    )
    _check_batch(spec, degrees, problems)


def check_vocabulary(tensor: int, entries: int, problems: Problems) -> None:
    """Whether a tensor degree divides the (padded) entries of the embedding."""
    _divides(problems, "mesh.tensor", tensor, entries, "padded vocabulary")


def _check_batch(spec: job_pb2.TrainSpec, degrees: Degrees, problems: Problems) -> None:
    data, pipeline, pieces = degrees.data, degrees.pipeline, microbatches(spec)
    problems.check(
        "batch_size",
        holds=spec.batch_size % (data * pieces) == 0,
        sentence=f"is {spec.batch_size}, which {data} data ranks with {pieces} microbatches each "
        f"do not share: use a multiple of {data * pieces}",
    )
    problems.check(
        "microbatches",
        holds=pipeline == 1 or pieces >= pipeline,
        sentence=f"must be at least the {pipeline} pipeline ranks, or some would only wait",
    )
    problems.check(
        "microbatches",
        holds=STAGES_PER_RANK[pipeline_schedule(spec)] == 1 or pieces % pipeline == 0,
        sentence=f"must be a multiple of the {pipeline} pipeline ranks for this schedule",
    )


def _divides(problems: Problems, path: str, part: int, whole: int, what: str) -> None:
    problems.check(
        path,
        holds=whole % part == 0,
        sentence=f"is {part}, which does not divide the {what} of {whole}: use a divisor",
    )
