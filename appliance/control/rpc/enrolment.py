"""EnrolmentService: see `appliance.control.services.fleet.enrolment`."""

from __future__ import annotations

from typing import Any

import grpc.aio

from appliance.api.agent.v1 import enrolment_service_pb2 as rpc
from appliance.api.agent.v1.enrolment_service_pb2_grpc import EnrolmentServiceServicer
from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.fleet.enrolment import Enrolment

Context = grpc.aio.ServicerContext[Any, Any]


class EnrolmentRpc(Servicer, EnrolmentServiceServicer):
    """Translates."""

    def __init__(self, service: Enrolment, pool: CallPool, events: Events) -> None:
        super().__init__(pool, events)
        self._service = service

    async def Join(self, request: rpc.JoinRequest, context: Context) -> rpc.JoinResponse:
        """Exchanges a join token and a certificate request for the node's certificate."""
        return await self._run(self._service.join, self.caller, request)

    async def JoinGateway(
        self, request: rpc.JoinGatewayRequest, context: Context
    ) -> rpc.JoinGatewayResponse:
        """Exchanges a join token and a certificate request for a gateway's identity."""
        return await self._run(self._service.join_gateway, self.caller, request)

    async def GetChallenge(
        self, request: rpc.GetChallengeRequest, context: Context
    ) -> rpc.GetChallengeResponse:
        """Returns a challenge for RecoverCertificate."""
        return self._service.challenge()

    async def RecoverCertificate(
        self, request: rpc.RecoverCertificateRequest, context: Context
    ) -> rpc.RecoverCertificateResponse:
        """Replaces a machine's certificate that has ended, by proof of its key."""
        return await self._run(self._service.recover, self.caller, request)
