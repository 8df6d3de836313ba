"""The server of a process: its listeners, health, metrics, and a stop that lets calls end.

Rules kept here:
* the server does not start when a service has a method without a rule: what was registered is
  compared with the rules;
* a taken port, a missing right or a wrong address is one sentence that names the setting;
* metrics listen on loopback only;
* connections are bounded by the files this process may open; calls are bounded by the door, health
  by itself;
* one event loop serves everything; on SIGTERM or SIGINT health says NOT_SERVING, new calls are
  refused and running ones have `grace` seconds to end.

Called by the composition root of every process that serves gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from wsgiref.simple_server import WSGIServer

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, start_http_server

from appliance.core.addresses import check_free, split_address
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.wire.health import Health
from appliance.wire.metrics import ProcessState
from appliance.wire.rules import AccessRule, RuleMissing
from appliance.wire.tls import SERVER_OPTIONS

GRACE_SECONDS = 10.0
MAX_CONNECTIONS = 4096
"""Open connections of a listener; fewer where the process may open fewer files."""


@dataclass(frozen=True)
class Service:
    """One gRPC service: what implements it and the generated function that registers it."""

    servicer: object
    register: Callable[[Any, Any], None]


@dataclass(frozen=True)
class Listener:
    """One address with its credentials, its doors and its services.

    Attributes:
        address: `host:port`; port 0 takes a free one.
        setting: key of the configuration that holds the address, for the error's sentence.
        credentials: from `appliance.wire.tls.server_credentials`.
        interceptors: run in this order; the last one is the door.
        services: what is served here, beside health.
        rules: a rule for every method of the services.
        options: gRPC options that replace those of `SERVER_OPTIONS` here.
    """

    address: str
    setting: str
    credentials: grpc.ServerCredentials
    interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]]
    services: Sequence[Service]
    rules: Mapping[str, AccessRule]
    options: Sequence[tuple[str, int]] = ()


class Server:
    """The gRPC server of one process; build it inside the running event loop.

    Args:
        metrics_address: loopback address of `/metrics`, or None for none.
        metrics_setting: key of the configuration that holds it.
        registry: what `/metrics` shows.
        grace: seconds that running calls have when the server stops.
    """

    def __init__(
        self,
        *,
        metrics_address: str | None = None,
        metrics_setting: str = "metrics",
        registry: CollectorRegistry | None = None,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._servers: list[grpc.aio.Server] = []
        self._health: list[Health] = []
        self._metrics_address = metrics_address
        self._metrics_setting = metrics_setting
        self._registry = registry or CollectorRegistry()
        self._metrics: tuple[WSGIServer, threading.Thread] | None = None
        self._grace = grace
        self._stopping = asyncio.Event()
        self.metrics_port = 0

    def bind(self, listener: Listener) -> int:
        """Add a listener and take its port; returns the port.

        Raises:
            RuleMissing: a service has a method without a rule.
            FailedPrecondition: the port is in use or the address is not of this machine.
            InvalidInput: the address is not `host:port`.
        """
        check_free(listener.address, listener.setting)
        replaced = {key for key, _ in listener.options}
        defaults = [*SERVER_OPTIONS, ("grpc.max_allowed_incoming_connections", _connections())]
        options = [option for option in defaults if option[0] not in replaced]
        # No limit of calls here: gRPC's is one for all, before anybody is known, so that whoever
        # holds calls would shut out everybody else. The door has shares by source and by caller.
        server = grpc.aio.server(
            interceptors=list(listener.interceptors), options=[*options, *listener.options]
        )
        health = Health(_register(server, listener))
        health.register(server)
        self._health.append(health)
        try:
            port = server.add_secure_port(listener.address, listener.credentials)
        except RuntimeError as error:
            raise FailedPrecondition(
                f"cannot listen on {listener.address}: set {listener.setting} to another address"
            ) from error
        self._servers.append(server)
        return port

    async def start(self) -> None:
        """Start to serve on all listeners and to show metrics."""
        self._start_metrics()
        for server in self._servers:
            await server.start()

    async def set_serving(self, service: str = "", *, serving: bool) -> None:
        """Say in health whether a service (none named: every one) can do its work."""
        for health in self._health:
            health.set(service, serving=serving)

    async def run(self) -> None:
        """Start, serve until SIGTERM, SIGINT or `request_stop`, then stop gracefully."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._stopping.set)
        try:
            await self.start()
            await self._stopping.wait()
        finally:
            await self.stop()
            for number in numbers:
                loop.remove_signal_handler(number)

    def request_stop(self) -> None:
        """Let `run` return."""
        self._stopping.set()

    async def stop(self) -> None:
        """Say NOT_SERVING, refuse new calls, let running ones end within the grace, close all."""
        for health in self._health:
            health.end()
        await asyncio.gather(*(server.stop(self._grace) for server in self._servers))
        if self._metrics is not None:
            httpd, thread = self._metrics
            self._metrics = None
            await asyncio.to_thread(httpd.shutdown)
            await asyncio.to_thread(thread.join)
            httpd.server_close()

    def _start_metrics(self) -> None:
        if self._metrics_address is None:
            return
        host, port = split_address(self._metrics_address, self._metrics_setting)
        if not _is_loopback(host):
            raise InvalidInput(
                f"{self._metrics_setting}: metrics are shown on loopback only, "
                f"such as 127.0.0.1:{port}"
            )
        check_free(self._metrics_address, self._metrics_setting)
        self._registry.register(ProcessState(asyncio.get_running_loop()))
        httpd, thread = start_http_server(port, addr=host, registry=self._registry)
        self._metrics = (httpd, thread)
        self.metrics_port = httpd.server_port


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


class _Recorder:
    """Stands between the generated registration and the server; notes what is registered."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.methods: set[str] = set()

    def add_generic_rpc_handlers(
        self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]
    ) -> None:
        self._server.add_generic_rpc_handlers(tuple(handlers))

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        self.methods |= {f"/{service}/{method}" for method in handlers}
        # grpc-stubs is older than this method, which all generated code calls.
        cast("Any", self._server).add_registered_method_handlers(service, handlers)


def _connections() -> int:
    """Open connections of a listener: half of the files this process may open, if that is less."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)


def _register(server: grpc.aio.Server, listener: Listener) -> list[str]:
    """Register what a listener serves; the full names of its services. Raises RuleMissing."""
    recorder = _Recorder(server)
    for service in listener.services:
        service.register(service.servicer, recorder)
    missing = sorted(recorder.methods - set(listener.rules))
    if missing:
        raise RuleMissing(
            f"the server does not start, because there is no access rule for {', '.join(missing)}"
        )
    return sorted({method.split("/")[1] for method in recorder.methods})
