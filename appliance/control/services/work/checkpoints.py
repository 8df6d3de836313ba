"""Checkpoints of jobs, as resources: seen, listed and deleted.

Rules kept here: what a job that has not ended goes on from, or reads, is not deleted; the call
returns when nobody can go on from the checkpoint any more, its files go soon after.

Called by `rpc.checkpoints`; what happens in the object store is in
`services.work.checkpoint_tasks`.
"""

from __future__ import annotations

from appliance.api.jobs.v1 import checkpoint_pb2
from appliance.api.jobs.v1 import checkpoint_service_pb2 as rpc
from appliance.control.events import Events
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.data.storage_tasks import StorageTasks
from appliance.control.services.work import checkpoint_rows, job_rows
from appliance.control.services.work.checkpoint_rows import DELETING, point_of
from appliance.control.store.database import Database, Transaction
from appliance.core.errors import FailedPrecondition
from appliance.core.jobs import TERMINAL
from appliance.core.names import Name


class Checkpoints:
    """Shows and deletes checkpoints."""

    def __init__(
        self, database: Database, changes: Changes, tasks: StorageTasks, events: Events
    ) -> None:
        self._database = database
        self._changes = changes
        self._tasks = tasks
        self._events = events

    def get(self, caller: Caller, name: str) -> checkpoint_pb2.Checkpoint:
        """One checkpoint."""
        del caller  # the gate has decided
        with self._database.read() as state:
            job, row = checkpoint_rows.by_name(state, Name.parse(name, "checkpoint"))
            return checkpoint_rows.resource(state, job, row)

    def list(
        self, caller: Caller, request: rpc.ListCheckpointsRequest
    ) -> rpc.ListCheckpointsResponse:
        """One page of the checkpoints of a job, newest first."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, int, int)
        with self._database.read() as state:
            job = job_rows.by_name(state, Name.parse(request.parent, "job", field="parent"))
            rows = checkpoint_rows.of_job(state, job.uid)
            if after is not None:
                rows = [row for row in rows if (row.epoch, row.step) < tuple(after)]
            page, token = paging.cut(rows[: size + 1], size, lambda row: (row.epoch, row.step))
            return rpc.ListCheckpointsResponse(
                checkpoints=[checkpoint_rows.resource(state, job, row) for row in page],
                next_page_token=token,
            )

    def delete(
        self, caller: Caller, request: rpc.DeleteCheckpointRequest
    ) -> checkpoint_pb2.Checkpoint:
        """Delete a checkpoint.

        Raises FailedPrecondition while a job goes on from it or reads it.
        """
        name = Name.parse(request.name, "checkpoint")

        def work(transaction: Transaction) -> checkpoint_pb2.Checkpoint:
            job, row = checkpoint_rows.by_name(transaction, name)
            if row.state == DELETING:
                return checkpoint_rows.resource(transaction, job, row)
            newest = checkpoint_rows.newest(transaction, job.uid)
            if (
                job.state not in TERMINAL
                and newest is not None
                and point_of(newest) == point_of(row)
            ):
                raise FailedPrecondition(
                    f"{job_rows.name_of(job)} would go on from it: delete it when the job has ended"
                    " or has a newer one"
                )
            reader = job_rows.readers_of(transaction, job.project).get(
                checkpoint_rows.uid_of(row, job.uid)
            )
            if reader is not None:
                raise FailedPrecondition(
                    f"{reader} begins with it: delete it when that job has ended"
                )
            checkpoint_rows.mark_for_deletion(transaction, self._tasks, job.uid, [point_of(row)])
            topic = job_rows.name_of(job)
            transaction.after_commit(lambda: self._events.publish(topic))
            _, row = checkpoint_rows.by_name(transaction, name)
            return checkpoint_rows.resource(transaction, job, row)

        return self._changes.make(caller, request, checkpoint_pb2.Checkpoint, work)
