"""Where an appliance listens and is reached: what cannot work is refused."""

from __future__ import annotations

import socket

import pytest

from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.site import PORTS, Site


def test_a_plain_one_is_on_loopback() -> None:
    site = Site()
    site.check_hosts()
    assert (site.listens("api"), site.reached("openai")) == ("127.0.0.1:7443", "127.0.0.1:8444")


def test_others_reach_it_where_it_listens_unless_said_otherwise() -> None:
    site = Site("10.0.0.5")
    site.check_hosts()
    assert (site.reached("api"), site.listens("api")) == ("10.0.0.5:7443", "10.0.0.5:7443")
    assert site.listens("node-health") == "127.0.0.1:7446"
    assert Site("0.0.0.0", "head.example").reached("api") == "head.example:7443"


@pytest.mark.parametrize("listen", ["::1", "[::1]"])
def test_ipv6_stands_in_brackets_before_a_port(listen: str) -> None:
    site = Site(listen)
    site.check_hosts()
    assert (site.host, site.listens("api"), site.reached("api")) == (
        *("::1", "[::1]:7443", "[::1]:7443"),
    )


@pytest.mark.parametrize(
    ("listen", "address", "said"),
    [
        ("x y", None, "--listen 'x y' is no host: write an address of this machine"),
        ("", None, "--listen '' is no host"),
        ("127.0.0.1:7443", None, "is no host"),
        ("0.0.0.0", None, "say with --address under which host others reach it"),
        ("::", None, "say with --address"),
        ("127.0.0.1", "x y", "--address 'x y' is no host that others can reach"),
        ("127.0.0.1", "", "--address '' is no host"),
        ("127.0.0.1", "head:7443", "without a port"),
        ("0.0.0.0", "0.0.0.0", "--address '0.0.0.0' is no host that others can reach"),
        ("10.0.0.5", "127.0.0.1", "--address 127.0.0.1 does not lead to --listen 10.0.0.5"),
        ("127.0.0.1", "10.0.0.5", "does not lead to --listen 127.0.0.1"),
        ("127.0.0.1", "::1", "does not lead to --listen 127.0.0.1"),
        ("0.0.0.0", "fd00::1", "does not lead to --listen 0.0.0.0"),
        ("::1", "fd00::1", "does not lead to --listen ::1: give the same address for both, or "),
        ("::1", "fd00::1", "or listen on ::"),
        ("::1%lo", None, "is no host"),
        ("fd00::5", "[fd00::5]:7443", "without a port"),
    ],
)
def test_hosts_that_cannot_work(listen: str, address: str | None, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Site(listen, address).check_hosts()
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("10.0.0.5", "192.0.2.7"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("::", "fd00::1"),
        ("::", "10.0.0.5"),
        ("[fd00::5]", "fd00::5"),
        ("::1", "localhost"),
    ],
)
def test_hosts_that_may_work(listen: str, address: str) -> None:
    Site(listen, address).check_hosts()


@pytest.mark.parametrize("listen", ["nosuch.invalid", "192.0.2.1"])
def test_only_an_address_of_this_machine_is_listened_on(listen: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"set --listen to an address of this machine"):
        Site(listen).check_listen()


def test_taken_ports_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = dict.fromkeys(PORTS, 0) | {name: i for i, name in enumerate(PORTS, 50_000)}
        with pytest.raises(FailedPrecondition, match=f"port {port} is in use: .* set --port-base"):
            Site(ports=ports | {"api": port}).check_ports("--port-base")
    with pytest.raises(InvalidInput, match="port 7444 is that of api and machines"):
        Site(ports=dict(PORTS) | {"api": 7444}).check_ports("--port-base")
