"""Keys for work: what a node needs to do what is leased to it now, and nothing else.

Rules kept here:
* a node gets keys only for work whose lease it holds at this moment under the current epoch (S27);
  after the lease is lost, the node evicted or the work ended, it gets LeaseLost;
* the key of an input is handed out after the input was seen to be the version on record with our
  signature, so nobody computes on what was swapped;
* a replica's certificate is for servers only and for this one start: the name in it is one that
  gateways expect while the start is in their view, and never again;
* nothing that a node says of itself, such as its address, is in a certificate.

The attacks: a compromised node asks for the keys of other work, or of work it has lost; it calls
itself by the address of the gateway and lets a replica pose as that. Called by `rpc.agents`, and
for `identity_of` by `routing`.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Row, select, update

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.control.events import Events
from appliance.control.services import job_rows
from appliance.control.services.artifacts import CHECKPOINTS, Artifacts, Version
from appliance.control.services.caller import Caller
from appliance.control.services.endpoints import model_name
from appliance.control.services.job_rows import columns_of, point_of
from appliance.control.services.leases import Leases
from appliance.control.services.runs import pending
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.checkpoints import CheckpointPoint
from appliance.core.errors import LeaseLost, NotFound, Tampered
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.jobs import JobState
from appliance.crypto.certs import Authority, serial_of

_logger = logging.getLogger(__name__)
_LEASED = (JobState.STARTING, JobState.RUNNING)


class Release:
    """Hands out keys and replicas' certificates."""

    def __init__(
        self,
        database: Database,
        artifacts: Artifacts,
        leases: Leases,
        authority: Authority,
        events: Events,
    ) -> None:
        self._database = database
        self._events = events
        self._artifacts = artifacts
        self._leases = leases
        self._authority = authority

    def keys(self, caller: Caller, request: rpc.ReleaseKeysRequest) -> rpc.ReleaseKeysResponse:
        """The data keys of work that is leased to the calling node now.

        Raises LeaseLost when it is not, Tampered or Stale when an input is not what is on record.
        """
        node, work = caller.principal.id, request.work
        self._leases.check(work.work, work.epoch, node)
        answer = self._replica(request) if "/" in work.work else self._job(work)
        # What was checked took time; the lease may have been lost in it.
        self._leases.check(work.work, work.epoch, node)
        return answer

    def _job(self, work: rpc.WorkEpoch) -> rpc.ReleaseKeysResponse:
        with self._database.read() as state:
            row = job_rows.by_uid(state, work.work)
            if row is None or row.epoch != work.epoch or row.state not in _LEASED:
                raise LeaseLost(f"epoch {work.epoch} of {work.work} is over; stop its processes")
            inputs = [
                (name, self._artifacts.read(state, found))
                for name, found in job_rows.input_versions(state, row)
            ]
            outputs = [self._artifacts.read(state, found) for found in pending(state, row.uid)]
        for _, version in inputs:
            self._artifacts.open_version(version)
        for version in outputs:
            if version.kind == CHECKPOINTS:
                row = self._resume_from(row, version)
        return rpc.ReleaseKeysResponse(
            inputs=[_key(version, name) for name, version in inputs],
            outputs=[_key(version, version.name) for version in outputs],
            resume_step=row.checkpoint_step,
            resume_digest=row.checkpoint_digest,
            resume_epoch=row.checkpoint_epoch,
        )

    def _resume_from(self, row: Row[Any], series: Version) -> Row[Any]:
        """The row of a job, once it names the checkpoint that this epoch goes on from.

        What earlier epochs finished while nobody heard of it is taken in: a node that was cut off
        loses what it did since its last checkpoint, and no more. One that cannot be read is passed
        over, down to the one on record.

        Raises Tampered or Stale when the one on record is not what was recorded.
        """
        known = point_of(row)
        for point in self._artifacts.points(series):
            if not known < point < CheckpointPoint(row.epoch, 0):
                continue
            try:
                reader = self._artifacts.checkpoint(series, point)
            except (NotFound, Tampered) as error:
                _logger.warning("a checkpoint that nobody reported is left out: %s", error)
                continue
            if reader.epoch != point.epoch and point.epoch:
                continue
            with self._database.write() as transaction:
                job_rows.change(
                    transaction, self._events, row, None, **columns_of(point, reader.digest)
                )
                fresh = job_rows.by_uid(transaction, row.uid)
            if fresh is None:
                raise LeaseLost(f"{row.uid} is gone; stop its processes")
            return fresh
        if known.step:
            self._artifacts.checkpoint(series, known, row.checkpoint_digest)
        return row

    def _replica(self, request: rpc.ReleaseKeysRequest) -> rpc.ReleaseKeysResponse:
        uid, _, identifier = request.work.work.partition("/")
        replica, endpoint = tables.replica.c, tables.endpoint.c
        version = tables.artifact_version.c
        with self._database.read() as state:
            row = state.first(
                select(tables.replica).where(replica.endpoint == uid, replica.id == identifier)
            )
            served = state.first(select(tables.endpoint).where(endpoint.uid == uid))
            if row is None or served is None or row.epoch != request.work.epoch:
                raise LeaseLost(f"{request.work.work} is over; stop its processes")
            name = model_name(state, served)
            found = state.first(
                select(tables.artifact_version).where(version.uid == served.model_version)
            )
            if found is None:
                raise LeaseLost(f"the model of {request.work.work} is gone; stop its processes")
            model = self._artifacts.read(state, found)
        self._artifacts.open_version(model)
        certificate = self._certificate(row, request.certificate_request)
        return rpc.ReleaseKeysResponse(inputs=[_key(model, name)], certificate=certificate.decode())

    def _certificate(self, row: Row[Any], request: str) -> bytes:
        # It ends with the authority: a worker cannot renew it and may run as long as it likes. What
        # limits it is its name, which nobody expects once this start is over.
        certificate = self._authority.issue(
            request.encode(),
            identity_of(row),
            server=True,
            client=False,
            lifetime=None,
        )
        replica = tables.replica.c
        with self._database.write() as transaction:
            transaction.run(
                update(tables.replica)
                .where(
                    replica.endpoint == row.endpoint,
                    replica.id == row.id,
                    replica.epoch == row.epoch,
                )
                .values(certificate_serial=serial_of(certificate))
            )
        return certificate


def identity_of(row: Row[Any]) -> Principal:
    """Who one start of a replica is; `row` of the table `replica`."""
    return Principal(PrincipalKind.REPLICA, f"{row.endpoint}-{row.id}-{row.epoch}")


def _key(version: Version, name: str) -> rpc.ArtifactKey:
    return rpc.ArtifactKey(
        name=name,
        kind=version.kind,
        folder=version.folder,
        object=version.uid,
        project=version.project,
        key=version.key,
        manifest_digest=version.digest,
    )
