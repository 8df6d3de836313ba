"""TombstoneService: see `appliance.control.services.data.tombstones`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.data.v1 import tombstone_pb2
from appliance.api.data.v1 import tombstone_service_pb2 as rpc
from appliance.api.data.v1.tombstone_service_pb2_grpc import TombstoneServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.data.tombstones import Tombstones

Context = grpc.aio.ServicerContext[Any, Any]


class TombstoneRpc(Servicer, TombstoneServiceServicer):
    """Translates."""

    def __init__(self, service: Tombstones, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def GetTombstone(
        self, request: rpc.GetTombstoneRequest, context: Context
    ) -> tombstone_pb2.Tombstone:
        """Returns one tombstone."""
        return await self._run(self._service.get, self.caller, request.name)

    async def ListTombstones(
        self, request: rpc.ListTombstonesRequest, context: Context
    ) -> rpc.ListTombstonesResponse:
        """Returns one page of tombstones."""
        return await self._run(self._service.list, self.caller, request)
