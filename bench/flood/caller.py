"""The well-behaved caller: so many calls a second, each timed from when it was due.

An open loop: a call that is late does not make the next one later, so that a server which stops
for a second is seen by all the calls of that second. Each tenth call comes over a new connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from appliance.core.identity import PrincipalKind
from appliance.wire.tls import channel
from bench.flood.stage import Stage

PACE = 30.0
"""Calls a second."""
FRESH = 10
"""Each so manieth call comes over a new connection."""
MAX_SECONDS = 5.0
"""Time after which a call counts as lost."""


class Caller:
    """Calls one listener."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    @abstractmethod
    async def call(self, *, fresh: bool) -> None:
        """One call. Raises when it does not succeed."""

    async def close(self) -> None:
        """Let go of the connections."""

    async def measure(self, seconds: float) -> list[float]:
        """Seconds that each call took, for so long; a lost one counts as the longest."""
        start, tasks, number = time.perf_counter(), [], 0
        while (due := start + number / PACE) < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._timed(due, fresh=number % FRESH == FRESH - 1)))
            number += 1
        return list(await asyncio.gather(*tasks))

    async def _timed(self, due: float, *, fresh: bool) -> float:
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await self.call(fresh=fresh)
        except (OSError, TimeoutError, ValueError, EOFError) as error:
            self.lost.append(f"{type(error).__name__}: {error}"[:120])
            return MAX_SECONDS
        except grpc.aio.AioRpcError as error:
            self.lost.append(f"{error.code().name}: {error.details()}"[:120])
            return MAX_SECONDS
        return time.perf_counter() - due


class ControlCaller(Caller):
    """Asks the control plane who it is."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage
        self._channel = self._open()

    def _open(self) -> grpc.aio.Channel:
        address = f"127.0.0.1:{self._stage.ports['api']}"
        return channel(address, self._stage.ca, server_name=PrincipalKind.CONTROL.server_name)

    async def call(self, *, fresh: bool) -> None:
        """`WhoAmI`."""
        used = self._open() if fresh else self._channel
        try:
            await auth_service_pb2_grpc.AuthServiceStub(used).WhoAmI(
                auth_service_pb2.WhoAmIRequest(),
                metadata=(("authorization", f"Bearer {self._stage.session}"),),
            )
        finally:
            if fresh:
                await used.close(None)

    async def close(self) -> None:
        """Close the one that stays."""
        await self._channel.close(None)


class OpenAiCaller(Caller):
    """Asks the gateway which models it may ask."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage
        self._trust = ssl.create_default_context(cadata=stage.ca.decode())
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call(self, *, fresh: bool) -> None:
        """`GET /v1/models`."""
        async with self._connection(fresh=fresh) as (reader, writer):
            writer.write(
                b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer "
                + self._stage.token.encode()
                + b"\r\n\r\n"
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
            await reader.readexactly(length)
            if not head.startswith("http/1.1 200"):
                raise ValueError(head.partition("\r\n")[0])

    async def close(self) -> None:
        """Close what is open."""
        for _, writer in self._free:
            writer.transport.abort()
        self._free.clear()

    @contextlib.asynccontextmanager
    async def _connection(
        self, *, fresh: bool
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        found = None if fresh or not self._free else self._free.pop()
        reader, writer = found or await asyncio.open_connection(
            "127.0.0.1", self._stage.ports["openai"], ssl=self._trust
        )
        try:
            yield reader, writer
        except BaseException:
            writer.transport.abort()
            raise
        if fresh:
            writer.transport.abort()
        else:
            self._free.append((reader, writer))


class GatewayCaller(OpenAiCaller):
    """Asks the gateway for its models, and each second time for its health over gRPC.

    No call of that front is both cheap and answered without an engine.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._channel = self._open()
        self._turn = 0

    def _open(self) -> grpc.aio.Channel:
        address = f"127.0.0.1:{self._stage.ports['gateway']}"
        return channel(address, self._stage.ca, server_name=PrincipalKind.GATEWAY.server_name)

    async def call(self, *, fresh: bool) -> None:
        """One or the other."""
        self._turn += 1
        if self._turn % 2:
            await super().call(fresh=fresh)
            return
        used = self._open() if fresh else self._channel
        try:
            await health_pb2_grpc.HealthStub(used).Check(health_pb2.HealthCheckRequest())
        finally:
            if fresh:
                await used.close(None)

    async def close(self) -> None:
        """Close both."""
        await super().close()
        await self._channel.close(None)


def caller_of(stage: Stage, listener: str) -> Caller:
    """Who calls a listener."""
    kinds: dict[str, Callable[[Stage], Caller]] = {
        "control": ControlCaller,
        "gateway": GatewayCaller,
        "openai": OpenAiCaller,
    }
    return kinds[listener](stage)
