"""AuditService: see `appliance.control.services.system.audit`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from appliance.api.audit.v1 import audit_service_pb2 as rpc
from appliance.api.audit.v1.audit_service_pb2_grpc import AuditServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.system.audit import Audit

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
        position, stop = self._service.export_range(request)
        while position < stop:
            lines, position = await self._run(self._service.export, self.caller, position, stop)
            yield rpc.ExportRecordsResponse(lines=lines)

    async def ListSegments(
        self, request: rpc.ListSegmentsRequest, context: Context
    ) -> rpc.ListSegmentsResponse:
        """Lists the closed segments that were not archived, oldest first."""
        return await self._run(self._service.segments, self.caller, request)

    async def ArchiveSegments(
        self, request: rpc.ArchiveSegmentsRequest, context: Context
    ) -> rpc.ArchiveSegmentsResponse:
        """Deletes closed segments here which the caller holds elsewhere."""
        return await self._run(self._service.archive, self.caller, request)

    async def PruneArchive(
        self, request: rpc.PruneArchiveRequest, context: Context
    ) -> rpc.PruneArchiveResponse:
        """Signs that segments of an archive are deleted because of their age."""
        return await self._run(self._service.prune, self.caller, request)
