"""The agent's streams to the control plane: heartbeats and reports go up, orders come down.

Rules kept here:
* the node dials out; nothing listens for orders;
* heartbeats and orders have a stream of their own, so they wait for no report, however long the
  control plane takes for one; reports go up four times a second, what jobs measured once a second,
  on a second stream that is there while the first one is heard; of each stream one task writes and
  one reads; lines that somebody reads have streams of their own (`log_reads`);
* a stream that is silent for `SILENCE_SECONDS` is given up; the next try waits a little longer each
  time, and a random part of that, so that not all nodes come at once;
* work goes on while the control plane is away;
* the certificate is renewed when it is a day old, and the stream opened again with the new one;
  with one that is refused, has ended, has not begun or is of another authority, the agent asks less
  and less often: it proves the old key, or joins anew when there is a join token. What runs goes on
  meanwhile.

Called by the composition root.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.agent.v1 import agent_service_pb2_grpc
from appliance.api.nodes.v1 import node_pb2
from appliance.core.addresses import free_ports
from appliance.core.errors import ApplianceError, Unavailable
from appliance.core.heartbeat import HEARTBEAT_SECONDS
from appliance.core.waiting import Backoff
from appliance.machine.identity import Identity
from appliance.machine.joining import MAX_PAUSE, Joining
from appliance.machine.keeping import Keeper
from appliance.node.documents import NodeEnvironment
from appliance.node.launcher import Launcher
from appliance.node.log_reads import LogReads
from appliance.node.metrics import NodeMetrics
from appliance.node.works import Commands, Works
from appliance.wire.status import from_rpc_error

REPORT_SECONDS = 0.25
NEWS_SECONDS = 1.0
SILENCE_SECONDS = 10.0
FIRST_BACKOFF = 0.2
MAX_BACKOFF = 5.0
PORTS_SECONDS = 2.0
FIRST_PORTS_SECONDS = 2.0
CALL_SECONDS = 20.0
CLOSE_SECONDS = 5.0

_END = cast("Any", grpc.aio).EOF
"""What reading a stream gives at its end; grpc-stubs do not know it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rhythm:
    """Times of the agent, in seconds; tests shorten them."""

    heartbeat: float = HEARTBEAT_SECONDS
    report: float = REPORT_SECONDS
    news: float = NEWS_SECONDS
    silence: float = SILENCE_SECONDS
    first_backoff: float = FIRST_BACKOFF
    longest_backoff: float = MAX_BACKOFF


