"""AuditService: see `appliance.control.services.audit`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from appliance.api.audit.v1 import audit_service_pb2 as rpc
from appliance.api.audit.v1.audit_service_pb2_grpc import AuditServiceServicer
from appliance.control.events import Events
from appliance.control.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.audit import Audit

Context = grpc.aio.ServicerContext[Any, Any]


class AuditRpc(Servicer, AuditServiceServicer):
    """Translates."""

    def __init__(self, service: Audit, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def ListRecords(
        self, request: rpc.ListRecordsRequest, context: Context
    ) -> rpc.ListRecordsResponse:
        """Returns one page of records, newest first."""
        return await self._run(self._service.list, self.caller, request)

    async def GetCheckpoint(
        self, request: rpc.GetCheckpointRequest, context: Context
    ) -> rpc.GetCheckpointResponse:
        """Returns the newest signed checkpoint and the key to verify it with."""
        return await self._run(self._service.checkpoint, self.caller)

    async def ExportRecords(
        self, request: rpc.ExportRecordsRequest, context: Context
    ) -> AsyncIterator[rpc.ExportRecordsResponse]:
        """Streams the raw chain as it is when the call begins."""
        position, stop = request.from_sequence, self._service.size
        while position < stop:
            lines, position = await self._run(self._service.export, self.caller, position, stop)
            yield rpc.ExportRecordsResponse(lines=lines)
