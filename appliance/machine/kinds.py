"""Where joining and renewing differ between a node and a gateway: the calls, and what to type.

Called by `identity`; made here once, chosen by each composition root.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc.aio

from appliance.api.agent.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    enrolment_service_pb2,
    enrolment_service_pb2_grpc,
)
from appliance.api.serving.v1 import routing_service_pb2, routing_service_pb2_grpc
from appliance.core.identity import PrincipalKind
from appliance.core.names import Name

CALL_SECONDS = 20.0


@dataclass(frozen=True)
class Joined:
    """What a control plane says to a machine that has joined: its id, certificate and cluster."""

    id: str
    certificate: str
    cluster: str


@dataclass(frozen=True)
class MachineKind:
    """One kind of machine.

    Attributes:
        principal: its kind.
        join: exchanges a token and a certificate request over a channel to the API listener.
        renew: exchanges a certificate request over a channel to the machine listener.
        user: user of the operating system that its unit runs as.
    """

    principal: PrincipalKind
    join: Callable[[grpc.aio.Channel, str, str], Awaitable[Joined]]
    renew: Callable[[grpc.aio.Channel, str], Awaitable[str]]
    user: str

    @property
    def word(self) -> str:
        """`node` or `gateway`."""
        return self.principal.path


async def _join_node(connection: grpc.aio.Channel, token: str, request: str) -> Joined:
    answer = await enrolment_service_pb2_grpc.EnrolmentServiceStub(connection).Join(
        enrolment_service_pb2.JoinRequest(token=token, certificate_request=request),
        timeout=CALL_SECONDS,
    )
    return Joined(Name.parse(answer.node, "node").id, answer.certificate, answer.cluster_id)


async def _renew_node(connection: grpc.aio.Channel, request: str) -> str:
    answer = await agent_service_pb2_grpc.AgentServiceStub(connection).RenewCertificate(
        agent_service_pb2.RenewCertificateRequest(certificate_request=request),
        timeout=CALL_SECONDS,
    )
    return str(answer.certificate)


async def _join_gateway(connection: grpc.aio.Channel, token: str, request: str) -> Joined:
    answer = await enrolment_service_pb2_grpc.EnrolmentServiceStub(connection).JoinGateway(
        enrolment_service_pb2.JoinGatewayRequest(token=token, certificate_request=request),
        timeout=CALL_SECONDS,
    )
    return Joined(Name.parse(answer.gateway, "gateway").id, answer.certificate, answer.cluster_id)


async def _renew_gateway(connection: grpc.aio.Channel, request: str) -> str:
    answer = await routing_service_pb2_grpc.RoutingServiceStub(connection).RenewCertificate(
        routing_service_pb2.RenewCertificateRequest(certificate_request=request),
        timeout=CALL_SECONDS,
    )
    return str(answer.certificate)


NODE = MachineKind(PrincipalKind.NODE, _join_node, _renew_node, "appliance-agent")
GATEWAY = MachineKind(PrincipalKind.GATEWAY, _join_gateway, _renew_gateway, "appliance-gateway")
