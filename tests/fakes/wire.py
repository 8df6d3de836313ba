"""Certificates of every wrong kind, and real servers on loopback to show them to."""

import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.core.identity import SERVER_ZONE, Principal, PrincipalKind
from appliance.crypto.certs import Authority, make_csr, new_private_key
from appliance.wire import tls
from appliance.wire.rules import AccessRule
from appliance.wire.server import Listener, Server, Service

CLUSTER = "c1"
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
HOUR = timedelta(hours=1)


@functools.cache
def authority(cluster: str = CLUSTER) -> Authority:
    return Authority.create(cluster)


@functools.cache
def other_authority() -> Authority:
    """Another cluster's, with the same cluster id."""
    return Authority.create(CLUSTER)


@dataclass(frozen=True)
class Pair:
    key: bytes
    certificate: bytes


@functools.cache
def issued(kind: PrincipalKind, identifier: str, *, server: bool = False) -> Pair:
    key = new_private_key()
    principal = Principal(kind, identifier)
    certificate = authority().issue(make_csr(key), principal, server=server, client=not server)
    return Pair(key, certificate)


def made(
    *,
    signer: Authority | None = None,
    usages: list[x509.ObjectIdentifier] | None = None,
    uris: tuple[str, ...] = ("spiffe://c1/node/n1",),
    start: timedelta = -HOUR,
    end: timedelta = HOUR,
    is_ca: bool = False,
) -> Pair:
    """A certificate that the authority's own code would never issue."""
    signer = signer or authority()
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(signer.certificate_pem)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]),
            critical=False,
        )
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    signing = serialization.load_pem_private_key(signer.private_key_pem, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    certificate = builder.sign(signing, hashes.SHA256())
    pem = serialization.Encoding.PEM
    return Pair(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate.public_bytes(pem),
    )


CONTROL = Principal(PrincipalKind.CONTROL, "main")


def server_credentials(
    *, require_client: bool = True, shown: Principal = CONTROL
) -> grpc.ServerCredentials:
    pair = issued(shown.kind, shown.id, server=True)
    return tls.server_credentials(
        pair.key, pair.certificate, authority().certificate_pem, require_client=require_client
    )


def connect(
    port: int, pair: Pair | None = None, *, server: PrincipalKind = PrincipalKind.CONTROL
) -> grpc.aio.Channel:
    ca, name = authority().certificate_pem, server.server_name
    if pair is None:
        return tls.channel(f"127.0.0.1:{port}", ca, server_name=name)
    return tls.channel(f"127.0.0.1:{port}", ca, pair.key, pair.certificate, server_name=name)


@dataclass
class Running:
    server: Server
    port: int


@contextlib.asynccontextmanager
async def serving(
    doors: list[Any],
    services: list[Service],
    rules: dict[str, AccessRule],
    *,
    require_client: bool = True,
    options: tuple[tuple[str, int], ...] = (),
    shown: Principal = CONTROL,
) -> AsyncIterator[Running]:
    server = Server(grace=5.0)
    listener = Listener(
        "127.0.0.1:0",
        "listen",
        server_credentials(require_client=require_client, shown=shown),
        doors,
        services,
        rules,
        options,
    )
    port = server.bind(listener)
    await server.start()
    try:
        yield Running(server, port)
    finally:
        await server.stop()


@dataclass
class Clock:
    """A clock that goes when it is told to."""

    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def now(self) -> datetime:
        return self.time


async def failure(call: Callable[[], Any]) -> grpc.aio.AioRpcError:
    """The error a call fails with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call()
    return raised.value


def shown(port: int, ca: bytes, name: str = "127.0.0.1") -> str:
    """Serial number of what a server shows to a new connection."""
    context = ssl.create_default_context(cadata=ca.decode())
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as connection,
    ):
        der = connection.getpeercert(binary_form=True)
    assert der is not None
    return f"{x509.load_der_x509_certificate(der).serial_number:x}"


def hosts_of(cert_pem: bytes) -> tuple[list[str], list[str]]:
    """DNS names and IP addresses that a server's certificate was given beside its own two names."""
    certificate = x509.load_pem_x509_certificate(cert_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = names.get_values_for_type(x509.DNSName)
    outside = [host for host in hosts if host.rpartition(".")[2] != SERVER_ZONE]
    return outside, [str(address) for address in names.get_values_for_type(x509.IPAddress)]
