"""The gateway believes the control plane and each start of a replica by name, nobody by authority.

Whoever holds another certificate of the appliance, such as a worker's, gets neither its trust nor
what people ask.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from pathlib import Path

import httpx
import pytest

from appliance.api.inference.v1.worker_service_pb2_grpc import WorkerServiceStub
from appliance.core.errors import Untrusted
from appliance.core.identity import Principal, PrincipalKind
from appliance.gateway.identity import begin
from appliance.gateway.main import Gateway
from tests.fakes.gateway import Stage, configuration, stage, until
from tests.fakes.routing import ENDPOINT, Control
from tests.fakes.wire import authority, failure, other_authority, serving
from tests.fakes.worker import Worker, story


async def ask(found: Stage) -> list[int]:
    async with found.client() as client:
        pieces = client.generate(ENDPOINT, prompt="Hallo", max_tokens=3)
        return [token async for piece in pieces for token in piece.token_ids]


@pytest.mark.attack
@pytest.mark.parametrize("kind", [PrincipalKind.REPLICA, PrincipalKind.GATEWAY])
async def test_a_false_control_plane_is_not_believed(
    tmp_path: Path, kind: PrincipalKind, caplog: pytest.LogCaptureFixture
) -> None:
    control = Control(Principal(kind, "a"))
    await control.start()
    config = configuration(tmp_path, control.port)
    gateway = Gateway(config, *await begin(config))
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.run(stop))
    try:
        with pytest.raises(Untrusted):
            await gateway._control.tokenizer(ENDPOINT)
        assert control.tokenizer_calls == 0
        assert gateway.view.last is None
        await until(lambda: "of another kind or name than the one that is meant" in caplog.text)
    finally:
        stop.set()
        await running
        await control.stop()


@pytest.mark.attack
async def test_a_control_plane_of_another_authority_is_said_to_be_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not that it cannot be reached: whoever looks whether it runs would look in vain."""
    control = Control()
    await control.start()
    config = configuration(tmp_path, control.port)
    keeper, front = await begin(config)
    ca_pem = other_authority().certificate_pem
    keeper._identity = dataclasses.replace(keeper.identity, ca_pem=ca_pem)
    gateway = Gateway(config, keeper, front)
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.run(stop))
    try:
        await until(lambda: "is not one that the CA certificate in use vouches for" in caplog.text)
        with pytest.raises(Untrusted, match="TLS says: "):
            await gateway._control.tokenizer(ENDPOINT)
    finally:
        stop.set()
        await running
        await control.stop()


@pytest.mark.attack
@pytest.mark.parametrize(
    "shown",
    [
        Principal(PrincipalKind.REPLICA, "other"),
        Principal(PrincipalKind.GATEWAY, "b"),
        Principal(PrincipalKind.CONTROL, "main"),
    ],
    ids=str,
)
async def test_a_replica_that_is_another_gets_no_prompts(tmp_path: Path, shown: Principal) -> None:
    honest, false = Worker("a"), Worker("b", shown=shown)
    async with stage(tmp_path, honest) as found:
        await false.start()
        try:
            found.control.serve(honest, false)
            found.control.publish()
            await until(lambda: len(found.gateway.fleet.links) == 2)
            for _ in range(6):
                assert await ask(found) == story(5, 3)
            (place,) = (link.place for link in found.gateway.fleet.links if link.place.id == "b")
            async with found.gateway._connect(place) as channel:
                call = WorkerServiceStub(channel).Attach(timeout=10)
                assert (await failure(call.read)).code().name == "UNAVAILABLE"
            own = dataclasses.replace(place, server_name=shown.server_name)
            async with found.gateway._connect(own) as channel:
                assert await WorkerServiceStub(channel).Attach(timeout=10).read()
            # It was reached once only: just now, under its own name.
            assert (len(false.metadata), false.submits) == (1, [])
        finally:
            await false.stop()


@pytest.mark.attack
@pytest.mark.parametrize("kind", [PrincipalKind.REPLICA, PrincipalKind.CONTROL])
async def test_a_worker_cannot_pose_as_the_openai_api(kind: PrincipalKind) -> None:
    trusted = ssl.create_default_context(cadata=authority().certificate_pem.decode())
    async with (
        serving([], [], {}, require_client=False, shown=Principal(kind, "a")) as running,
        httpx.AsyncClient(verify=trusted) as client,
    ):
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(httpx.ConnectError, match="mismatch"):
                await client.get(f"https://{host}:{running.port}/v1/models")
