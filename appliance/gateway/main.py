"""The composition root of the gateway: configuration in, both fronts out."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
import uvloop
from prometheus_client import CollectorRegistry

from appliance.api.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from appliance.core import log
from appliance.core.config import load
from appliance.core.errors import ApplianceError, FailedPrecondition
from appliance.core.process import give_back_memory, harden, settle_memory
from appliance.crypto.reading import (
    not_after,
)
from appliance.gateway.config import GatewayConfig, GatewayLimits
from appliance.gateway.fleet import ReplicaLinks
from appliance.gateway.front import Front
from appliance.gateway.http import ConnectionLimits, HttpFront
from appliance.gateway.identity import begin
from appliance.gateway.metrics import GatewayMetrics, ReplicaStates
from appliance.gateway.models import ServedModels
from appliance.gateway.openai import OpenAi
from appliance.gateway.pipeline import InferencePipeline, PipelineParts
from appliance.gateway.questions import Questions
from appliance.gateway.router import Router
from appliance.gateway.service import GatewayDoor, InferenceService, admission_of
from appliance.gateway.snapshot import ReplicaAddress, RoutingSnapshot
from appliance.gateway.spool import END_BYTES, FILE_BYTES, Spool
from appliance.gateway.tokenize import Desk
from appliance.gateway.usage import UsageReports
from appliance.gateway.view import ControlClient, View
from appliance.machine.keeping import Keeper
from appliance.wire.admission import Refusals
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import rules_of
from appliance.wire.server import Listener, Server, Service
from appliance.wire.tls import channel, swapped_server_credentials

GRACE_SECONDS = 20.0
"""Time that running answers have when the gateway stops."""
FLUSH_SECONDS = 5.0
LOOK_SECONDS = 0.5
VIEW = "appliance.view"
"""What health calls the view: it serves while the control plane is heard."""
CROWD, CROWD_SECONDS = 100, 5.0
"""Connections that ended in so long, after which memory is given back."""
MAX_STREAMS = 1024
"""Calls of one connection: an application may bring the calls of many people."""
_MESSAGE_HEAD = 4096
"""Bytes of a gRPC message beside the caller's text."""

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Run the gateway until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(prog="appliance.gateway", description="The gateway.")
    parser.add_argument("--config", required=True, type=Path, help="its gateway.toml")
    options = parser.parse_args(arguments)
    log.configure("gateway")
    try:
        harden()
        settle_memory()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(load(GatewayConfig, options.config)))
    except ApplianceError as error:
        logger.error("%s", error)  # noqa: TRY400 - a sentence for a person
        return 1
    return 0


