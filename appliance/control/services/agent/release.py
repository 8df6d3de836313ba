"""Keys for work: what a node needs to do what is leased to it now, and nothing else.

Rules kept here:
* a node gets keys only for work whose lease it holds at this moment under the current epoch (S27);
  after the lease is lost, the node evicted or the work ended, it gets LeaseLost;
* the key of an input is handed out after the input was seen to be the version on record with our
  signature, a checkpoint that of its digest on record, so nobody computes on what was swapped;
* a replica's certificate is for servers only and for this one start: the name in it is one that
  gateways expect while the start is in their view, and never again;
* nothing that a node says of itself, such as its address, is in a certificate.

The attacks: a compromised node asks for the keys of other work, or of work it has lost; it calls
itself by the address of the gateway and lets a replica pose as that. Called by `rpc.agents`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import missing
from appliance.control.services.data import artifact_rows
from appliance.control.services.data.artifacts import CHECKPOINTS, Artifacts, Version
from appliance.control.services.fleet.leases import Leases
from appliance.control.services.serving import replica_rows
from appliance.control.services.serving.replica_rows import identity_of
from appliance.control.services.work import checkpoint_rows, job_rows
from appliance.control.services.work.checkpoint_folders import CheckpointFolders
from appliance.control.services.work.checkpoint_rows import point_of
from appliance.control.services.work.checkpoint_tasks import CheckpointTasks
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading
from appliance.control.store.objects import ObjectStore
from appliance.core.checkpoints import CheckpointPoint
from appliance.core.errors import LeaseLost, Unavailable
from appliance.core.jobs import LEASED
from appliance.crypto.certs import Authority


class Release:
    """Hands out keys and replicas' certificates."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        artifacts: Artifacts,
        checkpoints: CheckpointTasks,
        folders: CheckpointFolders,
        store: ObjectStore,
        leases: Leases,
        authority: Authority,
    ) -> None:
        self._store = store
        self._database = database
        self._checkpoints = checkpoints
        self._folders = folders
        self._artifacts = artifacts
        self._leases = leases
        self._authority = authority

    def keys(self, caller: Caller, request: rpc.ReleaseKeysRequest) -> rpc.ReleaseKeysResponse:
        """The data keys of work that is leased to the calling node now.

        Raises LeaseLost when it is not, Tampered or Stale when an input is not what is on record,
        Unavailable while the object store cannot be read.
        """
        node, work = caller.principal.id, request.work
        self._leases.check(work.work, work.epoch, node)
        try:
            self._store.check_mounted()
            answer = self._replica(request) if "/" in work.work else self._job(work)
        except OSError as error:
            raise Unavailable(
                f"the object store cannot be read now ({error.strerror}): ask again",
                retry_after=5.0,
            ) from error
        # What was checked took time; the lease may have been lost in it.
        self._leases.check(work.work, work.epoch, node)
        return answer

    def _job(self, work: rpc.WorkEpoch) -> rpc.ReleaseKeysResponse:
        with self._database.read() as state:
            row = job_rows.by_uid(state, work.work)
            if row is None or row.epoch != work.epoch or row.state not in LEASED:
                raise LeaseLost(f"epoch {work.epoch} of {work.work} is over; stop its processes")
            inputs = [
                (str(name), self._input(state, name.kind, uid))
                for name, uid in job_rows.read_by(state, row)
            ]
            outputs = [
                self._artifacts.read(state, found)
                for found in artifact_rows.pending_of(state, row.uid)
            ]
        for _, (version, series) in inputs:
            if series is None:
                self._artifacts.open_version(version)
            else:
                self._folders.read(*series, version.digest)
        resumed = None
        for version in outputs:
            if version.kind == CHECKPOINTS:
                resumed = self._checkpoints.to_resume(row, version)
        answer = rpc.ReleaseKeysResponse(
            inputs=[_key(version, name) for name, (version, _) in inputs],
            outputs=[_key(version, version.name) for version in outputs],
        )
        if resumed is not None:
            answer.resume_step = resumed.step
            answer.resume_digest = resumed.digest
            answer.resume_epoch = resumed.epoch
        return answer

    def _input(
        self, state: Reading, kind: str, uid: str
    ) -> tuple[Version, tuple[Version, CheckpointPoint] | None]:
        """The version, with its key, of a uid; of a checkpoint its series and place too."""
        if kind != "checkpoint":
            return self._artifacts.read(state, artifact_rows.version_of_uid(state, uid)), None
        job, row = checkpoint_rows.by_uid(state, uid)
        found = checkpoint_rows.series_row(state, job.uid)
        if found is None or row.state != checkpoint_rows.COMPLETE:
            raise missing(checkpoint_rows.name_of(job, row))
        series = self._artifacts.read(state, found)
        return checkpoint_rows.version_at(series, row), (series, point_of(row))

    def _replica(self, request: rpc.ReleaseKeysRequest) -> rpc.ReleaseKeysResponse:
        version = tables.artifact_version.c
        with self._database.read() as state:
            row = replica_rows.at(state, request.work.work, request.work.epoch)
            # Its own, which need not be that of its endpoint any more.
            name = replica_rows.version_name(state, row.model_version)
            found = state.first(
                select(tables.artifact_version).where(version.uid == row.model_version)
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
        return self._authority.issue(
            request.encode(),
            identity_of(row),
            server=True,
            client=False,
            lifetime=None,
        )


def _key(version: Version, name: str) -> rpc.ArtifactKey:
    return rpc.ArtifactKey(
        name=name,
        kind=version.kind,
        folder=version.folder,
        object=version.uid,
        project=version.project,
        key=version.key,
        manifest_digest=version.digest,
        slot=version.slot,
    )
