"""The services that people call, over real loopback TLS, answering what a test tells them."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from appliance.client.methods import SERVICES, find
from appliance.core.errors import ApplianceError
from appliance.core.identity import PrincipalKind
from appliance.wire import tls
from appliance.wire.status import to_status
from tests.fakes.wire import authority, issued

REQUEST_ID = "11111111-1111-4111-8111-111111111111"


@dataclass
class Call:
    name: str
    request: Any
    metadata: dict[str, str]

    @property
    def token(self) -> str:
        return self.metadata.get("authorization", "").removeprefix("Bearer ")


@dataclass
class FakeApi:
    """`answers` by short name: a message, a list of them for a stream, an error, or a function."""

    answers: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    address: str = ""
    gateway_address: str = ""

    @property
    def ca_pem(self) -> bytes:
        return authority().certificate_pem

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def answer(self, name: str, request: Any, context: grpc.ServicerContext) -> Any:
        metadata: dict[str, Any] = dict(context.invocation_metadata())
        self.calls.append(Call(name, request, metadata))
        found = self.answers[name]
        found = found(request) if isinstance(found, Callable) else found  # type: ignore[arg-type]
        if isinstance(found, ApplianceError):
            context.abort_with_status(to_status(found, REQUEST_ID))
        return found


class _Handler(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not generic at run time
    def __init__(self, api: FakeApi) -> None:
        self._api = api

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        service, _, short = details.method.rpartition(".")[2].partition("/")
        if service not in SERVICES:
            return None
        name = f"{service}.{short}"
        method, api = find(name), self._api
        code = {
            "request_deserializer": method.request.FromString,
            "response_serializer": lambda message: message.SerializeToString(),
        }
        if method.rule.request_streaming:

            def take(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
                return api.answer(name, list(requests), context)

            return grpc.stream_unary_rpc_method_handler(take, **code)
        if method.rule.response_streaming:

            def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                for each in api.answer(name, request, context):
                    if isinstance(each, ApplianceError):
                        context.abort_with_status(to_status(each, REQUEST_ID))
                    yield each

            return grpc.unary_stream_rpc_method_handler(stream, **code)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            return api.answer(name, request, context)

        return grpc.unary_unary_rpc_method_handler(answer, **code)


def _shown_by(kind: PrincipalKind) -> grpc.ServerCredentials:
    pair = issued(kind, "main", server=True)
    ca = authority().certificate_pem
    return tls.server_credentials(pair.key, pair.certificate, ca, require_client=False)


@contextlib.contextmanager
def serving_api() -> Iterator[FakeApi]:
    api = FakeApi()
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=tls.SERVER_OPTIONS)
        server.add_generic_rpc_handlers((_Handler(api),))
        servicer = health.HealthServicer()
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        api.address, api.gateway_address = (
            f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', _shown_by(kind))}"
            for kind in (PrincipalKind.CONTROL, PrincipalKind.GATEWAY)
        )
        server.start()
        try:
            yield api
        finally:
            server.stop(0).wait()
