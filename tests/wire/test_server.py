"""The server: ports, health, limits, metrics, and an end that lets calls finish."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
import urllib.request
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, Counter

from appliance.api.inference.v1 import worker_service_pb2, worker_service_pb2_grpc
from appliance.core.addresses import host_port
from appliance.core.errors import Exhausted, FailedPrecondition, InvalidInput
from appliance.core.identity import PrincipalKind
from appliance.wire.health import WATCHES_PER_SOURCE
from appliance.wire.machine_door import MachineDoor
from appliance.wire.rules import RuleMissing, rules_of
from appliance.wire.server import Listener, Server, Service
from appliance.wire.status import from_rpc_error
from appliance.wire.tls import CHANNEL_OPTIONS, SERVER_OPTIONS
from tests.fakes.http2 import ENHANCE_YOUR_CALM, Raw
from tests.fakes.wire import CLUSTER, connect, failure, issued, server_credentials, serving

RULES = rules_of([worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]])
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ATTACH = "/appliance.api.inference.v1.WorkerService/Attach"


class Worker(worker_service_pb2_grpc.WorkerServiceServicer):
    """Answers the first message at once and ends when it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def Attach(
        self, request_iterator: AsyncIterator[worker_service_pb2.AttachRequest], context: object
    ) -> AsyncIterator[worker_service_pb2.AttachResponse]:
        yield worker_service_pb2.AttachResponse()
        await self.go.wait()
        yield worker_service_pb2.AttachResponse()


def listener(address: str = "127.0.0.1:0", worker: Worker | None = None) -> Listener:
    return Listener(
        address,
        "listen.machines",
        server_credentials(),
        [MachineDoor(RULES, CLUSTER, {PrincipalKind.GATEWAY})],
        [Service(worker or Worker(), worker_service_pb2_grpc.add_WorkerServiceServicer_to_server)],
        RULES,
    )


def gateway(port: int) -> grpc.aio.Channel:
    return connect(port, issued(PrincipalKind.GATEWAY, "g1"))


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    status: int = answer.status
    return status


async def test_health_follows_what_the_process_says() -> None:
    async with (
        serving([], [], {}, require_client=False) as running,
        connect(running.port) as channel,
    ):
        assert await health(channel) == SERVING
        await running.server.set_serving(serving=False)
        assert await health(channel) == NOT_SERVING
        await running.server.set_serving("engine", serving=True)
        assert await health(channel, "engine") == SERVING
        error = await failure(lambda: health(channel, "unknown"))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_two_listeners_with_different_doors() -> None:
    server = Server()
    machines = server.bind(listener())
    people = server.bind(
        Listener("127.0.0.1:0", "listen.api", server_credentials(require_client=False), [], [], {})
    )
    await server.start()
    try:
        async with connect(people) as channel:
            assert await health(channel) == SERVING
        async with connect(machines) as channel:
            error = await failure(lambda: health(channel))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        async with gateway(machines) as channel:
            assert await health(channel) == SERVING
    finally:
        await server.stop()


async def test_a_taken_port_is_named_with_its_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server()
        with pytest.raises(FailedPrecondition) as raised:
            server.bind(listener(f"127.0.0.1:{port}"))
    assert str(raised.value) == (
        f"port {port} is in use: stop what listens on 127.0.0.1:{port}, "
        "or set listen.machines to another port"
    )
    await server.stop()


async def test_two_servers_never_share_a_port() -> None:
    first, second = Server(), Server()
    port = first.bind(listener())
    await first.start()
    try:
        with pytest.raises(FailedPrecondition, match="is in use"):
            second.bind(listener(f"127.0.0.1:{port}"))
    finally:
        await first.stop()
        await second.stop()


async def test_an_address_of_another_machine() -> None:
    with pytest.raises(FailedPrecondition, match=r"cannot listen on 192\.0\.2\.1:7443 .*this mach"):
        Server().bind(listener("192.0.2.1:7443"))


@pytest.mark.attack
async def test_no_server_with_a_method_without_a_rule() -> None:
    unruly = Listener(
        "127.0.0.1:0",
        "listen",
        server_credentials(),
        [],
        [Service(Worker(), worker_service_pb2_grpc.add_WorkerServiceServicer_to_server)],
        {},
    )
    with pytest.raises(RuleMissing, match=ATTACH):
        Server().bind(unruly)


