"""Ask a server of the appliance whether it serves, without an identity."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.core.errors import Unavailable, Untrusted
from appliance.core.identity import PrincipalKind
from appliance.wire.status import from_rpc_error
from appliance.wire.tls import plain_channel, sync_channel

SECONDS = 5.0


def check(
    address: str,
    ca_pem: bytes | None,
    *,
    server: PrincipalKind = PrincipalKind.CONTROL,
    timeout: float = SECONDS,
) -> None:
    """Return when the server at `address` says that it serves.

    Args:
        address: `host:port`.
        ca_pem: the appliance's CA certificate; None for a health port without TLS on loopback.
        server: which kind of server answers there.
        timeout: seconds to wait for the answer.

    Raises:
        Unavailable: it cannot be reached, or is starting or stopping; Untrusted when it is not the
            server that is meant.
    """
    if ca_pem:
        channel = sync_channel(address, ca_pem, server_name=server.server_name)
    else:
        channel = plain_channel(address)
    with channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            failed = from_rpc_error(error)
            kind = Untrusted if isinstance(failed, Untrusted) else Unavailable
            said = failed.message if address in failed.message else f"{address}: {failed}"
            raise kind(said) from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise Unavailable(
            f"{address} answers, but does not serve: it is starting or stopping, or cannot do its "
            "work, which its log says"
        )
