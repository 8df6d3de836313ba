"""Endpoints: a model version served by replicas. Accepted, shown, changed, stopped, deleted.

Rules kept here:
* an endpoint is accepted, as new or as changed, only when its model exists in its own project and
  may be read by this caller, its degree divides what it splits, and some node could hold a replica;
* a change of the model or of a limit makes a new generation, and replicas follow it one by one; a
  change of how many there are, or back to what some still are, starts nothing anew;
* nobody changes or starts one that is going; one that is stopped keeps what was changed for its
  next start.

Called by `rpc.endpoints`; replicas live in `services.serving.replicas`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from appliance.api.serving.v1 import endpoint_pb2
from appliance.api.serving.v1 import endpoint_service_pb2 as rpc
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import Events
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import (
    check_project,
    missing,
    not_there,
    parse_name,
    timestamp,
)
from appliance.control.services.common.updates import changed_fields, check_etag, etag_of
from appliance.control.services.data import artifact_rows
from appliance.control.services.fleet import capacity
from appliance.control.services.serving import endpoint_specs, replica_rows
from appliance.control.services.serving.endpoint_specs import CHANGEABLE
from appliance.control.services.serving.endpoint_state import STOPPING
from appliance.control.services.serving.replica_plan import DELETED, RUNNING, STARTING, STOPPED
from appliance.control.services.serving.replica_rows import SHAPE, of_endpoint, version_name
from appliance.control.services.serving.replicas import Replicas
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.control.store.objects import new_uid
from appliance.core import artifact_kinds, names
from appliance.core.errors import AlreadyExists, FailedPrecondition, NotFound
from appliance.core.names import Name
from appliance.core.problems import Problems

_endpoint = tables.endpoint.c


class Endpoints:
    """Accepts, shows, changes, stops and deletes endpoints."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        changes: Changes,
        policies: PolicyStore,
        replicas: Replicas,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._policies = policies
        self._replicas = replicas
        self._events = events
        self._clock = clock

    def get(self, caller: Caller, name: str) -> endpoint_pb2.Endpoint:
        """One endpoint."""
        del caller  # the gate has decided
        with self._database.read() as state:
            return resource(state, _row(state, Name.parse(name, "endpoint")))

    def find(self, name: str, uid: str) -> endpoint_pb2.Endpoint | None:
        """The endpoint of this name while it is the one with this uid, then None."""
        try:
            with self._database.read() as state:
                row = _row(state, Name.parse(name, "endpoint"))
                return resource(state, row) if row.uid == uid else None
        except NotFound:
            return None

    def list(self, caller: Caller, request: rpc.ListEndpointsRequest) -> rpc.ListEndpointsResponse:
        """One page of the endpoints of a project, by id."""
        del caller
        project = Name.parse(request.parent, "project", field="parent").id
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        wanted = select(tables.endpoint).where(_endpoint.project == project)
        if after is not None:
            wanted = wanted.where(_endpoint.id > after[0])
        with self._database.read() as state:
            check_project(state, project)
            rows = state.all(wanted.order_by(_endpoint.id).limit(size + 1))
            page, token = paging.cut(rows, size, lambda row: (row.id,))
            return rpc.ListEndpointsResponse(
                endpoints=[resource(state, row) for row in page], next_page_token=token
            )

    def create(self, caller: Caller, request: rpc.CreateEndpointRequest) -> endpoint_pb2.Endpoint:
        """Accept an endpoint; the scheduler starts its replicas.

        Raises InvalidInput with a sentence for each field that is wrong, AlreadyExists,
        FailedPrecondition when no node could hold a replica.
        """

        def work(transaction: Transaction) -> endpoint_pb2.Endpoint:
            project = Name.parse(request.parent, "project", field="parent").id
            name = Name.of("endpoint", project, names.check_id(request.endpoint_id, "endpoint_id"))
            values = self._check(transaction, caller, project, request.endpoint)
            uid = new_uid()
            try:
                transaction.run(
                    insert(tables.endpoint).values(
                        uid=uid,
                        project=project,
                        id=name.id,
                        state=STARTING,
                        creator=caller.principal.name,
                        create_time=self._clock(),
                        **values,
                    )
                )
            except IntegrityError as error:
                raise AlreadyExists(
                    f"{name} exists already: choose another id", name=str(name)
                ) from error
            return self._reconciled(transaction, name, uid)

        return self._changes.make(caller, request, endpoint_pb2.Endpoint, work)

    def update(self, caller: Caller, request: rpc.UpdateEndpointRequest) -> endpoint_pb2.Endpoint:
        """Change what is served, how many replicas, or their limits.

        Raises NotFound, InvalidInput with a sentence for each field that is wrong, Conflict,
        FailedPrecondition when it is going, or no node could hold a replica.
        """
        asked = request.endpoint
        name = Name.parse(asked.name, "endpoint", field="endpoint.name")
        changed = changed_fields(request, CHANGEABLE)

        def work(transaction: Transaction) -> endpoint_pb2.Endpoint:
            row = _row(transaction, name)
            check_etag(asked.etag, etag(row), str(name))
            _check_stays(row, "change")
            merged = endpoint_specs.merged(resource(transaction, row), asked, changed)
            values = self._check(transaction, caller, row.project, merged, row, changed)
            if _is_new(row, values):
                values["generation"] = row.generation + 1
                if row.goal == RUNNING:
                    # What was said of the version before does not hold for this one.
                    values |= {"state": STARTING, "reason": ""}
            self._set(transaction, row, **values)
            replica_rows.adopt(transaction, _row(transaction, name))
            return self._reconciled(transaction, name, row.uid)

        return self._changes.make(caller, request, endpoint_pb2.Endpoint, work)

    def stop(self, caller: Caller, request: rpc.StopEndpointRequest) -> endpoint_pb2.Endpoint:
        """Let the replicas finish what they have; the endpoint stays, without devices.

        Raises NotFound, Conflict, FailedPrecondition when it is stopped or deleted already.
        """
        name = Name.parse(request.name, "endpoint")

        def work(transaction: Transaction) -> endpoint_pb2.Endpoint:
            row = _row(transaction, name)
            check_etag(request.etag, etag(row), str(name))
            _check_stays(row, "stop")
            if row.goal == STOPPED:
                raise FailedPrecondition(
                    f"{name} is stopped already: start it with `appliance endpoint start {name}`"
                )
            why = f"stopped by {caller.principal.name}"
            self._set(transaction, row, goal=STOPPED, state=STOPPING, reason=why)
            self._replicas.end_sooner(transaction, row.uid)
            return self._reconciled(transaction, name, row.uid)

        return self._changes.make(caller, request, endpoint_pb2.Endpoint, work)

    def start(self, caller: Caller, request: rpc.StartEndpointRequest) -> endpoint_pb2.Endpoint:
        """Start replicas of an endpoint that was stopped, as it is specified now.

        Raises NotFound, Conflict, FailedPrecondition when it runs, or goes.
        """
        name = Name.parse(request.name, "endpoint")

        def work(transaction: Transaction) -> endpoint_pb2.Endpoint:
            row = _row(transaction, name)
            check_etag(request.etag, etag(row), str(name))
            _check_stays(row, "start")
            if row.goal == RUNNING:
                raise FailedPrecondition(
                    f"{name} was not stopped: see `appliance endpoint describe {name}`"
                )
            self._set(transaction, row, goal=RUNNING, state=STARTING, reason="")
            return self._reconciled(transaction, name, row.uid)

        return self._changes.make(caller, request, endpoint_pb2.Endpoint, work)

    def delete(
        self, caller: Caller, request: rpc.DeleteEndpointRequest
    ) -> rpc.DeleteEndpointResponse:
        """Take an endpoint down: its replicas finish what they have, then it is gone.

        Raises NotFound, Conflict, FailedPrecondition when it is deleted already.
        """
        name = Name.parse(request.name, "endpoint")

        def work(transaction: Transaction) -> rpc.DeleteEndpointResponse:
            row = _row(transaction, name)
            check_etag(request.etag, etag(row), str(name))
            if row.goal == DELETED:
                raise FailedPrecondition(
                    f"{name} is being taken down already; wait until it is gone"
                )
            why = f"deleted by {caller.principal.name}"
            self._set(transaction, row, goal=DELETED, state=STOPPING, reason=why)
            self._replicas.end_sooner(transaction, row.uid)
            self._replicas.reconcile(transaction, row.uid)
            return rpc.DeleteEndpointResponse()

        return self._changes.make(caller, request, rpc.DeleteEndpointResponse, work)

    def _set(self, transaction: Transaction, row: Row[Any], **values: object) -> None:
        this = update(tables.endpoint).where(_endpoint.uid == row.uid)
        transaction.run(this.values(revision=_endpoint.revision + 1, **values))

    def _reconciled(self, transaction: Transaction, name: Name, uid: str) -> endpoint_pb2.Endpoint:
        """The resource, after its replicas are as they should be."""
        self._replicas.reconcile(transaction, uid)
        return resource(transaction, _row(transaction, name))

    def _check(  # noqa: PLR0913  # who asks for what, and what is there
        self,
        state: Reading,
        caller: Caller,
        project: str,
        endpoint: endpoint_pb2.Endpoint,
        row: Row[Any] | None = None,
        changed: Collection[str] = CHANGEABLE,
    ) -> dict[str, Any]:
        """The columns of an acceptable endpoint, defaults filled in.

        Args:
            state: to read in.
            caller: who asks.
            project: of the endpoint.
            endpoint: as it is to be.
            row: as it is; None for a new one.
            changed: fields that change. Whoever leaves the model as it is need not be able to read
                it, and whoever asks for less need not have room for it.
        """
        problems = Problems()
        if row is None or "model" in changed:
            model = self._model(state, caller, project, endpoint.model, problems)
        else:
            version = tables.artifact_version
            model = state.first(select(version).where(version.c.uid == row.model_version))
        facts = model.facts if model is not None else {}
        spec = endpoint_specs.check(endpoint, facts, problems)
        values = {"model_version": model.uid if model is not None else "", **asdict(spec)}
        if row is None or spec.replicas > row.replicas or _is_new(row, values):
            need = replica_rows.demand(facts, spec.tensor_parallel, spec.cache_bytes)
            advice = "use a smaller cache, a quantized version or more devices per replica"
            capacity.check_one_node(state, need, "device", advice)
        return values

    def _model(
        self, state: Reading, caller: Caller, project: str, text: str, problems: Problems
    ) -> Row[Any] | None:
        path = "endpoint.model"
        name = parse_name(text, "modelVersion", path, project, problems)
        if name is None:
            return None
        if not self._policies.current().allowed(caller.principal, project, "models.get"):
            problems.add(path, f"may not be read by {caller.principal.name}")
            return None
        try:
            row = artifact_rows.version_row(state, name)
        except NotFound:
            problems.add(path, not_there(name))
            return None
        kind = artifact_kinds.kind_of("model", row.facts)
        if kind != artifact_kinds.MODEL:
            problems.add(path, f"holds {kind}; name a version of {artifact_kinds.MODEL}")
            return None
        return row


