from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.machine.joining import Joining
from appliance.node.agent import Agent
from appliance.node.documents import NodeEnvironment
from appliance.node.launcher import Folders, Launcher
from appliance.node.metrics import NodeMetrics
from tests.fakes.agent import COMMANDS, FAST, Said, Start, store, token_file
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.gang import ROOT


@pytest.fixture
def said() -> Iterator[Said]:
    handler, logger = Said(), logging.getLogger("appliance")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[FakeControlPlane]:
    async with FakeControlPlane(tmp_path) as plane:
        yield plane


@pytest.fixture
async def start(control: FakeControlPlane, tmp_path: Path) -> AsyncIterator[Start]:
    running: list[asyncio.Task[None]] = []

    async def begin() -> Agent:
        joining = Joining(store(control, tmp_path), token_file(control, tmp_path), look=0.05)
        launcher = Launcher(
            Folders(tmp_path / "runs", tmp_path / "scratch"),
            {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            log_bytes=1 << 20,
        )
        agent = Agent(
            joining,
            await joining.begin(),
            rpc.Hello(devices=2, device_kind="cpu", address="127.0.0.1"),
            NodeEnvironment(
                f"file://{tmp_path}/objects", "127.0.0.1", "cpu", tmp_path / "gateways.json"
            ),
            launcher,
            COMMANDS,
            metrics=NodeMetrics(CollectorRegistry()),
            rhythm=FAST,
        )
        running.append(asyncio.create_task(agent.run()))
        return agent

    yield begin
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
