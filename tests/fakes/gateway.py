"""A whole gateway on loopback between a fake control plane and fake workers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from appliance.client.inference import AsyncInference
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import make_csr, new_private_key
from appliance.gateway.config import GatewayConfig, GatewayLimits, GatewayListen, RoutingSettings
from appliance.gateway.identity import begin
from appliance.gateway.main import Gateway
from tests.fakes.routing import Control
from tests.fakes.wire import CLUSTER, authority
from tests.fakes.worker import Worker

QUICK = RoutingSettings(
    wait_seconds=1.0,
    settle_seconds=0.3,
    silent_seconds=0.4,
    stall_seconds=0.5,
    first_token_seconds=5.0,
    between_tokens_seconds=5.0,
    retry_share=1.0,
)


def configuration(folder: Path, control: int, **changes: Any) -> GatewayConfig:
    key = new_private_key()
    certificate = authority().issue(
        make_csr(key),
        Principal(PrincipalKind.GATEWAY, "gateway-1"),
        server=True,
        client=True,
        dns=["localhost"],
        ips=["127.0.0.1"],
        lifetime=timedelta(days=397),
    )
    for name, data in (
        ("key.pem", key),
        ("cert.pem", certificate),
        ("ca.pem", authority().certificate_pem),
    ):
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    made = GatewayConfig(
        cluster_id=CLUSTER,
        control=f"127.0.0.1:{control}",
        key=folder / "key.pem",
        certificate=folder / "cert.pem",
        ca=folder / "ca.pem",
        listen=GatewayListen("127.0.0.1:0", "127.0.0.1:0"),
        metrics="127.0.0.1:0",
        limits=GatewayLimits(),
        routing=QUICK,
    )
    return dataclasses.replace(made, **changes)


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something holds."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError
        await asyncio.sleep(0.005)


@dataclass
class Stage:
    """Everything of one test."""

    control: Control
    workers: list[Worker]
    config: GatewayConfig
    gateway: Gateway
    token: str
    folder: Path
    stop: asyncio.Event
    task: asyncio.Task[None]

    def client(self, token: str | None = None) -> AsyncInference:
        address = f"127.0.0.1:{self.gateway.grpc_port}"
        return AsyncInference(address, authority().certificate_pem, token or self.token)

    @property
    def openai(self) -> str:
        return f"https://127.0.0.1:{self.gateway.http.port}/v1"

    async def ready_again(self, worker: Worker) -> None:
        """Wait until a replica whose stream broke is connected again."""
        await until(
            lambda: any(
                link.connected and link.place.id == worker.id for link in self.gateway.fleet.links
            )
        )

    async def ready(self, count: int) -> None:
        await until(lambda: sum(link.ready for link in self.gateway.fleet.links) == count)


@contextlib.asynccontextmanager
async def stage(folder: Path, *workers: Worker, **changes: Any) -> AsyncIterator[Stage]:
    control = Control()
    await control.start()
    for worker in workers:
        await worker.start()
    token = control.issue()
    control.serve(*workers)
    control.publish()
    config = configuration(folder, control.port, **changes)
    gateway = Gateway(config, *await begin(config))
    stop = asyncio.Event()
    task = asyncio.create_task(gateway.run(stop))
    made = Stage(control, list(workers), config, gateway, token, folder, stop, task)
    try:
        await until(lambda: gateway.view.decides)
        await made.ready(len(workers))
        yield made
    finally:
        stop.set()
        await task
        for worker in workers:
            await worker.stop()
        await control.stop()
