"""A control plane for agents: enrolment and the agents' stream, over real TLS on loopback.

async with FakeControlPlane(tmp_path) as control:
    control.token                         # a join token that works once
    session = await control.session()     # the next agent that connects
    session.send(order); await session.until("job_ended")
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from appliance.api.agent.v1 import (
    agent_service_pb2 as rpc,
)
from appliance.api.agent.v1 import (
    agent_service_pb2_grpc,
    enrolment_service_pb2,
    enrolment_service_pb2_grpc,
)
from appliance.core.errors import LeaseLost, Unauthenticated, Unavailable
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto import possession
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.crypto.reading import (
    serial_of,
)
from appliance.wire.status import to_status
from appliance.wire.tls import SERVER_OPTIONS, server_credentials

CLUSTER = "lab"
CHALLENGE = b"prove it"
NODE = "gpu-1"


class Session:
    """One stream of an agent."""

    def __init__(self, plane: FakeControlPlane, serial: str) -> None:
        self.serial = serial
        self.orders: asyncio.Queue[rpc.ConnectResponse | None] = asyncio.Queue()
        self.messages: list[rpc.ConnectRequest | rpc.ReportRequest] = []
        self.plane = plane
        self._changed = asyncio.Condition()

    def send(self, **order: Any) -> None:
        self.orders.put_nowait(rpc.ConnectResponse(**order))

    def close(self) -> None:
        self.orders.put_nowait(None)

    async def take(self, message: rpc.ConnectRequest | rpc.ReportRequest) -> None:
        async with self._changed:
            self.messages.append(message)
            self._changed.notify_all()
        if message.WhichOneof("report") == "heartbeat":
            leases = rpc.Leases(
                work=[rpc.WorkEpoch(work=work, epoch=epoch) for work, epoch in self.plane.leases],
                seconds=self.plane.lease_seconds,
                sequence=message.heartbeat.sequence,
                gateways=self.plane.gateways,
            )
            self.send(leases=leases)

    def of(self, kind: str) -> list[Any]:
        """All messages of a kind so far."""
        return [getattr(m, kind) for m in self.messages if m.WhichOneof("report") == kind]

    async def until(self, kind: str, seconds: float = 60, **fields: Any) -> Any:
        """The first message of a kind whose fields have these values."""

        def found() -> list[Any]:
            return [
                m
                for m in self.of(kind)
                if all(getattr(m, name) == value for name, value in fields.items())
            ]

        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(found)
        return found()[0]

    async def beats(self, count: int) -> None:
        """Wait for so many more heartbeats."""
        wanted = len(self.of("heartbeat")) + count
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self.of("heartbeat")) >= wanted)


class FakeControlPlane:
    """Speaks the real protocol and decides nothing."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create(CLUSTER)
        self.sent: asyncio.Queue[rpc.SendLogRequest | None] = asyncio.Queue()
        """What came on streams of lines; None at the end of one."""
        self.reads_no_more = False
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(self.authority.certificate_pem)
        self.token = "sla_join_abc_secret_crc"
        self.shown = Principal(PrincipalKind.CONTROL, "control")
        self.leases: set[tuple[str, int]] = set()
        self.waits_for_store = False
        self.gateways: rpc.GatewayCertificates | None = None
        self.lease_seconds = 15.0
        self.answering = True
        self.taking = asyncio.Event()
        """Whether it reads reports."""
        self.taking.set()
        self.breaks = False
        """Whether it ends a stream of reports at its first one."""
        self.lifetime = timedelta(hours=24)
        self.issued_ago = timedelta()
        self.recovers = False
        self.refuses = ""
        """Why it refuses every certificate that it has issued so far; empty: it does not."""
        self.keys: dict[str, rpc.ReleaseKeysResponse] = {}
        self.asked: list[rpc.ReleaseKeysRequest] = []
        self.releases = asyncio.Event()
        """While it is not set, calls for keys are not answered."""
        self.releases.set()
        self.sessions: asyncio.Queue[Session] = asyncio.Queue()
        self.newest: Session | None = None
        self.join_port = self.machine_port = 0
        self._servers: list[grpc.aio.Server] = []

    async def __aenter__(self) -> Self:
        self.join_port = await self._serve(require_client=False)
        self.machine_port = await self._serve(require_client=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            await server.stop(0)

    async def session(self) -> Session:
        """The next stream that an agent opens."""
        async with asyncio.timeout(30):
            return await self.sessions.get()

    async def _serve(self, *, require_client: bool) -> int:
        key = new_private_key()
        certificate = self.authority.issue(make_csr(key), self.shown, server=True, client=False)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        if require_client:
            agent_service_pb2_grpc.add_AgentServiceServicer_to_server(_Agents(self), server)
        else:
            enrolment_service_pb2_grpc.add_EnrolmentServiceServicer_to_server(
                _Enrolment(self), server
            )
        credentials = server_credentials(
            key, certificate, self.authority.certificate_pem, require_client=require_client
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        self._servers.append(server)
        return port

    def issue(self, csr: str) -> str:
        """A certificate for the node."""
        return self.authority.issue(
            csr.encode(),
            Principal(PrincipalKind.NODE, NODE),
            server=False,
            client=True,
            lifetime=self.lifetime,
            now=datetime.now(UTC) - self.issued_ago,
        ).decode()


class _Enrolment(enrolment_service_pb2_grpc.EnrolmentServiceServicer):
    def __init__(self, plane: FakeControlPlane) -> None:
        self._plane = plane

    async def Join(self, request: Any, context: Any) -> Any:
        if not request.token or request.token != self._plane.token:
            error = Unauthenticated("this token cannot be used")
            await context.abort_with_status(to_status(error, "1"))
        self._plane.token = self._plane.refuses = ""
        return enrolment_service_pb2.JoinResponse(
            node=f"nodes/{NODE}",
            certificate=self._plane.issue(request.certificate_request),
            ca_certificate=self._plane.authority.certificate_pem.decode(),
            cluster_id=CLUSTER,
        )

    async def GetChallenge(self, request: Any, context: Any) -> Any:
        return enrolment_service_pb2.GetChallengeResponse(challenge=CHALLENGE)

    async def RecoverCertificate(self, request: Any, context: Any) -> Any:
        certificate, asked = request.certificate.encode(), request.certificate_request.encode()
        possession.check(certificate, CLUSTER, CHALLENGE, asked, request.signature)
        if not self._plane.recovers or request.challenge != CHALLENGE:
            error = Unauthenticated(f"nodes/{NODE} was evicted")
            await context.abort_with_status(to_status(error, "1"))
        return enrolment_service_pb2.RecoverCertificateResponse(
            name=f"nodes/{NODE}", certificate=self._plane.issue(request.certificate_request)
        )


class _Agents(agent_service_pb2_grpc.AgentServiceServicer):
    def __init__(self, plane: FakeControlPlane) -> None:
        self._plane = plane

    async def Connect(self, requests: Any, context: Any) -> Any:
        if self._plane.refuses:
            error = Unauthenticated(self._plane.refuses)
            await context.abort_with_status(to_status(error, "1"))
        (certificate,) = context.auth_context()["x509_pem_cert"]
        session = Session(self._plane, serial_of(certificate))

        async def listen() -> None:
            async for message in requests:
                await session.take(message)

        listening = asyncio.create_task(listen())
        try:
            self._plane.sessions.put_nowait(session)
            self._plane.newest = session
            while (order := await session.orders.get()) is not None:
                yield order
        finally:
            listening.cancel()

    async def Report(self, requests: Any, context: Any) -> Any:
        session = self._plane.newest
        assert session is not None
        await self._plane.taking.wait()
        async for report in requests:
            await session.take(report)
            if self._plane.breaks:
                await context.abort_with_status(to_status(Unavailable("the disk is full"), "1"))
            if self._plane.answering:
                yield rpc.ReportResponse(number=report.number)

    async def SendLog(self, requests: Any, context: Any) -> Any:
        async for message in requests:
            await self._plane.sent.put(message)
            if self._plane.reads_no_more:
                break
        await self._plane.sent.put(None)
        return rpc.SendLogResponse()

    async def ReleaseKeys(self, request: Any, context: Any) -> Any:
        self._plane.asked.append(request)
        await self._plane.releases.wait()
        if self._plane.waits_for_store:
            error = Unavailable("the object store is not there", retry_after=30.0)
            await context.abort_with_status(to_status(error, "1"))
        keys = self._plane.keys.get(request.work.work)
        if keys is None:
            error = LeaseLost("this work is not leased to you")
            await context.abort_with_status(to_status(error, "1"))
        return keys

    async def RenewCertificate(self, request: Any, context: Any) -> Any:
        return rpc.RenewCertificateResponse(
            certificate=self._plane.issue(request.certificate_request)
        )
