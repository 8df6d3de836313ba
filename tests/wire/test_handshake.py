"""Who gets through: every wrong certificate against a real server, and connections that end."""

import asyncio
import contextlib
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest

from appliance.api.inference.v1 import worker_service_pb2, worker_service_pb2_grpc
from appliance.core.errors import Denied, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.reading import serial_of
from appliance.wire.accepted import FILE, AcceptedFile, AcceptedSerials
from appliance.wire.door import caller
from appliance.wire.machine_door import MachineDoor
from appliance.wire.rules import rules_of
from appliance.wire.server import Service
from appliance.wire.status import from_rpc_error
from tests.fakes.wire import (
    CLIENT,
    CLUSTER,
    HOUR,
    SERVER,
    Clock,
    Pair,
    Running,
    authority,
    connect,
    failure,
    issued,
    made,
    other_authority,
    serving,
)

RULES = rules_of([worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"]])
GATEWAY = PrincipalKind.GATEWAY
NODE = PrincipalKind.NODE


class Worker(worker_service_pb2_grpc.WorkerServiceServicer):
    """Answers each message and remembers who called."""

    def __init__(self) -> None:
        self.callers: list[Principal] = []

    async def Attach(
        self, request_iterator: AsyncIterator[worker_service_pb2.AttachRequest], context: object
    ) -> AsyncIterator[worker_service_pb2.AttachResponse]:
        self.callers.append(caller.get())
        async for _ in request_iterator:
            yield worker_service_pb2.AttachResponse()


@contextlib.asynccontextmanager
async def worker(door: MachineDoor, service: Worker | None = None) -> AsyncIterator[Running]:
    implementation = service or Worker()
    registered = Service(
        implementation, worker_service_pb2_grpc.add_WorkerServiceServicer_to_server
    )
    async with serving([door], [registered], RULES) as running:
        yield running


async def attach(channel: grpc.aio.Channel) -> object:
    """One message there, one back."""
    stub = worker_service_pb2_grpc.WorkerServiceStub(channel)

    async def requests() -> AsyncIterator[worker_service_pb2.AttachRequest]:
        yield worker_service_pb2.AttachRequest()

    return [answer async for answer in stub.Attach(requests(), timeout=10)]


def door(clock: Clock | None = None, **changes: object) -> MachineDoor:
    settings: dict[str, object] = {"now": (clock or Clock()).now} | changes
    return MachineDoor(RULES, CLUSTER, {GATEWAY, NODE}, **settings)  # type: ignore[arg-type]  # keywords by name


async def test_a_machine_of_the_cluster_gets_in_and_is_known() -> None:
    service = Worker()
    async with (
        worker(door(), service) as running,
        connect(running.port, issued(GATEWAY, "g1")) as channel,
    ):
        assert await attach(channel) == [worker_service_pb2.AttachResponse()]
    assert service.callers == [Principal(GATEWAY, "g1")]


@pytest.mark.attack
@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(None, id="no certificate"),
        pytest.param({"signer": other_authority(), "usages": [CLIENT]}, id="another authority"),
        pytest.param({"usages": [CLIENT], "start": -2 * HOUR, "end": -HOUR}, id="expired"),
        pytest.param({"usages": [CLIENT], "start": HOUR, "end": 2 * HOUR}, id="not yet valid"),
    ],
)
async def test_the_handshake_refuses(pair: dict[str, object] | None) -> None:
    shown = None if pair is None else made(**pair)  # type: ignore[arg-type]  # keywords by name
    service = Worker()
    async with worker(door(), service) as running, connect(running.port, shown) as channel:
        error = await failure(lambda: attach(channel))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert service.callers == []


@pytest.mark.attack
@pytest.mark.parametrize(
    "pair",
    [
        pytest.param({"usages": [SERVER]}, id="for servers only"),
        pytest.param({"usages": None}, id="no purpose"),
        pytest.param({"usages": [CLIENT], "uris": ("spiffe://c2/node/n1",)}, id="another cluster"),
        pytest.param({"usages": [CLIENT], "uris": ("spiffe://c1/root/n1",)}, id="unknown kind"),
        pytest.param({"usages": [CLIENT], "uris": ("https://c1/node/n1",)}, id="no SPIFFE name"),
        pytest.param(
            {"usages": [CLIENT], "uris": ("spiffe://c1/node/n1", "spiffe://c1/gateway/g1")},
            id="two identities",
        ),
        pytest.param(
            {"usages": [CLIENT], "is_ca": True}, id="an authority's certificate as a leaf"
        ),
    ],
)
async def test_the_door_refuses_what_tls_accepts(pair: dict[str, object]) -> None:
    service = Worker()
    shown = made(**pair)  # type: ignore[arg-type]  # keywords by name
    async with worker(door(), service) as running, connect(running.port, shown) as channel:
        error = await failure(lambda: attach(channel))
    # gRPC itself refuses some of these; either way nobody reaches the service.
    assert error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
    assert service.callers == []


