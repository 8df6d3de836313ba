"""People's programs talk to the server they mean, not to any that the authority vouches for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from appliance.client.connection import Connection
from appliance.client.health import check
from appliance.client.inference import AsyncInference
from appliance.core.errors import Untrusted
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes.wire import authority, serving

KINDS = (PrincipalKind.CONTROL, PrincipalKind.GATEWAY, PrincipalKind.REPLICA)
TOKEN = "sla_ses_x_y_z"


@pytest.fixture(params=KINDS)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[tuple[PrincipalKind, str]]:
    """A server that shows a certificate of some kind: the kind, and where it is."""
    shown = Principal(request.param, "a")
    async with serving([], [], {}, require_client=False, shown=shown) as running:
        yield request.param, f"127.0.0.1:{running.port}"


def ask_health(address: str, meant: PrincipalKind) -> None:
    with Connection(address, authority().certificate_pem, TOKEN, server=meant) as connection:
        method = connection.stub(HealthStub).Check
        connection.call(method, health_pb2.HealthCheckRequest(), timeout=10)


@pytest.mark.attack
@pytest.mark.parametrize("meant", [PrincipalKind.CONTROL, PrincipalKind.GATEWAY])
async def test_a_connection_believes_the_kind_of_server_it_means(
    server: tuple[PrincipalKind, str], meant: PrincipalKind
) -> None:
    shown, address = server
    ca = authority().certificate_pem
    if shown is meant:
        await asyncio.to_thread(ask_health, address, meant)
        await asyncio.to_thread(check, address, ca, server=meant)
        return
    with pytest.raises(Untrusted):
        await asyncio.to_thread(ask_health, address, meant)
    with pytest.raises(Untrusted):
        await asyncio.to_thread(check, address, ca, server=meant)


@pytest.mark.attack
async def test_inference_is_asked_of_a_gateway_only(server: tuple[PrincipalKind, str]) -> None:
    shown, address = server
    async with AsyncInference(address, authority().certificate_pem, TOKEN) as client:
        with pytest.raises(Exception) as raised:
            await asyncio.wait_for(anext(client.generate("projects/p/endpoints/e", prompt="x")), 10)
    # A gateway is reached, and this one knows no such method.
    assert (type(raised.value) is Untrusted) == (shown is not PrincipalKind.GATEWAY)
