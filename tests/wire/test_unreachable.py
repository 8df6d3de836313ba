"""What is said of a server that cannot be reached, by the gRPC in use and with real sockets."""

from __future__ import annotations

import ast
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc

from appliance.client.health import check
from appliance.core.addresses import host_port
from appliance.core.errors import Unavailable, Untrusted
from appliance.core.identity import PrincipalKind
from appliance.crypto.certs import make_csr, new_private_key
from appliance.wire import tls
from appliance.wire.unreachable import explain
from tests.fakes.wire import CONTROL, Pair, authority, issued, other_authority

APPLIANCE = Path(__file__).parents[2] / "appliance"
RIGHT = authority().certificate_pem
SPELLINGS = (
    *("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "GRPC_PROXY", "ALL_PROXY"),
)


def ended(days: int) -> Pair:
    """A certificate of the control plane made so many days ago for one day."""
    key, made = new_private_key(), datetime.now(UTC) - timedelta(days=days)
    certificate = authority().issue(
        make_csr(key), CONTROL, server=True, client=False, lifetime=timedelta(days=1), now=made
    )
    return Pair(key, certificate)


@contextlib.contextmanager
def health_server(pair: Pair | None) -> Iterator[str]:
    """A server that serves, with this certificate or without TLS: its address."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    service = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    if pair is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        credentials = tls.server_credentials(
            pair.key, pair.certificate, RIGHT, require_client=False
        )
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def answering(
    first: bytes, shake: Callable[[socket.socket], socket.socket] = lambda taken: taken
) -> Iterator[str]:
    """A TCP port that says something to each who connects, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken, _ = listener.accept()
                    with shake(taken) as link:
                        link.sendall(first)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def refusal(address: str, ca: bytes = RIGHT) -> Unavailable:
    with pytest.raises(Unavailable) as raised:
        check(address, ca, timeout=20)
    return raised.value


@pytest.mark.attack
def test_a_server_of_another_authority_is_said_to_be_one() -> None:
    with health_server(issued(PrincipalKind.CONTROL, "main", server=True)) as address:
        check(address, RIGHT, timeout=20)
        found = refusal(address, other_authority().certificate_pem)
    assert type(found) is Untrusted
    assert "is not one that the CA certificate in use vouches for (TLS says: " in found.message
    assert "issuer certificate" in found.message
    assert address in found.message


def test_a_certificate_that_has_ended() -> None:
    with health_server(ended(days=2)) as address:
        found = refusal(address)
    assert type(found) is Untrusted
    assert "not valid at this time (TLS says: certificate has expired): compare" in found.message


def test_a_certificate_from_the_future() -> None:
    with health_server(ended(days=-2)) as address:
        found = refusal(address)
    assert type(found) is Untrusted
    assert "not valid at this time (TLS says: certificate is not yet valid)" in found.message


@pytest.mark.attack
def test_a_server_of_another_kind() -> None:
    with health_server(issued(PrincipalKind.GATEWAY, "g", server=True)) as address:
        found = refusal(address)
    assert type(found) is Untrusted
    assert "another kind or name than the one that is meant: check the port" in found.message


def test_a_ca_certificate_that_is_none() -> None:
    garbage = b"-----BEGIN CERTIFICATE-----\nxxxx\n-----END CERTIFICATE-----\n"
    with health_server(issued(PrincipalKind.CONTROL, "main", server=True)) as address:
        found = refusal(address, garbage)
    assert type(found) is Untrusted
    assert "the CA certificate in use cannot be read" in found.message


def test_a_port_without_tls() -> None:
    with health_server(None) as address:
        found = refusal(address)
    assert type(found) is Unavailable
    assert f"what listens on {address} does not speak TLS: check the port" in found.message


def test_a_port_of_something_else() -> None:
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as address:
        assert f"what listens on {address} does not speak TLS" in refusal(address).message


def test_a_port_of_the_web(tmp_path: Path) -> None:
    pair = issued(PrincipalKind.CONTROL, "main", server=True)
    (tmp_path / "both.pem").write_bytes(pair.key + pair.certificate)
    web = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    web.load_cert_chain(tmp_path / "both.pem")
    web.set_alpn_protocols(["http/1.1"])
    with answering(b"", lambda taken: web.wrap_socket(taken, server_side=True)) as address:
        found = refusal(address)
    assert type(found) is Unavailable
    assert f"what listens on {address} speaks TLS, and not gRPC: check the port" in found.message


def test_a_port_that_hangs_up() -> None:
    with answering(b"") as address:
        assert "ended the connection at once: it may be starting" in refusal(address).message


def test_a_port_on_which_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = refusal(address)
    assert type(found) is Unavailable
    assert f"nothing listens on {address}: check the address, and that" in found.message


def test_an_ipv6_address_is_said_as_it_is_written() -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        address = host_port("::1", taken.getsockname()[1])
        found = refusal(address)
    assert f"nothing listens on {address}: check the address, and that" in found.message


def test_a_host_that_there_is_not() -> None:
    found = explain(
        "errors resolving nosuch.invalid:1: [field:hostname lookup error:address lookup failed for "
        "nosuch.invalid:1: Domain name not found]"
    )
    assert found.message == "there is no host nosuch.invalid: check how the address is written"


def test_what_is_not_known_is_not_guessed() -> None:
    for said in ("", "GOAWAY", "hostname lookup"):
        assert explain(said).message == (
            "the server cannot be reached: check its address and that it runs"
        )


@pytest.mark.attack
@pytest.mark.parametrize("plain", [True, False])
def test_no_proxy_of_the_environment_is_asked(
    monkeypatch: pytest.MonkeyPatch, *, plain: bool
) -> None:
    """Each of the spellings names a proxy that nobody runs."""
    for name in SPELLINGS:
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    pair = None if plain else issued(PrincipalKind.CONTROL, "main", server=True)
    with health_server(pair) as address:
        check(address, None if plain else RIGHT, timeout=20)


def test_every_channel_is_made_in_one_place() -> None:
    """So that none forgets an option: sizes, keep-alive, and that no proxy is asked."""
    makers = {"insecure_channel", "secure_channel", "intercept_channel"}
    found = {
        path.relative_to(APPLIANCE).as_posix()
        for path in APPLIANCE.rglob("*.py")
        if "api" not in path.relative_to(APPLIANCE).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute | ast.Name)
        and (node.attr if isinstance(node, ast.Attribute) else node.id) in makers
    }
    assert found == {"wire/tls.py"}
    assert ("grpc.enable_http_proxy", 0) in tls.CHANNEL_OPTIONS


def test_nothing_else_speaks_to_others_over_http() -> None:
    """Libraries that read `http_proxy` by themselves are in none of the appliance's processes."""
    clients = {"httpx", "requests", "urllib3", "aiohttp", "urllib.request", "http.client"}
    found = {
        name
        for path in APPLIANCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert found & clients == set()
