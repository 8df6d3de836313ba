"""TLS and the options of every gRPC server and channel of the appliance.

Rules kept here:
* a channel trusts the appliance's own authority alone, never the system's list;
* a channel names the server it expects, such as `control.appliance`, and no other server of the
  appliance will do; addresses can change without new certificates; a machine proves its own
  identity with a client certificate;
* sizes, times and counts are limited explicitly (a message, the metadata, the handshake, streams,
  idle time);
* gRPC does not retry by itself: whoever calls knows what may be repeated;
* every channel of the appliance is made here, so none of them asks a proxy of the environment;
* a port is never shared by accident (`so_reuseport` 0): a second process gets an error.

The attacks: a server that poses as another with a certificate of its own, a silent TCP connection,
a flood of streams or pings, an oversized or compressed message, and a second server on a taken
port. Called by the server, the client, the agent, the gateway and the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import grpc
import grpc.aio

_MIB = 1 << 20

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", 4 * _MIB),
    ("grpc.max_send_message_length", 16 * _MIB),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 256),
    # A compressed message stays as it came, and the door refuses it: gRPC would inflate up to the
    # limit above for a thousandth of it, before anybody is asked.
    ("grpc.per_message_decompression", 0),
    ("grpc.server_handshake_timeout_ms", 5_000),
    # A connection without a call holds a descriptor; a client opens another with its next call.
    ("grpc.max_connection_idle_ms", 60_000),
    # A stream that is cut by age is one its caller has to open again: rarely, and with time to end.
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 600_000),
    # Clients ping each 10 s to notice a dead host. Whoever pings more often than each 5 s, without
    # data in between, has the connection closed at the third time (0 strikes: never).
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.keepalive_permit_without_calls", 1),
)
"""Options of every server; a listener may add its own behind them."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 16 * _MIB),
    ("grpc.max_send_message_length", 4 * _MIB),
    # Its own connection for each channel: two identities never share one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that comes back is found within seconds, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 3_000),
    # No proxy of the environment: traffic stays between the appliance's machines.
    ("grpc.enable_http_proxy", 0),
)
"""Options of every channel."""


def server_credentials(
    key_pem: bytes, cert_pem: bytes, ca_pem: bytes, *, require_client: bool
) -> grpc.ServerCredentials:
    """Credentials of a listener; `require_client`: callers need a certificate of our authority.

    Who the caller is, and whether it still may, is for the door to say on each call.
    """
    return grpc.ssl_server_credentials(
        [(key_pem, cert_pem)],
        root_certificates=ca_pem if require_client else None,
        require_client_auth=require_client,
    )


@dataclass(frozen=True)
class ServerPair:
    """Private key and certificate of a server, PEM."""

    key: bytes = field(repr=False)
    certificate: bytes


def swapped_server_credentials(
    current: Callable[[], ServerPair], ca_pem: bytes, *, require_client: bool
) -> grpc.ServerCredentials:
    """The same with a pair that changes: asked for at each handshake, in a thread of gRPC.

    Args:
        current: what to show now; the same object as long as that is the same. It must not raise.
        ca_pem: the appliance's authority.
        require_client: callers need a certificate of it.
    """
    given = [current()]

    def configuration(pair: ServerPair) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(pair.key, pair.certificate)], root_certificates=ca_pem if require_client else None
        )

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        pair = current()
        if pair is given[0]:
            return None
        given[0] = pair
        return configuration(pair)

    return grpc.dynamic_ssl_server_credentials(
        configuration(given[0]),
        # grpc-stubs do not know that nothing new may be said so.
        cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch),
        require_client_authentication=require_client,
    )


def _channel_arguments(
    ca_pem: bytes, key_pem: bytes | None, cert_pem: bytes | None, server_name: str
) -> tuple[grpc.ChannelCredentials, list[tuple[str, str | int]]]:
    credentials = grpc.ssl_channel_credentials(ca_pem, key_pem, cert_pem)
    return credentials, [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", server_name)]


def channel(
    target: str,
    ca_pem: bytes,
    key_pem: bytes | None = None,
    cert_pem: bytes | None = None,
    *,
    server_name: str,
) -> grpc.aio.Channel:
    """A channel for asyncio to `host:port`, with a client certificate when a key is given.

    `server_name`: DNS name in the server's certificate, see `appliance.core.identity`.
    """
    credentials, options = _channel_arguments(ca_pem, key_pem, cert_pem, server_name)
    return grpc.aio.secure_channel(target, credentials, options=options)


def sync_channel(
    target: str,
    ca_pem: bytes,
    key_pem: bytes | None = None,
    cert_pem: bytes | None = None,
    *,
    server_name: str,
) -> grpc.Channel:
    """The same for code without an event loop, such as the command."""
    credentials, options = _channel_arguments(ca_pem, key_pem, cert_pem, server_name)
    return grpc.secure_channel(target, credentials, options=options)


def plain_channel(target: str) -> grpc.Channel:
    """A channel without TLS, for a health port that the kernel keeps on this machine."""
    return grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