async def serve(config: GatewayConfig, *, started: asyncio.Event | None = None) -> None:
    """Begin, serve until SIGTERM or SIGINT, then let running answers end.

    Raises:
        FailedPrecondition: a port is in use or a file is missing.
        InvalidInput: an address or a value of the configuration is wrong.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    beginning, stopped = asyncio.create_task(begin(config)), asyncio.create_task(stop.wait())
    await asyncio.wait({beginning, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not beginning.done():
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        return
    await Gateway(config, *beginning.result()).run(stop, started)


class Gateway:
    """All parts of one gateway, put together; build it inside the running loop.

    Args:
        config: as read.
        keeper: of its identity.
        front: what its callers see.
    """

    def __init__(self, config: GatewayConfig, keeper: Keeper, front: Front) -> None:
        self.keeper = keeper
        self.front = front
        keeper.changed = self._renewed
        self._stale_seconds = config.stale_view_seconds
        registry = CollectorRegistry()
        self._metrics = GatewayMetrics(registry)
        self.view = View(config.stale_view_seconds)
        self._control = ControlClient(
            lambda: keeper.store.machines(keeper.identity), self.view, keeper.recover_from
        )
        self.fleet = ReplicaLinks(self._connect, config.routing)
        registry.register(
            ReplicaStates(lambda: [link for link in self.fleet.links if not link.retired])
        )
        self._desk = Desk.new()
        self._models = ServedModels(
            self._control.tokenizer, self._desk, config.routing.wait_seconds
        )
        self.refusals = Refusals()
        # Room for the ends of all calls that may be in work, many times over.
        spool = _spool(
            config.state_folder / "spool", max(FILE_BYTES, 4 * END_BYTES * config.limits.calls)
        )
        self._usage = UsageReports(self._control.report, self.refusals, spool)
        router = Router(self.fleet, config.routing, moved=self._metrics.moved)
        self._places = router.places
        self.pipeline = InferencePipeline(
            PipelineParts(
                self.view,
                Questions(self.view, self._models, self.fleet),
                router,
                self._usage,
                self._metrics,
                config.limits,
                self.refusals,
            )
        )
        self._server = Server(
            metrics_address=config.metrics, registry=registry, grace=GRACE_SECONDS
        )
        self.grpc_port = self._server.bind(self._listener(config, CallMetrics(registry)))
        self.http = HttpFront(
            OpenAi(self.pipeline, config.limits),
            config.listen.openai,
            lambda: front.context,
            admission=_admission(config.limits),
            refused=self._connection_refused,
            grace=GRACE_SECONDS,
        )

    def _connection_refused(self, source: str, reason: str) -> None:
        """Count a connection of the HTTPS front that came to nothing."""
        self.refusals.count(source, reason, "connection")
        self._metrics.connections_refused.labels(reason).inc()

    def _connect(self, place: ReplicaAddress) -> grpc.aio.Channel:
        mine = self.keeper.identity
        return channel(
            place.address,
            mine.ca_pem,
            mine.key_pem,
            mine.certificate_pem,
            server_name=place.server_name,
        )

    def _renewed(self) -> None:
        """Show the new identity to everybody who is called."""
        self._control.reopen()
        self.fleet.renew()
        self.front.renew_soon()

    def _listener(self, config: GatewayConfig, calls: CallMetrics) -> Listener:
        rules = rules_of(inference_service_pb2.DESCRIPTOR.services_by_name.values())
        return Listener(
            config.listen.grpc,
            "listen.grpc",
            swapped_server_credentials(
                lambda: self.front.pair, self.keeper.identity.ca_pem, require_client=False
            ),
            [GatewayDoor(rules, self.pipeline, calls, admission_of(config))],
            [
                Service(
                    InferenceService(self.pipeline),
                    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server,
                )
            ],
            rules,
            (
                ("grpc.max_receive_message_length", config.limits.body_bytes + _MESSAGE_HEAD),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
            ),
        )

    async def run(self, stop: asyncio.Event, started: asyncio.Event | None = None) -> None:
        """Serve until `stop` is set, then drain. Raises what ended a part of it."""
        parts: list[Coroutine[None, None, None]] = [
            self._control.watch(self._changed),
            self.fleet.run(),
            self._say_health(),
            self.keeper.run(),
            self.front.run(),
            self._return_memory(),
        ]
        await self._server.set_serving(serving=False)
        await self._server.start()
        self.http.start()
        tasks = {asyncio.create_task(part) for part in parts}
        reporting = asyncio.create_task(self._usage.run())
        stopped = asyncio.create_task(stop.wait())
        if started is not None:
            started.set()
        try:
            await asyncio.wait(
                {stopped, reporting, self.http.task, *tasks},
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            await self._drain()
            self._usage.stop()
            await asyncio.wait({reporting}, timeout=FLUSH_SECONDS)
            if len(self._usage):
                logger.warning(
                    "%d calls could not be reported: the next start does it", len(self._usage)
                )
            for task in (*tasks, reporting, stopped):
                task.cancel()
            ended = await asyncio.gather(*tasks, reporting, return_exceptions=True)
            self._usage.close()
            self._desk.close()
            await self.fleet.close()
            await self._control.close()
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def _drain(self) -> None:
        """Refuse what is new, let what runs end."""
        self.pipeline.draining = True
        await asyncio.gather(self._server.stop(), self.http.stop())

    def _changed(self, snapshot: RoutingSnapshot) -> None:
        self.fleet.apply(snapshot)
        self._models.apply(snapshot)

    def _say_view(self, *, decides: bool, stale: bool) -> None:
        if stale:
            logger.warning(
                "the control plane has not been heard for %.0f s: calls are decided by what it said"
                " last, until that is %.0f s old",
                self.view.age,
                self._stale_seconds,
            )
        elif decides:
            logger.info("the control plane is heard: calls are decided by what it says")
        else:
            logger.error("the last word of the control plane is too old: new calls are refused")

    async def _return_memory(self) -> None:
        """Give back what a crowd of connections took, when it has gone."""
        seen = 0
        while True:
            ended = self.http.connections.ended
            if ended - seen >= CROWD:
                seen = ended
                give_back_memory()
            await asyncio.sleep(CROWD_SECONDS)

    async def _say_health(self) -> None:
        """Say whether calls can be decided, and by what; keep the gauges that nobody else sets."""
        was = (False, False)
        while True:
            decides, stale = now = self.view.decides, self.view.stale
            if now != was:
                await self._server.set_serving(serving=decides)
                await self._server.set_serving(VIEW, serving=decides and not stale)
                self._say_view(decides=decides, stale=stale)
                was = now
            self._metrics.view_stale.set(stale)
            self._metrics.view_age.set(self.view.age)
            self._metrics.waiting.set(self._places.waiting)
            self._metrics.usage_waiting.set(len(self._usage))
            self._metrics.connections.set(len(self.http.connections))
            self._tell_ends(datetime.now(UTC))
            await asyncio.sleep(LOOK_SECONDS)

    def _tell_ends(self, now: datetime) -> None:
        identity = self.keeper.identity.certificate_pem
        for what, end in (("identity", not_after(identity)), ("front", self.front.end)):
            self._metrics.expiry.labels(what).set((end - now).total_seconds())


def _admission(limits: GatewayLimits) -> ConnectionLimits:
    return ConnectionLimits(
        connections=limits.connections,
        connections_per_source=limits.connections_per_source,
        per_second=limits.connections_per_second,
        burst=limits.connection_burst,
        send_seconds=limits.send_seconds,
    )


def _spool(folder: Path, file_bytes: int) -> Spool:
    """What is left of calls. Raises FailedPrecondition when the folder cannot be used."""
    try:
        return Spool(folder, file_bytes=file_bytes)
    except OSError as error:
        raise FailedPrecondition(
            f"{folder} cannot be used ({error.strerror}): make room, or repair the disk",
            path=folder,
        ) from error
