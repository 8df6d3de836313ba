"""RoutingService: see `appliance.control.services.serving.routing`, `usage` and `gateways`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.api.serving.v1.routing_service_pb2_grpc import RoutingServiceServicer
from appliance.control.events import ACCESS, ROUTING, Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.serving.connected_gateways import ConnectedGateways
from appliance.control.services.serving.gateways import Gateways
from appliance.control.services.serving.routing import Routing
from appliance.control.services.serving.routing_view import HeldView
from appliance.control.services.serving.usage import UsageRecords
from appliance.core.errors import FailedPrecondition
from appliance.wire.routing import FORM

Context = grpc.aio.ServicerContext[Any, Any]


PULSE_SECONDS = 1.0
"""How often a gateway hears that its view still holds."""
TOGETHER_SECONDS = 0.1


class RoutingRpc(Servicer, RoutingServiceServicer):
    """Translates."""

    def __init__(  # noqa: PLR0913  # the services it translates for
        self,
        service: Routing,
        usage: UsageRecords,
        gateways: Gateways,
        connected: ConnectedGateways,
        pool: CallPool,
        events: Events,
    ) -> None:
        super().__init__(pool, events)
        self._service, self._usage = service, usage
        self._gateways = gateways
        self._connected = connected

    async def WatchRouting(
        self, request: rpc.WatchRoutingRequest, context: Context
    ) -> AsyncIterator[rpc.RoutingView]:
        """Streams the whole view, then what changes in it, and a sign of life once a second."""
        if request.form < FORM:
            raise FailedPrecondition(
                "this gateway is older than the control plane and cannot read who may ask what:"
                " install the control plane's version on it"
            )
        held: HeldView | None = None
        gateway = self.caller.principal.id
        with self._connected.entered(gateway), self._events.watch(ROUTING, ACCESS) as watch:
            while True:
                held, messages = await self._run_for_stream(self._service.messages, held)
                for message in messages:
                    yield message
                # Changes that come together are sent together.
                await asyncio.sleep(TOGETHER_SECONDS)
                await watch.wait(PULSE_SECONDS)

    async def ReadServedTokenizer(
        self, request: rpc.ReadServedTokenizerRequest, context: Context
    ) -> AsyncIterator[rpc.ServedTokenizerPart]:
        """Streams the tokenizer of a served model version; a slow gateway holds no thread."""
        pool = self._pool.storage
        parts = await self._run_in(pool, self._service.tokenizer_parts, self.caller, request)
        try:
            while (part := await self._look_in(pool, next, parts, None)) is not None:
                yield part
        finally:
            await self._run_in(pool, parts.close)

    async def GetServedTokenizer(
        self, request: rpc.GetServedTokenizerRequest, context: Context
    ) -> rpc.ServedTokenizer:
        """Returns the tokenizer of a served model version."""
        return await self._run_in(self._pool.storage, self._service.tokenizer, self.caller, request)

    async def ReportUsage(
        self, request: rpc.ReportUsageRequest, context: Context
    ) -> rpc.ReportUsageResponse:
        """Records inference calls in the audit chain."""
        return await self._run(self._usage.report, self.caller, request)

    async def RenewCertificate(
        self, request: rpc.RenewCertificateRequest, context: Context
    ) -> rpc.RenewCertificateResponse:
        """Replaces what the gateway calls with, before it ends."""
        return await self._run(self._gateways.renew, self.caller, request)

    async def RenewFrontCertificate(
        self, request: rpc.RenewFrontCertificateRequest, context: Context
    ) -> rpc.RenewFrontCertificateResponse:
        """Issues what the gateway shows to its callers."""
        return await self._run(self._gateways.renew_front, self.caller, request)
