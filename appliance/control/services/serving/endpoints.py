"""Endpoints: a model version served by replicas. Accepted, shown, deleted.

Rule kept here: an endpoint is accepted only when its model exists in its own project and may be
read by this caller, its degree divides what it splits, and some node could hold a replica.

Called by `rpc.endpoints`; replicas live in `services.serving.replicas`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from appliance.api.serving.v1 import endpoint_pb2
from appliance.api.serving.v1 import endpoint_service_pb2 as rpc
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import QUEUE, ROUTING, Events
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import (
    check_project,
    missing,
    parse_name,
    timestamp,
)
from appliance.control.services.data import artifact_rows
from appliance.control.services.fleet import capacity
from appliance.control.services.serving import endpoint_specs, replicas
from appliance.control.services.serving.replicas import Replicas
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.control.store.objects import new_uid
from appliance.core import artifact_kinds, names
from appliance.core.errors import AlreadyExists, FailedPrecondition, NotFound
from appliance.core.names import Name, shown
from appliance.core.problems import Problems

_endpoint = tables.endpoint.c
_replica = tables.replica.c


class Endpoints:
    """Accepts, shows and deletes endpoints."""

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
                        state=replicas.STARTING,
                        creator=caller.principal.name,
                        create_time=self._clock(),
                        **values,
                    )
                )
            except IntegrityError as error:
                raise AlreadyExists(
                    f"{name} exists already: choose another id", name=str(name)
                ) from error
            for number in range(values["replicas"]):
                transaction.run(
                    insert(tables.replica).values(
                        endpoint=uid, id=f"r{number}", state=replicas.PENDING
                    )
                )
            transaction.after_commit(lambda: self._events.publish(QUEUE, ROUTING))
            return resource(transaction, _row(transaction, name))

        return self._changes.make(caller, request, endpoint_pb2.Endpoint, work)

    def delete(
        self, caller: Caller, request: rpc.DeleteEndpointRequest
    ) -> rpc.DeleteEndpointResponse:
        """Take an endpoint down: its replicas finish what they have, then it is gone."""
        name = Name.parse(request.name, "endpoint")

        def work(transaction: Transaction) -> rpc.DeleteEndpointResponse:
            row = _row(transaction, name)
            if row.state == replicas.STOPPING:
                raise FailedPrecondition(
                    f"{name} is being taken down already; wait until it is gone"
                )
            transaction.run(
                update(tables.endpoint)
                .where(_endpoint.uid == row.uid)
                .values(
                    state=replicas.STOPPING,
                    reason=f"deleted by {caller.principal.name}",
                    revision=_endpoint.revision + 1,
                )
            )
            self._replicas.drain(transaction, row)
            return rpc.DeleteEndpointResponse()

        return self._changes.make(caller, request, rpc.DeleteEndpointResponse, work)

    def _check(
        self, state: Reading, caller: Caller, project: str, endpoint: endpoint_pb2.Endpoint
    ) -> dict[str, Any]:
        """The columns of an acceptable endpoint, defaults filled in."""
        problems = Problems()
        model = self._model(state, caller, project, endpoint.model, problems)
        facts = model.facts if model is not None else {}
        spec = endpoint_specs.check(endpoint, facts, problems)
        need = replicas.demand(facts, spec.tensor_parallel, spec.cache_bytes)
        advice = "use a smaller cache, a quantized version or more devices per replica"
        capacity.check_one_node(state, need, "device", advice)
        return {"model_version": model.uid if model is not None else "", **asdict(spec)}

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
            problems.add(
                path,
                f"names {shown(text)}, which does not exist or is not complete: "
                "list the versions there are and name one of them",
            )
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


def resource(state: Reading, row: Row[Any]) -> endpoint_pb2.Endpoint:
    """The resource of a row, with its replicas."""
    rows = state.all(
        select(tables.replica).where(_replica.endpoint == row.uid).order_by(_replica.id)
    )
    return endpoint_pb2.Endpoint(
        name=names.endpoint(row.project, row.id),
        uid=row.uid,
        model=model_name(state, row),
        replicas=row.replicas,
        tensor_parallel=row.tensor_parallel,
        max_sequence_length=row.max_sequence_length,
        cache_bytes=row.cache_bytes,
        state=f"STATE_{row.state}",
        state_reason=row.reason,
        replica_status=[replica_resource(replica) for replica in rows],
        creator=row.creator,
        create_time=timestamp(row.create_time),
        etag=str(row.revision),
    )


def model_name(state: Reading, row: Row[Any]) -> str:
    """Resource name of the version an endpoint serves."""
    version = tables.artifact_version.c
    found = state.first(select(tables.artifact_version).where(version.uid == row.model_version))
    if found is None:
        return ""
    return names.model_version(found.project, found.artifact, found.number)


def replica_resource(row: Row[Any]) -> endpoint_pb2.Replica:
    """One replica as callers and gateways see it."""
    return endpoint_pb2.Replica(
        id=row.id,
        node=names.node(row.node) if row.node else "",
        state=f"STATE_{row.state}",
        epoch=row.epoch,
        address=row.address,
        state_reason=row.reason,
        restarts=row.restarts,
    )
