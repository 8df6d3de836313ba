"""What a kind of job says of itself: one frozen value of plain functions and tables.

Rules kept here:
* everything that can be known before devices are taken is checked before a job is accepted;
* all wrong fields are reported at once, with one sentence each;
* bounds and defaults of single fields, and which resource a field names, stand in the proto; what
  is in a kind needs more than one field, or the things that a job reads;
* a spec that is kept has every default filled in, and so says what runs.

Pure: messages and facts in, values out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from google.protobuf.message import Message

from appliance.api.jobs.v1 import job_pb2
from appliance.core import values
from appliance.core.artifact_kinds import ARTIFACT_KINDS
from appliance.core.errors import InvalidInput
from appliance.core.numbers import MIB
from appliance.core.placement import Demand
from appliance.core.problems import Problems

CHECKPOINT = "checkpoint"
"""What a job may read that is no artifact: a checkpoint of another job."""
TORCH_PROCESS = 400 * MIB
"""A rank that has imported torch and done nothing yet."""
FLOAT = 4
"""Bytes of a 32-bit number."""


@dataclass(frozen=True)
class Input:
    """What a job reads: its artifact kind or `checkpoint`, its facts, bytes of plaintext.

    Of a checkpoint the facts are `step`; `kind` and `spec` of its job, and whether that has
    `ended`; `inputs`: path -> facts of what that job reads, as far as it is still there.
    """

    kind: str
    facts: Mapping[str, Any]
    size_bytes: int


Inputs = Mapping[str, Input]
"""What a job reads, by path of the field; those that exist."""


@dataclass(frozen=True)
class Reads:
    """A field that names what a job reads, and which artifact kinds that may be."""

    field: str
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Makes:
    """A slot of a job: the field that names what gets the new version, and its artifact kind."""

    slot: str
    field: str
    kind: str


@dataclass(frozen=True)
class SlotOutput:
    """What one job makes in one slot: path of the field, name of the resource, artifact kind."""

    path: str
    name: str
    kind: str

    @property
    def resource(self) -> str:
        """The resource that gets the version, a kind of name."""
        return ARTIFACT_KINDS[self.kind].resource


def _as_it_is(spec: Any, inputs: Inputs) -> None:  # noqa: ANN401 - the kind's message
    """Nothing follows from what is read."""


def _nothing_more(spec: Any, inputs: Inputs, problems: Problems) -> None:  # noqa: ANN401 - as above
    """Nothing can be wrong that the proto does not say."""


def _all_said(typed: Collection[str]) -> str:
    """Nothing belongs together."""
    del typed
    return ""


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    Attributes:
        spec: its message, a member of the oneof `spec`.
        run: the function that each rank calls, `module:function`.
        modules: Python modules that it imports, of `core.needs`.
        reads: what it reads, by field.
        makes: what it makes, by slot.
        demand: ranks of a checked, filled spec and memory of each.
        less_memory: how to need less memory, after a colon.
        check: notes what is wrong with a spec beyond the bounds of single fields.
        complete: sets in a spec what is taken from what it reads, before it is checked.
        fill: sets the defaults that depend on other fields, or on what it reads.
        checkpoint_bytes: bytes of one of its checkpoints, about; None: it keeps none.
        with_mesh: gives a spec another mesh; None: it has none.
        unsaid: what is missing of the fields that somebody has typed, for a person; "" if nothing.
        measures: what it measures that is shown first.
        uses_gpu: whether its ranks compute on a GPU, where the node has some.
    """

    spec: type[Message]
    run: str
    modules: frozenset[str]
    demand: Callable[[Any, Inputs], Demand]
    less_memory: str
    reads: tuple[Reads, ...] = ()
    makes: tuple[Makes, ...] = ()
    check: Callable[[Any, Inputs, Problems], None] = _nothing_more
    complete: Callable[[Any, Inputs], None] = _as_it_is
    fill: Callable[[Any, Inputs], None] = _as_it_is
    checkpoint_bytes: Callable[[Any, Inputs], int] | None = None
    with_mesh: Callable[[Any, job_pb2.Mesh], None] | None = None
    unsaid: Callable[[Collection[str]], str] = _all_said
    measures: tuple[str, ...] = ()
    uses_gpu: bool = True

    @cached_property
    def name(self) -> str:
        """The member of the oneof that holds its spec."""
        members = job_pb2.Job.DESCRIPTOR.oneofs_by_name["spec"].fields
        return str(next(m.name for m in members if m.message_type == self.spec.DESCRIPTOR))

    @cached_property
    def beginning(self) -> str:
        """Path of the field that names the checkpoint a job begins with; "" if it has none."""
        fields = (each.field for each in self.reads if self._names(each.field) == CHECKPOINT)
        return next((self.path(field) for field in fields), "")

    def path(self, field: str) -> str:
        """Path of a field of the spec in a request: `job.train.steps`."""
        return f"job.{self.name}.{field}"

    def inputs_of(self, spec: Message) -> dict[str, tuple[str, str]]:
        """Path -> (resource name, kind of the name) of what a job reads."""
        found: dict[str, tuple[str, str]] = {}
        for each in self.reads:
            path, said, names = (
                self.path(each.field),
                getattr(spec, each.field),
                self._names(each.field),
            )
            if not isinstance(said, str):
                found |= {f"{path}[{index}]": (name, names) for index, name in enumerate(said)}
            elif said or self._required(each.field):
                found[path] = (said, names)
        return found

    def outputs_of(self, spec: Message) -> dict[str, SlotOutput]:
        """Slot -> what a job makes there; without those that are not named and need not be."""
        return {
            each.slot: SlotOutput(self.path(each.field), getattr(spec, each.field), each.kind)
            for each in self.makes
            if getattr(spec, each.field) or self._required(each.field)
        }

    def completed(self, spec: Message, inputs: Inputs) -> Message:
        """A copy of a spec with what is taken from what it reads."""
        made = self._copy(spec)
        self.complete(made, inputs)
        return made

    def note_problems(self, spec: Message, inputs: Inputs, problems: Problems) -> None:
        """Note everything that is wrong with a spec."""
        problems.take(spec, f"job.{self.name}")
        kinds = {self.path(each.field): each.kinds for each in self.reads}
        fitting = dict(inputs)
        for at, item in inputs.items():
            wanted = kinds[at.partition("[")[0]]
            if item.kind not in wanted:
                problems.add(at, f"holds {item.kind}; name a version of {' or '.join(wanted)}")
                # Its facts are others than the kind knows.
                del fitting[at]
        self.check(spec, fitting, problems)

    def filled(self, spec: Message, inputs: Inputs) -> Message:
        """A copy of a checked spec that says what runs: every field that has a default is set."""
        made = self._copy(spec)
        values.fill(made)
        self.fill(made, inputs)
        return made

    def on_another_mesh(self, spec: Message, mesh: job_pb2.Mesh) -> Message:
        """A spec with another mesh, and what follows from the mesh left out.

        Raises InvalidInput for a kind that has no mesh.
        """
        if self.with_mesh is None:
            raise InvalidInput(
                f"a {self.name} job has no mesh: leave it out",
                fields={"mesh": f"is of jobs that have one, not of a {self.name} job"},
            )
        made = self._copy(spec)
        self.with_mesh(made, mesh)
        return made

    def _copy(self, spec: Message) -> Message:
        made = self.spec()
        made.CopyFrom(spec)
        return made

    def _names(self, field: str) -> str:
        value = values.value_of(self.spec.DESCRIPTOR.fields_by_name[field])
        return "" if value is None else value.names

    def _required(self, field: str) -> bool:
        value = values.value_of(self.spec.DESCRIPTOR.fields_by_name[field])
        return value is not None and value.required


def flag_of(path: str, *, many: bool = False) -> str:
    """What somebody types for a field: `--key-value-heads`."""
    leaf = path.rpartition(".")[2]
    return "--" + (leaf.removesuffix("s") if many else leaf).replace("_", "-")