async def test_a_stop_lets_running_calls_end() -> None:
    worker = Worker()
    server = Server(grace=10.0)
    port = server.bind(listener(worker=worker))
    running = asyncio.create_task(server.run())
    async with gateway(port) as channel:
        await channel.channel_ready()
        stream = worker_service_pb2_grpc.WorkerServiceStub(channel).Attach(timeout=20)
        await stream.write(worker_service_pb2.AttachRequest())
        assert await stream.read() == worker_service_pb2.AttachResponse()
        os.kill(os.getpid(), signal.SIGTERM)
        async with gateway(port) as late, asyncio.timeout(10):
            await _until_refused(late)
        worker.go.set()
        assert await stream.read() == worker_service_pb2.AttachResponse()
        assert await stream.read() is grpc.aio.EOF
    async with asyncio.timeout(10):
        await running


async def _until_refused(channel: grpc.aio.Channel) -> None:
    """Ask again and again until the server no longer takes new calls."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await health(channel) == SERVING:
            pass


async def test_a_server_without_a_signal_can_be_asked_to_stop() -> None:
    server = Server()
    server.bind(listener())
    running = asyncio.create_task(server.run())
    server.request_stop()
    async with asyncio.timeout(10):
        await running


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_metrics_are_shown_on_loopback(host: str) -> None:
    registry = CollectorRegistry()
    Counter("kept", "Kept documents.", registry=registry).inc(3)
    server = Server(metrics_address=host_port(host, 0), registry=registry)
    await server.start()
    url = f"http://{host_port(host, server.metrics_port)}/metrics"

    def read() -> bytes:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bytes(answer.read())

    try:
        assert b"kept_total 3.0" in await asyncio.to_thread(read)
    finally:
        await server.stop()


@pytest.mark.attack
@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "localhost", "[::]"])
async def test_metrics_are_shown_nowhere_else(host: str) -> None:
    server = Server(metrics_address=f"{host}:0")
    with pytest.raises(InvalidInput, match="loopback only"):
        await server.start()
    await server.stop()


async def test_a_taken_metrics_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Server(metrics_address=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(FailedPrecondition, match="or set metrics to another port"):
            await server.start()
    await server.stop()


async def test_health_knows_the_services_of_its_listener() -> None:
    server = Server()
    port = server.bind(listener())
    other = server.bind(
        Listener("127.0.0.1:0", "listen", server_credentials(require_client=False), [], [], {})
    )
    await server.start()
    name = "appliance.api.inference.v1.WorkerService"
    try:
        async with gateway(port) as channel, connect(other) as elsewhere:
            for serving_now, state in ((False, NOT_SERVING), (True, SERVING)):
                await server.set_serving(serving=serving_now)
                assert [await health(channel, service) for service in ("", name)] == [state] * 2
            error = await failure(lambda: health(elsewhere, name))
            assert error.code() is grpc.StatusCode.NOT_FOUND
    finally:
        await server.stop()


@pytest.mark.attack
async def test_watches_of_health_are_bounded_and_checks_answer_beside_them() -> None:
    async with (
        serving([], [], {}, require_client=False) as running,
        connect(running.port) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        watches = [
            stub.Watch(health_pb2.HealthCheckRequest(service=f"s{number}"))
            for number in range(WATCHES_PER_SOURCE)
        ]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        held = [channel.stream_unary("/grpc.health.v1.Health/Check")() for _ in range(8)]
        waiting = {asyncio.create_task(failure(watch.read)) for watch in watches}
        for _ in range(100):
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            watches.append(watch)
            # Another one goes for it.
            ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert [type(from_rpc_error(task.result())) for task in ended] == [Exhausted]
            waiting.add(asyncio.create_task(failure(watch.read)))
        for task in waiting:
            task.cancel()
        assert await health(channel) == SERVING
        for call in (*watches, *held):
            call.cancel()


@pytest.mark.attack
async def test_a_watcher_who_takes_no_bytes_holds_up_nobody() -> None:
    watch = "/grpc.health.v1.Health/Watch"
    async with (
        serving([], [], {}, require_client=False) as running,
        connect(running.port) as channel,
        Raw.connect(running.port, window=0) as raw,
    ):
        for stream in (1, 3, 5):
            raw.request(watch, stream)
            raw.message(stream, b"")
        call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        async with asyncio.timeout(5):
            assert (await call.read()).status == SERVING
            await running.server.set_serving(serving=False)
            assert (await call.read()).status == NOT_SERVING
        call.cancel()


async def test_health_of_a_service_that_is_not_here_is_not_found() -> None:
    async with (
        serving([], [], {}, require_client=False) as running,
        connect(running.port) as channel,
    ):
        error = await failure(lambda: health(channel, "none"))
        assert error.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.attack
async def test_a_malformed_question_about_health_is_one_sentence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        serving([], [], {}, require_client=False) as running,
        connect(running.port) as channel,
    ):
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        error = from_rpc_error(await failure(lambda: check(b"\xff", timeout=10)))
        assert type(error) is InvalidInput
    assert caplog.text == ""


@pytest.mark.attack
async def test_whoever_pings_without_end_is_cut_off() -> None:
    async with serving([], [], {}, require_client=False) as running:
        async with Raw.connect(running.port) as raw:
            for _ in range(10):
                raw.ping()
            async with asyncio.timeout(10):
                # The last word may be lost when the connection is closed on unread pings.
                assert set(await raw.ended()) <= {ENHANCE_YOUR_CALM}
        async with connect(running.port) as channel:
            assert await health(channel) == SERVING


def test_our_own_pings_are_never_too_many() -> None:
    rarest = dict(SERVER_OPTIONS)["grpc.http2.min_ping_interval_without_data_ms"]
    assert dict(CHANNEL_OPTIONS)["grpc.keepalive_time_ms"] >= 2 * rarest


@pytest.mark.attack
async def test_streams_that_are_taken_back_at_once_leave_nothing() -> None:
    """Rapid reset (CVE-2023-44487): 2,000 calls on one connection, each reset at once."""
    async with (
        serving([], [], {}, require_client=False) as running,
        connect(running.port) as channel,
    ):
        await health(channel)
        before = len(asyncio.all_tasks())
        async with Raw.connect(running.port) as raw:
            for number in range(2000):
                raw.request("/grpc.health.v1.Health/Watch", 2 * number + 1)
                raw.reset(2 * number + 1)
            await raw.drain()
            assert await health(channel) == SERVING
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110 - gRPC says nothing
                await asyncio.sleep(0)


@pytest.mark.attack
async def test_connections_of_a_listener_are_bounded() -> None:
    options = (("grpc.max_allowed_incoming_connections", 3),)
    async with (
        serving([], [], {}, require_client=False, options=options) as running,
        contextlib.AsyncExitStack() as open_ones,
    ):
        for _ in range(3):
            raw = await open_ones.enter_async_context(Raw.connect(running.port))
            assert await raw.next() is not None
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await open_ones.enter_async_context(Raw.connect(running.port))


@pytest.mark.attack
async def test_an_idle_connection_is_closed() -> None:
    options = (("grpc.max_connection_idle_ms", 200),)
    async with (
        serving([], [], {}, require_client=False, options=options) as running,
        Raw.connect(running.port) as raw,
        asyncio.timeout(10),
    ):
        assert await raw.ended() != []


@pytest.mark.attack
async def test_oversize_messages_and_metadata_are_refused() -> None:
    async with (
        serving([], [], {}, require_client=False) as running,
        connect(running.port) as channel,
    ):
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for sent, metadata in (
            (bytes(4 * (1 << 20) + 1), ()),
            (b"", (("x", "y" * 20_000),)),
        ):
            error = await failure(lambda s=sent, m=metadata: check(s, metadata=m, timeout=10))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await health(channel) == SERVING


@pytest.mark.attack
async def test_a_silent_connection_is_closed() -> None:
    options = (("grpc.server_handshake_timeout_ms", 200),)
    async with serving([], [], {}, require_client=False, options=options) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


_NO_HANDSHAKE = """
import appliance  # as every process of ours begins
import asyncio
import ssl
from appliance.core import log
from tests.fakes.http2 import Raw
from tests.fakes.wire import serving

async def main():
    log.configure("test")
    trust = ssl._create_unverified_context()
    trust.set_alpn_protocols(["h2"])
    async with serving([], [], {}, require_client=False) as running:
        for _ in range(5):
            # A name that is no server's here.
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", running.port, ssl=trust, server_hostname="other.example"
            )
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
            await reader.read()
            writer.close()
            # Headers that are no text, of a method that nobody has.
            async with Raw.connect(running.port) as raw:
                raw.request("/x/y", 1, **{"x-a": "\u00ff" * 500})
                raw.message(1, b"")
                while (await raw.next())[2] != 1:
                    pass

asyncio.run(main())
"""


@pytest.mark.attack
async def test_handshakes_that_fail_and_headers_that_are_no_text_write_no_lines() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _NO_HANDSHAKE),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        assert await process.communicate() == (b"", b"")
    assert process.returncode == 0