@pytest.mark.attack
async def test_the_authority_itself_cannot_call() -> None:
    pair = Pair(authority().private_key_pem, authority().certificate_pem)
    service = Worker()
    async with worker(door(), service) as running, connect(running.port, pair) as channel:
        await failure(lambda: attach(channel))
    assert service.callers == []


@pytest.mark.attack
@pytest.mark.parametrize("kind", [PrincipalKind.USER, PrincipalKind.REPLICA, PrincipalKind.CONTROL])
async def test_another_kind_of_machine_is_denied(kind: PrincipalKind) -> None:
    async with worker(door()) as running, connect(running.port, issued(kind, "x1")) as channel:
        error = from_rpc_error(await failure(lambda: attach(channel)))
    assert type(error) is Denied
    assert str(error) == f"{kind.collection}/x1 may not call this server"


@pytest.mark.attack
async def test_a_certificate_that_ends_ends_on_a_live_connection() -> None:
    clock = Clock()
    async with (
        worker(door(clock)) as running,
        connect(running.port, issued(GATEWAY, "g1")) as channel,
    ):
        await attach(channel)
        clock.time += timedelta(days=11)
        error = from_rpc_error(await failure(lambda: attach(channel)))
    assert type(error) is Unauthenticated


@pytest.mark.attack
async def test_an_evicted_machine_loses_its_open_stream_and_its_connection(
    tmp_path: Path,
) -> None:
    file, machine = AcceptedFile(tmp_path / FILE), issued(NODE, "n1")
    guarded = door(check=file.check, recheck_seconds=0.05)
    async with (
        worker(guarded) as running,
        connect(running.port, machine) as channel,
    ):
        stream = worker_service_pb2_grpc.WorkerServiceStub(channel).Attach(timeout=10)
        await stream.write(worker_service_pb2.AttachRequest())
        await stream.read()
        later = datetime.now(UTC) + timedelta(minutes=1)
        file.write(AcceptedSerials(frozenset({serial_of(machine.certificate)}), later))
        await attach(channel)
        file.write(AcceptedSerials(frozenset(), later))
        error = from_rpc_error(await failure(stream.read))
        assert type(error) is Unauthenticated
        assert "its gateway was evicted" in str(error)
        await failure(lambda: attach(channel))


@pytest.mark.attack
async def test_an_expiring_certificate_loses_its_open_stream() -> None:
    clock = Clock()
    async with (
        worker(door(clock, recheck_seconds=0.05)) as running,
        connect(running.port, issued(NODE, "n1")) as channel,
    ):
        stream = worker_service_pb2_grpc.WorkerServiceStub(channel).Attach(timeout=10)
        await stream.write(worker_service_pb2.AttachRequest())
        await stream.read()
        clock.time += timedelta(days=11)
        error = from_rpc_error(await failure(stream.read))
    assert type(error) is Unauthenticated


@pytest.mark.attack
async def test_a_client_refuses_a_server_of_another_authority() -> None:
    from appliance.wire import tls  # noqa: PLC0415 - only here a channel with the wrong authority

    async with (
        worker(door()) as running,
        tls.channel(
            f"127.0.0.1:{running.port}",
            other_authority().certificate_pem,
            server_name="control.appliance",
        ) as channel,
    ):
        error = await failure(lambda: attach(channel))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.attack
async def test_plain_text_is_refused() -> None:
    async with (
        worker(door()) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        error = await failure(lambda: attach(channel))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def _raw_tls(port: int, change: str) -> bytes:
    """What a server says to a TLS client that is too old or speaks no HTTP/2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=authority().certificate_pem.decode())
    if change == "TLS 1.1":
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1_1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        context.wrap_socket(connection) as wrapped,
    ):
        wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        return wrapped.recv(100)


@pytest.mark.attack
@pytest.mark.parametrize("change", ["TLS 1.1", "no ALPN"])
async def test_old_tls_and_no_alpn_are_refused(change: str) -> None:
    async with serving([door()], [], {}, require_client=False) as running:
        try:
            said = await asyncio.to_thread(_raw_tls, running.port, change)
        except (ssl.SSLError, ConnectionError):
            said = b""
    assert said == b""
