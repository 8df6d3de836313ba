"""The gateway as a process: it starts, says so in health, drains, and names a taken port."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.client.inference import AsyncInference
from appliance.core.identity import PrincipalKind
from tests.fakes.gateway import configuration
from tests.fakes.ports import free_port
from tests.fakes.routing import ENDPOINT, Control
from tests.fakes.wire import authority, connect
from tests.fakes.worker import Script, Worker, story

SERVING = health_pb2.HealthCheckResponse.SERVING


def settings(folder: Path, control: int, grpc: int, openai: int) -> Path:
    configuration(folder, control)
    path = folder / "gateway.toml"
    path.write_text(
        f'cluster_id = "c1"\ncontrol = "127.0.0.1:{control}"\nmetrics = "127.0.0.1:0"\n'
        'key = "key.pem"\ncertificate = "cert.pem"\nca = "ca.pem"\n'
        f'[listen]\ngrpc = "127.0.0.1:{grpc}"\nopenai = "127.0.0.1:{openai}"\n'
    )
    return path


async def start(path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "appliance.gateway",
        "--config",
        str(path),
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.fixture
async def control() -> AsyncIterator[Control]:
    made = Control()
    await made.start()
    yield made
    await made.stop()


async def serving(port: int) -> None:
    async with connect(port, server=PrincipalKind.GATEWAY) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            if answer.status == SERVING:
                return
            await asyncio.sleep(0.05)


async def test_a_stop_lets_answers_end(tmp_path: Path, control: Control) -> None:
    worker = Worker("a", Script(seconds=0.01))
    await worker.start()
    token = control.issue()
    control.serve(worker)
    control.publish()
    port = free_port()
    process = await start(settings(tmp_path, control.port, port, free_port()))
    try:
        async with asyncio.timeout(40):
            await serving(port)
            ca = authority().certificate_pem
            async with AsyncInference(f"127.0.0.1:{port}", ca, token) as client:
                ids: list[int] = []
                async for piece in client.generate(ENDPOINT, prompt="Hallo", max_tokens=80):
                    if not ids:
                        process.send_signal(signal.SIGTERM)
                    ids += piece.token_ids
            assert ids == story(5, 80)
            _, said = await process.communicate()
        assert process.returncode == 0, said
        assert [usage.completion_tokens for usage in control.usages] == [80]
        assert token not in said.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await worker.stop()


@pytest.mark.parametrize("taken", ["listen.grpc", "listen.openai"])
async def test_a_taken_port_is_one_sentence(tmp_path: Path, control: Control, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = {"listen.grpc": free_port(), "listen.openai": free_port(), taken: port}
        path = settings(tmp_path, control.port, ports["listen.grpc"], ports["listen.openai"])
        process = await start(path)
        async with asyncio.timeout(40):
            _, said = await process.communicate()
    (line,) = [json.loads(line) for line in said.decode().splitlines() if '"ERROR"' in line]
    assert process.returncode == 1
    assert f"port {port} is in use" in line["message"]
    assert taken in line["message"]
