"""A control plane that only knows routing: views as told, one tokenizer, usages noted."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Any

from appliance.api.serving.v1 import endpoint_pb2, routing_service_pb2, routing_service_pb2_grpc
from appliance.control.auth import tokens
from appliance.control.services.fleet import front_certificates
from appliance.core.errors import Unavailable
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.reading import serial_of
from appliance.crypto.tokens import TokenKind
from appliance.wire import routing
from appliance.wire.machine_door import MachineDoor
from appliance.wire.rules import rules_of
from appliance.wire.server import Listener, Server, Service
from tests.fakes import worker as workers
from tests.fakes.wire import CLUSTER, CONTROL, authority, server_credentials
from tests.fakes.worker import END, Worker

RULES = rules_of(routing_service_pb2.DESCRIPTOR.services_by_name.values())
GATEWAY = Principal(PrincipalKind.GATEWAY, "gateway-1")
ENDPOINT = "projects/p/endpoints/e"
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
KEY = bytes(range(32))
PIECE = 1000
OTHER = "other"


def _version(longest: int, *, other: bool) -> dict[str, Any]:
    """Fields of a route and of a replica."""
    model = {"model": f"projects/p/models/m/versions/{2 if other else 1}"}
    return model | {"model_uid": OTHER if other else "first", "max_sequence_length": longest}


def seal(view: routing_service_pb2.RoutingView) -> routing_service_pb2.RoutingView:
    """A whole view with its digest."""
    entries: list[routing.ViewEntry] = [*view.credentials, *view.rights, *view.routes]
    digests = [routing.entry_digest(each) for each in entries]
    view.digest = routing.digest(routing.total(0, digests, ()))
    return view


class Control(routing_service_pb2_grpc.RoutingServiceServicer):
    """Set fields of `view`, then `publish`."""

    def __init__(self, shown: Principal = CONTROL) -> None:
        self._shown = shown
        self.view = routing_service_pb2.RoutingView(token_key=KEY)
        self.usages: list[Any] = []
        self.entries: list[tuple[str, int]] = []
        self.closed: dict[str, int] = {}
        self.refusals: list[Any] = []
        self.broken = False
        self.pulse = 0.2
        self.tokenizer_calls = 0
        self.tokenizer = workers.tokenizer().to_str().encode()
        self.other = workers.tokenizer(other=True).to_str().encode()
        self.fronts = 0
        self.watched: list[str] = []
        """Serial numbers of the certificates that the view was asked for with, one a stream."""
        self._changed = asyncio.Event()
        self._server: Server | None = None
        self.port = 0

    def issue(
        self,
        principal: str = "serviceAccounts/app",
        endpoints: Iterable[str] = (ENDPOINT,),
        *,
        expires: float | None = None,
    ) -> str:
        """A token, and the right to ask in these endpoints' projects; what the owner is shown."""
        minted = tokens.mint(TokenKind.SERVICE, KEY)
        credential = self.view.credentials.add(
            id=minted.id, digest=minted.digest, principal=principal
        )
        credential.expire_time.FromSeconds(int(expires or time.time() + 3600))
        for project in sorted({endpoint.rsplit("/", 2)[0] for endpoint in endpoints}):
            self.view.rights.add(
                principal=principal, project=project, permissions=["endpoints.infer"]
            )
        return minted.text

    def serve(
        self,
        *replicas: Worker,
        endpoint: str = ENDPOINT,
        longest: int = 512,
        state: str = "STATE_READY",
        starting: bool = False,
    ) -> None:
        """Routes: the endpoint with these replicas, ready or draining.

        It is to serve what the last of them does. With `starting`, there is one more of that.
        """
        other = bool(replicas) and replicas[-1].other
        version = _version(longest, other=other)
        late = endpoint_pb2.Replica(id="late", state="STATE_STARTING", **version)
        for route in [route for route in self.view.routes if route.endpoint == endpoint]:
            self.view.routes.remove(route)
        self.view.routes.add(
            endpoint=endpoint,
            project=endpoint.rsplit("/", 2)[0],
            state=state,
            replicas=[
                endpoint_pb2.Replica(
                    id=replica.id,
                    state="STATE_DRAINING" if replica.script.draining else "STATE_READY",
                    **_version(longest, other=replica.other),
                    epoch=1,
                    address=replica.address,
                    server_name=replica.identity.server_name,
                )
                for replica in replicas
            ]
            + [late] * starting,
            **version,
        )

    def publish(self) -> None:
        self.view.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def start(self) -> None:
        self._server = Server(grace=0.0)
        self.port = self._server.bind(
            Listener(
                f"127.0.0.1:{self.port}",
                "listen",
                server_credentials(shown=self._shown),
                [MachineDoor(RULES, CLUSTER, {PrincipalKind.GATEWAY})],
                [Service(self, routing_service_pb2_grpc.add_RoutingServiceServicer_to_server)],
                RULES,
            )
        )
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop()

    async def WatchRouting(
        self, request: Any, context: Any
    ) -> AsyncIterator[routing_service_pb2.RoutingView]:
        last = -1
        (certificate,) = context.auth_context()["x509_pem_cert"]
        self.watched.append(serial_of(certificate))
        while True:
            changed = self._changed
            if self.view.version == last:
                yield routing_service_pb2.RoutingView(version=last, unchanged=True)
            else:
                yield seal(self.view)
                last = self.view.version
            try:
                async with asyncio.timeout(self.pulse):
                    await changed.wait()
            except TimeoutError:
                continue

    async def ReadServedTokenizer(
        self, request: Any, context: Any
    ) -> AsyncIterator[routing_service_pb2.ServedTokenizerPart]:
        self.tokenizer_calls += 1
        texts = [self.other if request.model_uid == OTHER else self.tokenizer, TEMPLATE.encode()]
        whole = b"".join(texts)
        yield routing_service_pb2.ServedTokenizerPart(
            tokenizer=self._ends,
            content=hashlib.sha256(whole).hexdigest(),
            tokenizer_json_size=len(texts[0]),
            chat_template_size=len(texts[1]),
        )
        for start in range(0, len(whole), PIECE):
            yield routing_service_pb2.ServedTokenizerPart(data=whole[start : start + PIECE])
        yield routing_service_pb2.ServedTokenizerPart(digest=hashlib.sha256(whole).digest())

    _ends = routing_service_pb2.ServedTokenizer(
        end_token_ids=[END], bos_token="<s>", eos_token="</s>"
    )

    async def GetServedTokenizer(
        self, request: Any, context: Any
    ) -> routing_service_pb2.ServedTokenizer:
        self.tokenizer_calls += 1
        whole = routing_service_pb2.ServedTokenizer()
        whole.CopyFrom(self._ends)
        whole.tokenizer_json, whole.chat_template = self.tokenizer, TEMPLATE
        return whole

    async def ReportUsage(
        self, request: Any, context: Any
    ) -> routing_service_pb2.ReportUsageResponse:
        if self.broken:
            raise Unavailable("the audit log cannot be written")
        if request.last:
            self.closed[request.boot] = request.last
        for entry in request.entries:
            if (request.boot, entry.number) not in self.entries:
                self.entries.append((request.boot, entry.number))
                counted = entry.HasField("refusals")
                self.refusals.append(entry.refusals) if counted else self.usages.append(entry.usage)
        return routing_service_pb2.ReportUsageResponse(recorded=True)

    async def RenewCertificate(
        self, request: Any, context: Any
    ) -> routing_service_pb2.RenewCertificateResponse:
        if self.broken:
            raise Unavailable("the audit log cannot be written")
        certificate = authority().issue(
            request.certificate_request.encode(), GATEWAY, server=False, client=True
        )
        return routing_service_pb2.RenewCertificateResponse(certificate=certificate.decode())

    async def RenewFrontCertificate(
        self, request: Any, context: Any
    ) -> routing_service_pb2.RenewFrontCertificateResponse:
        if self.broken:
            raise Unavailable("the audit log cannot be written")
        self.fronts += 1
        certificate = front_certificates.issue(
            authority(), GATEWAY, [], request.certificate_request, datetime.now(UTC)
        )
        return routing_service_pb2.RenewFrontCertificateResponse(certificate=certificate.decode())