class Agent:
    """One node's agent.

    Args:
        joining: gets a new identity when this one is refused; its store renews it.
        identity: who this node is.
        hello: what the node is; `running` is filled in here.
        place: what documents need to know of the node.
        launcher: starts processes.
        commands: what it starts.
        metrics: of the agent.
        on_connected: told whether the control plane is connected, each time that changes.
        clock: seconds, monotonic.
        rhythm: times.
    """

    def __init__(  # noqa: PLR0913  # the composition root hands everything over
        self,
        joining: Joining,
        identity: Identity,
        hello: rpc.Hello,
        place: NodeEnvironment,
        launcher: Launcher,
        commands: Commands,
        *,
        metrics: NodeMetrics,
        on_connected: Callable[[bool], Any] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        rhythm: Rhythm | None = None,
    ) -> None:
        self._again = asyncio.Event()
        self._keeper = Keeper(joining, identity, self._again.set)
        self._store = joining.store
        self._hello = hello
        self._metrics = metrics
        self._on_connected = on_connected
        self._clock = clock
        self._rhythm = rhythm or Rhythm()
        self._channel: grpc.aio.Channel | None = None
        self._sequence = 0
        self._free_ports: list[int] = []
        self._heard = asyncio.Event()
        self.works = Works(
            launcher,
            commands,
            place,
            self.release,
            lambda: self.identity,
            metrics,
            self._rhythm.news,
            clock,
        )
        self._log_reads = LogReads(launcher.runs, self.works.holds)

    @property
    def identity(self) -> Identity:
        """Who this node is now."""
        return self._keeper.identity

    def announce(self, capabilities: Sequence[node_pb2.Capability]) -> None:
        """Say what this node can run: in the next hello, which comes now if it is news."""
        if list(self._hello.capabilities) != list(capabilities):
            del self._hello.capabilities[:]
            self._hello.capabilities.extend(capabilities)
            self._again.set()

    async def run(self) -> None:
        """Serve the control plane until cancelled; then all work is ended."""
        try:
            # Known in the first hello, unless a name is long looked up.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._find_ports(), FIRST_PORTS_SECONDS)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._stay_connected())
                tasks.create_task(self._keeper.run())
                tasks.create_task(self._keep_ports())
        finally:
            await self.works.close(CLOSE_SECONDS)

    async def release(self, request: rpc.ReleaseKeysRequest) -> rpc.ReleaseKeysResponse:
        """Ask for keys over the connection of the stream.

        Raises what the control plane says, and Unavailable when the connection ends meanwhile.
        """
        if self._channel is None:
            raise Unavailable("the control plane is not connected")
        stub = agent_service_pb2_grpc.AgentServiceStub(self._channel)
        try:
            answer: rpc.ReleaseKeysResponse = await stub.ReleaseKeys(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except grpc.aio.UsageError as error:
            raise Unavailable("the connection is being closed") from error
        except asyncio.CancelledError as error:
            # A channel that is closed cancels its calls: that must not look like a start that was
            # called off.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise Unavailable("the connection was closed") from error
        return answer

    async def _stay_connected(self) -> None:
        backoff = Backoff(self._rhythm.first_backoff, self._rhythm.longest_backoff)
        while True:
            self._heard.clear()
            self._again.clear()
            refused = await self._connect()
            joined = await self._keeper.try_again(refused) if refused else False
            if self._heard.is_set() or joined:
                backoff.reset()
            pause = backoff.failed(MAX_PAUSE if refused else None)
            await self._keeper.joining.wait(pause)

    async def _connect(self) -> str:
        """One stream, to its end; why the control plane refuses this identity, if that ended it."""
        try:
            async with self._store.machines(self.identity) as connection:
                await self._one_stream(connection)
        except ApplianceError as error:
            if refused := self._keeper.why_refused(error):
                return refused
            logger.warning("the control plane is not connected: %s", error)
        finally:
            self._set_channel(None)
        return ""

    async def _one_stream(self, connection: grpc.aio.Channel) -> None:
        """One stream from hello to its end, with that of reports. Raises what ended it."""
        stub = agent_service_pb2_grpc.AgentServiceStub(connection)
        call = stub.Connect()
        self._sequence = 0
        tasks: list[asyncio.Task[None]] = []
        try:
            hello = rpc.Hello()
            hello.CopyFrom(self._hello)
            hello.running.extend(self.works.running())
            hello.free_ports.extend(self._free_ports)
            await _write(call, rpc.ConnectRequest(hello=hello))
            self._set_channel(connection)
            self._metrics.connections.inc()
            tasks = [
                asyncio.create_task(self._read_all(call)),
                asyncio.create_task(self._beat(call)),
                asyncio.create_task(self._keep_reporting(stub)),
                asyncio.create_task(self._wait_again()),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    _result(task)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._log_reads.close()
            call.cancel()

    async def _wait_again(self) -> None:
        await self._again.wait()

    async def _beat(self, call: Any) -> None:  # noqa: ANN401  # gRPC's stream has no type
        # A refused stream ends at once, and a message that is on its way then hides why: gRPC puts
        # the failure of the message in the place of the status.
        await asyncio.sleep(self._rhythm.report)
        while True:
            self._sequence += 1
            beat = rpc.AgentHeartbeat(
                running=self.works.running(), sequence=self._sequence, free_ports=self._free_ports
            )
            await _write(call, rpc.ConnectRequest(heartbeat=beat))
            await asyncio.sleep(self._rhythm.heartbeat)

    async def _keep_reporting(self, stub: agent_service_pb2_grpc.AgentServiceStub) -> None:
        """Streams of reports, one after the other, once the control plane knows this node."""
        await self._heard.wait()
        backoff = Backoff(self._rhythm.first_backoff, self._rhythm.longest_backoff)
        while True:
            began = self._clock()
            try:
                await self._report(stub)
            except ApplianceError as error:
                logger.warning("reports do not reach the control plane: %s", error)
            if self._clock() - began > self._rhythm.silence:
                backoff.reset()
            await asyncio.sleep(backoff.failed())

    async def _report(self, stub: agent_service_pb2_grpc.AgentServiceStub) -> None:
        """One stream of reports, to its end. Raises what ended it."""
        call: Any = stub.Report()
        reading = asyncio.create_task(self._read_heard(call))
        try:
            said = self.works.begin()
            while not reading.done():
                for report in said:
                    if not await _written(call, report):
                        break
                await asyncio.wait({reading}, timeout=self._rhythm.report)
                said = self.works.drain()
            _result(reading)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            call.cancel()

    async def _read_heard(self, call: Any) -> None:  # noqa: ANN401  # gRPC's stream has no type
        while (answer := await call.read()) is not _END:
            self.works.outbox.acknowledge(answer.number)
        raise Unavailable("it ended the stream")

    async def _read_all(self, call: Any) -> None:  # noqa: ANN401  # gRPC's stream has no type
        while True:
            try:
                async with asyncio.timeout(self._rhythm.silence):
                    order = await call.read()
            except TimeoutError as error:
                raise Unavailable("it has been silent for too long") from error
            if order is _END:
                raise Unavailable("it ended the stream")
            if not self._heard.is_set():
                self._heard.set()
                self._on_connected(True)
                self._metrics.connected.set(1)
                logger.info("connected to %s", self._store.control.machines)
            if order.HasField("read_log") and self._channel is not None:
                stub = agent_service_pb2_grpc.AgentServiceStub(self._channel)
                self._log_reads.begin(stub, order.read_log)
            else:
                self.works.carry_out(order)

    async def _keep_ports(self) -> None:
        """Know on which ports nobody listens."""
        while True:
            await asyncio.sleep(PORTS_SECONDS)
            await self._find_ports()

    async def _find_ports(self) -> None:
        # In a thread, because names are looked up.
        self._free_ports = await asyncio.to_thread(free_ports, self._hello.address)

    def _set_channel(self, channel: grpc.aio.Channel | None) -> None:
        self._channel = channel
        if channel is None and self._heard.is_set():
            self._on_connected(False)
            self._metrics.connected.set(0)


async def _write(call: Any, message: rpc.ConnectRequest) -> None:  # noqa: ANN401  # gRPC's stream has no type
    if not await _written(call, message):
        # Reading raises what ended it.
        await call.read()
        raise Unavailable("the stream is over")


def _result(task: asyncio.Task[None]) -> None:
    """Raise what ended a task; gRPC cancels who waits for a call of a connection that is over."""
    if task.cancelled():
        raise Unavailable("the connection is over")
    task.result()


async def _written(call: Any, message: Message) -> bool:  # noqa: ANN401  # gRPC's stream has no type
    """Write into a stream; False when it is over."""
    with contextlib.suppress(asyncio.InvalidStateError):
        await call.write(message)
        return True
    return False
