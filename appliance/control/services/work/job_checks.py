"""Whether a job can be accepted: everything that can be known before devices are taken.

Rules kept here:
* its inputs exist in its own project, hold what its kind reads, and this caller may read them, and
  make what it makes; what the kind itself checks is right; some node could hold each of its ranks;
* every wrong field is reported at once.

Called by `services.work.jobs`, when a job is made, planned or resumed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from google.protobuf.message import Message

from appliance.api.jobs.v1 import job_pb2
from appliance.control.auth.policy import PolicyStore
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import not_there, parse_name
from appliance.control.services.data import artifact_rows
from appliance.control.services.fleet import capacity
from appliance.control.services.work import job_rows
from appliance.control.store.database import Reading
from appliance.core import names
from appliance.core.artifact_kinds import ARTIFACT_KINDS
from appliance.core.errors import InvalidInput, NotFound
from appliance.core.names import Name
from appliance.core.placement import Demand
from appliance.core.problems import Problems
from appliance.kinds import KINDS, kind_of
from appliance.kinds.kind import Input, Kind

_READ = {
    "datasetVersion": "datasets.get",
    "modelVersion": "models.get",
    "checkpoint": "checkpoints.get",
}


class JobChecks:
    """Checks jobs for whoever asks for them."""

    def __init__(self, policies: PolicyStore) -> None:
        self._policies = policies

    def checked(  # noqa: PLR0913  # what one check needs
        self,
        state: Reading,
        caller: Caller,
        project: str,
        kind: Kind,
        asked: Message,
        problems: Problems,
        *,
        left_out: Collection[str] = (),
    ) -> tuple[Message, Demand]:
        """The spec as it will run, with every default filled in, and what it needs.

        Inputs whose paths are `left_out` are not read.

        Raises InvalidInput with what is wrong, and with the `problems` that were found before.
        """
        inputs = self._inputs(state, caller, project, kind, asked, problems, left_out)
        if kind.beginning in problems.fields:
            # What it would take from there is not known: what follows would be wrong about it.
            problems.raise_if_any()
        asked = kind.completed(asked, inputs)
        self._check_outputs(state, caller, project, kind, asked, problems)
        kind.note_problems(asked, inputs, problems)
        problems.raise_if_any()
        spec = kind.filled(asked, inputs)
        demand = kind.demand(spec, inputs)
        capacity.check(state, demand, "rank", kind.less_memory)
        return spec, replace(demand, kind=kind.name)

    def _inputs(  # noqa: PLR0913  # what one check needs
        self,
        state: Reading,
        caller: Caller,
        project: str,
        kind: Kind,
        spec: Message,
        problems: Problems,
        left_out: Collection[str],
    ) -> dict[str, Input]:
        """What the job reads, by field; what is wrong with the rest goes to `problems`."""
        policy = self._policies.current()
        found: dict[str, Input] = {}
        for path, (text, pattern) in kind.inputs_of(spec).items():
            if path in left_out:
                continue
            name = parse_name(text, pattern, path, project, problems)
            if name is None:
                continue
            if not policy.allowed(caller.principal, project, _READ[pattern]):
                problems.add(path, f"may not be read by {caller.principal.name}")
                continue
            try:
                found[path] = job_rows.input_of(state, name.kind, job_rows.uid_of(state, name))
            except NotFound:
                problems.add(path, not_there(name))
        return found

    def _check_outputs(  # noqa: PLR0913  # what one check needs
        self,
        state: Reading,
        caller: Caller,
        project: str,
        kind: Kind,
        spec: Message,
        problems: Problems,
    ) -> None:
        policy = self._policies.current()
        for output in kind.outputs_of(spec).values():
            path, holds = output.path, ARTIFACT_KINDS[output.kind]
            name = parse_name(output.name, holds.resource, path, project, problems)
            if name is None:
                continue
            if not policy.allowed(caller.principal, project, holds.make):
                problems.add(path, f"may not be made by {caller.principal.name}")
                continue
            try:
                names.check_id(name.id, path)
            except InvalidInput as error:
                problems.add(path, error.fields[path])
                continue
            taken = holds.once and _exists(state, name)
            problems.check(path, holds=not taken, sentence="exists already; choose another name")


def kind_asked(job: job_pb2.Job) -> Kind:
    """The kind of a job that is asked for. Raises InvalidInput for one without a spec."""
    name = job.WhichOneof("spec")
    if name is None:
        wrong = f"must hold one of {', '.join(KINDS)}"
        raise InvalidInput(f"job {wrong}", fields={"job": wrong})
    return kind_of(name)


def check_on_lost(job: job_pb2.Job, problems: Problems) -> None:
    """How long a job waits for a silent node."""
    problems.take(job.on_lost, "job.on_lost")
    problems.check(
        "job.on_lost.wait",
        holds=job.on_lost.WhichOneof("policy") != "wait" or job.on_lost.wait,
        sentence="is true, or left out: then the job waits for as long as the site says",
    )


def _exists(state: Reading, name: Name) -> bool:
    try:
        artifact_rows.artifact_row(state, name)
    except NotFound:
        return False
    return True
