"""The composition root of the agent: configuration in, a running node out."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core import log
from appliance.core.config import load
from appliance.core.errors import ApplianceError
from appliance.core.files import make_private_dir
from appliance.core.process import adopt_orphans, harden
from appliance.machine import kinds
from appliance.machine.identity import IdentityStore
from appliance.machine.joining import Joining
from appliance.node import devices
from appliance.node.abilities import MODULES, Abilities, capabilities
from appliance.node.agent import Agent
from appliance.node.config import NodeConfig
from appliance.node.devices import Offer
from appliance.node.documents import NodeEnvironment
from appliance.node.launcher import Folders, Launcher
from appliance.node.metrics import NodeMetrics
from appliance.node.replica_metrics import ReplicaMetrics
from appliance.node.works import Commands
from appliance.wire import accepted
from appliance.wire.server import Listener, Server

# -P: the folder a work runs in is its own to write, and must not be a place to import from.
COMMANDS = Commands(
    job=(sys.executable, "-P", "-m", "appliance.jobs"),
    replica=(sys.executable, "-P", "-m", "appliance.worker"),
)

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run the agent until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(prog="appliance.node", description="The agent of one node.")
    parser.add_argument("--config", required=True, type=Path, help="its node.toml")
    options = parser.parse_args(arguments)
    log.configure("node")
    try:
        asyncio.run(serve(load(NodeConfig, options.config), COMMANDS))
    except ApplianceError as error:
        logger.error("%s", error)  # noqa: TRY400  # a sentence for a person
        return 1
    return 0


async def serve(config: NodeConfig, commands: Commands) -> None:
    """Join if need be, then be a node until told to stop; health says meanwhile that it is not."""
    harden()
    adopt_orphans()
    make_private_dir(config.state)
    store = IdentityStore(kinds.NODE, config.state, config.control)
    joining = Joining(store, config.join_token)
    offered = _offer(config)
    registry = CollectorRegistry()
    server = _health_server(config, registry)
    tasks: set[asyncio.Task[None]] = set()

    def on_connected(connected: bool) -> None:  # noqa: FBT001  # the one thing that is told
        task = asyncio.create_task(server.set_serving(serving=connected))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await server.set_serving(serving=False)

    launcher = await asyncio.to_thread(_launcher, config, offered)
    scratch = _scratch(config)
    able = Abilities(launcher.environment(scratch), scratch)

    async def work() -> None:
        missing = await able.find()
        agent = Agent(
            joining,
            await joining.begin(),
            _hello(config, offered, missing),
            NodeEnvironment(
                config.objects, config.address, offered.kind, config.state / accepted.FILE
            ),
            launcher,
            commands,
            metrics=NodeMetrics(registry),
            on_connected=on_connected,
        )
        registry.register(ReplicaMetrics(agent.works.replicas))
        checking = asyncio.create_task(_check(agent, able, missing))
        try:
            await agent.run()
        finally:
            checking.cancel()
            await asyncio.gather(checking, return_exceptions=True)

    working = asyncio.create_task(work())
    serving = asyncio.create_task(server.run())
    done, _ = await asyncio.wait({working, serving}, return_when=asyncio.FIRST_COMPLETED)
    server.request_stop()
    working.cancel()
    await asyncio.gather(working, serving, return_exceptions=True)
    for task in done:
        task.result()


def _health_server(config: NodeConfig, registry: CollectorRegistry) -> Server:
    server = Server(metrics_address=config.metrics, registry=registry)
    server.bind(
        Listener(
            config.health,
            "health",
            # Plain text that the kernel keeps on this machine: health says nothing but its state.
            grpc.local_server_credentials(grpc.LocalConnectionType.LOCAL_TCP),
            interceptors=(),
            services=(),
            rules={},
        )
    )
    return server


async def _check(agent: Agent, able: Abilities, missing: Mapping[str, str] | None) -> None:
    """Import what work needs, which takes seconds, and say what cannot be imported."""
    if missing is None:
        return
    broken = await able.check([module for module in MODULES if module not in missing])
    agent.announce(capabilities({**missing, **broken}))


def _offer(config: NodeConfig) -> Offer:
    return devices.offer(
        config.devices,
        gpus=0 if config.devices.kind == devices.CPU else devices.count_gpus(),
        cores=devices.count_cores(),
        memory_bytes=devices.total_memory(),
    )


def _hello(config: NodeConfig, offered: Offer, missing: Mapping[str, str] | None) -> rpc.Hello:
    return rpc.Hello(
        devices=offered.devices,
        device_kind=offered.kind,
        memory_bytes=offered.memory_bytes,
        address=config.address,
        agent_version=importlib.metadata.version("appliance"),
        capabilities=None if missing is None else capabilities(missing),
        sends_logs=True,
    )


def _scratch(config: NodeConfig) -> Path:
    return config.scratch or config.state / "scratch"


def _launcher(config: NodeConfig, offered: Offer) -> Launcher:
    return Launcher(
        Folders(config.state / "runs", _scratch(config)),
        {"OMP_NUM_THREADS": str(offered.threads), "HF_HUB_OFFLINE": "1"},
        log_bytes=config.log_bytes,
        cgroup=config.cgroup,
    )
