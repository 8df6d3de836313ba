"""CheckpointService: see `appliance.control.services.work.checkpoints`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.jobs.v1 import checkpoint_pb2
from appliance.api.jobs.v1 import checkpoint_service_pb2 as rpc
from appliance.api.jobs.v1.checkpoint_service_pb2_grpc import CheckpointServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.work.checkpoints import Checkpoints

Context = grpc.aio.ServicerContext[Any, Any]


class CheckpointRpc(Servicer, CheckpointServiceServicer):
    """Translates."""

    def __init__(self, service: Checkpoints, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetCheckpoint(
        self, request: rpc.GetCheckpointRequest, context: Context
    ) -> checkpoint_pb2.Checkpoint:
        """Returns one checkpoint."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListCheckpoints(
        self, request: rpc.ListCheckpointsRequest, context: Context
    ) -> rpc.ListCheckpointsResponse:
        """Returns one page of the checkpoints of a job, newest first."""
        return await self._run(self._service.list, self.caller, request)

    async def DeleteCheckpoint(
        self, request: rpc.DeleteCheckpointRequest, context: Context
    ) -> checkpoint_pb2.Checkpoint:
        """Deletes a checkpoint."""
        return await self._run(self._service.delete, self.caller, request)
