"""A real control plane in this process, real agents as processes, and people with the command.

Between `tests.fakes.appliance`, which calls services over the wire, and the journeys, which bring
everything up by `appliance up`: here a test chooses what a node's Python can do, and what its jobs
are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from appliance.api.nodes.v1 import node_service_pb2, node_service_pb2_grpc
from appliance.client.profiles import Profile, Profiles
from appliance.control.events import NODES
from appliance.control.rpc.pools import TASK_THREADS
from appliance.control.services.data.artifacts import Provenance
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer, make_data_directory, running
from tests.fakes.gang import ROOT
from tests.fakes.lab import write
from tests.fakes.ports import free_port

PROJECT = "demo"
AGENT = """
import asyncio, sys
from pathlib import Path
from appliance.core.config import load
from appliance.node.config import NodeConfig
from appliance.node.main import serve
from appliance.node.works import Commands
commands = Commands(job=(sys.executable, "-c", {leader!r}), replica=())
asyncio.run(serve(load(NodeConfig, Path(sys.argv[1])), commands))
"""
LEADER = "import sys; sys.path.insert(0, {root!r}); from tests.fakes.leader import main; main()"
TOY_AGENT = ("-c", AGENT.format(leader=LEADER.format(root=str(ROOT))))
"""Arguments of a Python that make it an agent whose jobs are the toy kind."""


@dataclass(frozen=True)
class Said:
    """A command that has ended."""

    code: int
    out: str
    err: str


@dataclass
class Site:
    """One appliance."""

    appliance: Appliance
    folder: Path
    agents: list[asyncio.subprocess.Process] = field(default_factory=list)

    def tokens(self, name: str = "tokens") -> str:
        """A version of tokens, as a prepare job makes it; its resource name."""
        base, artifacts = self.appliance.control.base, self.appliance.control.work.artifacts
        with base.database.write() as transaction:
            made = Provenance(f"users/{ADMINISTRATOR}")
            version = artifacts.allocate(transaction, PROJECT, "dataset", name, made)
        digest = write(artifacts.writer(version), {"index.json": b"{}"})
        reader = artifacts.verify(version, digest)
        artifacts.sign(version, digest)
        facts = {"kind": "tokens", "documents": 3, "tokens": 9, "vocabulary_size": 512}
        with base.database.write() as transaction:
            origin = {"kind": "upload", "inputs": []}
            artifacts.register(transaction, version, reader, facts, origin)
        return version.name

    async def start_agent(self, name: str, python: Path, arguments: tuple[str, ...]) -> Path:
        """Join a node and start its agent, until it is connected; the folder of its state."""
        state = self.folder / name
        state.mkdir()
        control = self.appliance.control
        token = bearer(self.appliance.session(ADMINISTRATOR))
        stub = self.appliance.api(node_service_pb2_grpc.NodeServiceStub)
        request = node_service_pb2.CreateJoinTokenRequest(node_id=name)
        made = await stub.CreateJoinToken(request, metadata=token)
        (state / "join.token").touch(0o600)
        (state / "join.token").write_text(made.token)
        (state / "ca.pem").write_bytes(self.appliance.ca_pem)
        config = state / "node.toml"
        config.write_text(
            f'objects = "file://{self.appliance.folder}/objects"\n'
            'join_token = "join.token"\nstate = "state"\n'
            f'health = "127.0.0.1:{free_port()}"\nmetrics = "127.0.0.1:{free_port()}"\n'
            f'[control]\nca = "ca.pem"\nca_fingerprint = "{made.ca_fingerprint}"\n'
            f'join = "127.0.0.1:{control.api_port}"\n'
            f'machines = "127.0.0.1:{control.machines_port}"\n'
            '[devices]\nkind = "cpu"\ncount = 2\n'
        )
        with (state / "agent.log").open("wb") as log:
            self.agents.append(
                await asyncio.create_subprocess_exec(
                    str(python), *arguments, str(config), stdout=log, stderr=log
                )
            )
        async with asyncio.timeout(60):
            await self._connected(name)
        return state

    async def _connected(self, name: str) -> None:
        with self.appliance.control.base.events.watch(NODES) as watch:
            while self.appliance.control.work.fleet.facts(name) is None:
                await watch.wait(1.0)

    def person(self, name: str, *roles: tuple[str, str]) -> Person:
        """Somebody with these roles, given as (role, domain), who is logged in."""
        if name != ADMINISTRATOR:
            self.appliance.user(name, *roles)
        profiles = Profiles(self.folder / f"home-{name}" / "appliance")
        address, ca_pem = f"127.0.0.1:{self.appliance.control.api_port}", self.appliance.ca_pem
        profile = Profile("here", address, ca_pem.decode(), project=PROJECT, user=name)
        profiles.put(profile)
        profiles.keep_token(profile, self.appliance.session(name))
        return Person(self.folder / f"home-{name}")


@dataclass(frozen=True)
class Person:
    """Types commands."""

    home: Path

    async def type(self, *arguments: str) -> Said:
        """Run `appliance` with these arguments to its end."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance.cli.main", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "XDG_CONFIG_HOME": str(self.home)},
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return Said(process.returncode, out.decode(), err.decode())


@contextlib.asynccontextmanager
async def new_site(folder: Path) -> AsyncIterator[Site]:
    """An appliance with a project, whose scheduler runs; afterwards no agent of it is left."""
    template = make_data_directory(folder / "template")
    async with running(template, folder / "data") as appliance:
        appliance.project(PROJECT)
        control = appliance.control
        pool = control._pool
        passes = asyncio.gather(
            control.work.scheduler.run(pool.passes, control.base.events),
            control.work.storage.run(pool.tasks, TASK_THREADS),
        )
        site = Site(appliance, folder)
        try:
            yield site
        finally:
            for agent in site.agents:
                if agent.returncode is None:
                    agent.terminate()
                await agent.wait()
            passes.cancel()
            await asyncio.gather(passes, return_exceptions=True)
