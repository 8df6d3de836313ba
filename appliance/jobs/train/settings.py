"""What to train and how, with every default filled in and every degree checked.

The control plane has checked the same numbers when the job was accepted. They are checked again
here because the number of ranks and the size of the vocabulary are known for certain only now.
Defaults and bounds of single fields stand in the proto.

Rules kept here: no input or output; what cannot work is `InvalidInput` with one sentence per field,
before a process group or a byte of memory is spent on it.

Called by `appliance.jobs.train.job`.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.api.jobs.v1.job_pb2 import TrainSpec
from appliance.core.errors import InvalidInput
from appliance.core.values import given, microbatches, pipeline_schedule, wrong
from appliance.jobs.train.parallel.schedules import STAGES_PER_RANK


@dataclass(frozen=True)
class Shape:
    """Shape of a Llama-style decoder; the fields mean what they mean in `Architecture`."""

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    key_value_heads: int
    context_length: int
    tie_embeddings: bool


@dataclass(frozen=True)
class Degrees:
    """How many ways the work is cut along each axis of the mesh."""

    data: int
    tensor: int
    pipeline: int

    @property
    def ranks(self) -> int:
        """Ranks of the whole mesh."""
        return self.data * self.tensor * self.pipeline

    def __str__(self) -> str:
        """For messages."""
        return f"data {self.data} x tensor {self.tensor} x pipeline {self.pipeline}"


@dataclass(frozen=True)
class Settings:
    """One training run.

    `batch_size` counts sequences per optimiser step over all data ranks, `sequence_length` tokens
    per sequence, `microbatches` pieces of one data rank's part of the batch.
    """

    shape: Shape
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
    def from_spec(cls, spec: TrainSpec) -> Settings:
        """Read a spec; what was left out has its default.

        Raises:
            InvalidInput: fields hold what they may not, with a sentence for each.
        """
        if problems := wrong(spec):
            sentences = [f"{path} {sentence}." for path, sentence in problems.items()]
            raise InvalidInput(" ".join(sentences), fields=problems)
        mesh, architecture = spec.mesh, spec.architecture
        return cls(
            shape=Shape(
                layers=architecture.layers,
                hidden_size=architecture.hidden_size,
                intermediate_size=architecture.intermediate_size,
                attention_heads=architecture.attention_heads,
                key_value_heads=architecture.key_value_heads,
                context_length=architecture.context_length,
                tie_embeddings=architecture.tie_embeddings,
            ),
            degrees=Degrees(given(mesh, "data"), given(mesh, "tensor"), given(mesh, "pipeline")),
            schedule=pipeline_schedule(spec),
            steps=spec.steps,
            batch_size=spec.batch_size,
            sequence_length=spec.sequence_length,
            microbatches=microbatches(spec),
            learning_rate=given(spec, "learning_rate"),
            warmup_steps=given(spec, "warmup_steps"),
            weight_decay=given(spec, "weight_decay"),
            gradient_clip=given(spec, "gradient_clip"),
            seed=given(spec, "seed"),
            checkpoint_interval=given(spec, "checkpoint_interval"),
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

    def check(self, ranks: int) -> None:
        """Refuse what cannot work.

        Args:
            ranks: how many ranks this job has.

        Raises:
            InvalidInput: with a sentence per field that is wrong.
        """
        if problems := self._sizes(ranks):
            raise InvalidInput(" ".join(problems.values()), fields=problems)

    def check_vocabulary(self, entries: int) -> None:
        """Refuse a tensor degree that does not divide the (padded) entries of the embedding."""
        if entries % self.degrees.tensor:
            raise InvalidInput(
                f"The tensor degree {self.degrees.tensor} does not divide the {entries} entries of"
                " the vocabulary; choose a power of two.",
                fields={"mesh.tensor": "must divide the vocabulary"},
            )

    def _sizes(self, ranks: int) -> dict[str, str]:
        shape, problems = self.shape, {}
        if self.degrees.ranks != ranks:
            problems["mesh"] = (
                f"The mesh {self.degrees} needs {self.degrees.ranks} ranks, but the job has"
                f" {ranks}; make the product of the degrees the number of ranks."
            )
        if shape.hidden_size % (2 * shape.attention_heads):
            problems["architecture.attention_heads"] = (
                f"hidden_size {shape.hidden_size} is no multiple of twice the"
                f" {shape.attention_heads} attention heads; choose sizes that divide."
            )
        elif shape.attention_heads % shape.key_value_heads:
            problems["architecture.key_value_heads"] = (
                f"{shape.key_value_heads} key and value heads do not divide"
                f" {shape.attention_heads} attention heads; choose a divisor."
            )
        if self.sequence_length > shape.context_length:
            problems["sequence_length"] = (
                f"sequence_length {self.sequence_length} is longer than context_length"
                f" {shape.context_length}; shorten one or lengthen the other."
            )
        if self.warmup_steps > self.steps:
            problems["warmup_steps"] = (
                f"warmup_steps {self.warmup_steps} are more than the {self.steps} steps; use fewer."
            )
        return problems | self._tensor_sizes() | self._pipeline_sizes() | self._batch_sizes()

    def _tensor_sizes(self) -> dict[str, str]:
        degree, shape = self.degrees.tensor, self.shape
        sizes = {
            "attention heads": shape.attention_heads,
            "key and value heads": shape.key_value_heads,
            "intermediate_size": shape.intermediate_size,
        }
        bad = [f"{what} ({size})" for what, size in sizes.items() if size % degree]
        if not bad:
            return {}
        return {
            "mesh.tensor": f"The tensor degree {degree} does not divide {', '.join(bad)};"
            " choose a degree that divides them."
        }

    def _pipeline_sizes(self) -> dict[str, str]:
        pipeline, stages, pieces = self.degrees.pipeline, self.stages, self.microbatches
        if pipeline == 1:
            return {}
        if self.shape.layers % stages:
            return {
                "mesh.pipeline": f"The pipeline degree {pipeline} with schedule {self.schedule}"
                f" makes {stages} stages, which do not divide {self.shape.layers} layers;"
                " choose a degree or a number of layers that divides."
            }
        if STAGES_PER_RANK[self.schedule] > 1 and pieces % pipeline:
            return {
                "microbatches": f"{pieces} microbatches are no multiple of the pipeline degree"
                f" {pipeline}, which {self.schedule} needs; choose a multiple, such as"
                f" {2 * pipeline}."
            }
        if pieces < pipeline:
            return {
                "microbatches": f"{pieces} microbatches cannot fill {pipeline} pipeline ranks;"
                f" choose at least {pipeline}, better {2 * pipeline}."
            }
        return {}

    def _batch_sizes(self) -> dict[str, str]:
        data, pieces = self.degrees.data, self.microbatches
        if self.batch_size % data:
            return {
                "mesh.data": f"The data degree {data} does not divide batch_size"
                f" {self.batch_size}; choose a multiple of the degree as batch_size."
            }
        if self.rows_per_rank % pieces:
            return {
                "microbatches": f"{pieces} microbatches do not divide the {self.rows_per_rank}"
                f" sequences of a data rank; make batch_size a multiple of {data * pieces}."
            }
        return {}
