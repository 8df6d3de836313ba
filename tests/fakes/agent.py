"""An agent on real work processes, and what its tests share."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core import process_tree
from appliance.machine import kinds
from appliance.machine.control_plane import ControlAddress
from appliance.machine.identity import IdentityStore
from appliance.node.agent import Agent, Rhythm
from appliance.node.works import Commands
from tests.fakes.control_plane import FakeControlPlane

COMMANDS = Commands(
    job=(sys.executable, "-m", "tests.fakes.leader"),
    replica=(sys.executable, "-m", "tests.fakes.toy_replica"),
)
FAST = Rhythm(heartbeat=0.1, report=0.05, news=0.05, silence=5, first_backoff=0.05)

Start = Callable[[], Awaitable[Agent]]


class Said(logging.Handler):
    """What the agent's log says, as it says it."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put_nowait(record.getMessage())

    async def until(self, part: str) -> str:
        """The next line with `part` in it."""
        async with asyncio.timeout(30):
            while part not in (line := await self._lines.get()):
                pass
        return line


def store(control: FakeControlPlane, folder: Path) -> IdentityStore:
    addresses = ControlAddress(
        join=f"127.0.0.1:{control.join_port}",
        machines=f"127.0.0.1:{control.machine_port}",
        ca=control.ca_file,
        ca_fingerprint=control.authority.fingerprint(),
    )
    return IdentityStore(kinds.NODE, folder, addresses)


def token_file(control: FakeControlPlane, folder: Path) -> Path:
    path = folder / "join.token"
    path.touch(0o600)
    path.write_text(f"{control.token}\n")
    return path


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task does, half a minute at most."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)


def first_processes() -> list[int]:
    """The first process of each work of an agent in this process: it leads a session."""
    return [pid for pid in process_tree.children(os.getpid()) if pid in process_tree.session(pid)]


def serve(control: FakeControlPlane, length: int = 64) -> rpc.StartReplica:
    """An order to serve a model of the toy kind."""
    work = "0b" * 16 + "/0"
    model = rpc.ArtifactKey(name="m", kind="model", folder="p/x", object="x", project="p", key=b"k")
    control.keys[work] = rpc.ReleaseKeysResponse(inputs=[model], certificate="CERTIFICATE")
    control.leases.add((work, 1))
    return rpc.StartReplica(
        work=rpc.WorkEpoch(work=work, epoch=1),
        endpoint="projects/p/endpoints/e",
        devices=[0],
        max_sequence_length=length,
        cache_bytes=1 << 20,
    )