def _row(state: Reading, name: Name) -> Row[Any]:
    row = state.first(
        select(tables.endpoint).where(
            _endpoint.project == name["project"], _endpoint.id == name["endpoint"]
        )
    )
    if row is None:
        raise missing(str(name))
    return row


def _is_new(row: Row[Any], values: Mapping[str, Any]) -> bool:
    """Whether these columns make another generation."""
    return any(values[column] != getattr(row, column) for column in SHAPE)


def _check_stays(row: Row[Any], what: str) -> None:
    """Raise when an endpoint is going, and nothing of it may be changed."""
    name = names.endpoint(row.project, row.id)
    if row.goal == DELETED:
        raise FailedPrecondition(
            f"{name} is being deleted, so there is nothing to {what}: "
            "create it anew when it is gone"
        )
    if row.state == STOPPING:
        raise FailedPrecondition(
            f"{name} is being stopped: {what} it when it is stopped "
            f"(`appliance endpoint watch {name}` shows when)"
        )


def etag(row: Row[Any]) -> str:
    """Of what callers can change. Its replicas change all the time by themselves."""
    columns = ("uid", *SHAPE, "replicas", "allow_downtime", "goal")
    return etag_of(*(getattr(row, column) for column in columns))


def resource(state: Reading, row: Row[Any]) -> endpoint_pb2.Endpoint:
    """The resource of a row, with its replicas."""
    rows = of_endpoint(state, row.uid)
    served = {each.model_version: version_name(state, each.model_version) for each in (row, *rows)}
    return endpoint_pb2.Endpoint(
        name=names.endpoint(row.project, row.id),
        uid=row.uid,
        model=served[row.model_version],
        replicas=row.replicas,
        tensor_parallel=row.tensor_parallel,
        max_sequence_length=row.max_sequence_length,
        cache_bytes=row.cache_bytes,
        allow_downtime=row.allow_downtime,
        state=f"STATE_{row.state}",
        state_reason=row.reason,
        replica_status=[
            replica_resource(each, served[each.model_version])
            for each in sorted(rows, key=lambda each: int(each.id[1:]))
        ],
        creator=row.creator,
        create_time=timestamp(row.create_time),
        generation=row.generation,
        etag=etag(row),
    )


def replica_resource(row: Row[Any], model: str) -> endpoint_pb2.Replica:
    """One replica, as callers and gateways see it.

    Args:
        row: of it.
        model: name of the version it serves.
    """
    return endpoint_pb2.Replica(
        id=row.id,
        node=names.node(row.node) if row.node else "",
        state=f"STATE_{row.state}",
        epoch=row.epoch,
        address=row.address,
        state_reason=row.reason,
        restarts=row.restarts,
        generation=row.generation,
        model=model,
        model_uid=row.model_version,
        max_sequence_length=row.max_sequence_length,
        start_time=timestamp(row.start_time),
    )
