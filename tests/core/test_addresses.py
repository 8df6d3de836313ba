"""Addresses are written and read one way, IPv6 in brackets."""

from __future__ import annotations

import socket

import pytest

from appliance.core.addresses import check_free, free_ports, host_port, is_host, split_address
from appliance.core.errors import FailedPrecondition, InvalidInput


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1:7443"),
        ("::1", "[::1]:7443"),
        ("[::1]", "[::1]:7443"),
        ("head.lan", "head.lan:7443"),
    ],
)
def test_what_is_joined_is_split_again(host: str, address: str) -> None:
    assert host_port(host, 7443) == address
    assert split_address(address, "listen") == (host.strip("[]"), 7443)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "7443",
        ":7443",
        "h:",
        "h:x",
        "h:-1",
        "h:65536",
        "h:" + "1" * 5000,
        "h:\uff11",
        "::1:7443",
        "::1",
        "[::1:7443",
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(InvalidInput, match=r"^listen: "):
        split_address(address, "listen")


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "head", "head-1.lan", "a.b.", "1.example"])
def test_hosts(text: str) -> None:
    assert is_host(text)


@pytest.mark.parametrize(
    "text",
    ["", "x y", "-a", "a-", "a..b", "a:1", "http://a", "fe80::1%eth0", "a_b", "a\n", "a" * 64, "*"],
)
def test_what_is_no_host(text: str) -> None:
    assert not is_host(text)


def test_a_taken_port_and_an_address_elsewhere_are_sentences() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = host_port(*taken.getsockname())
        with pytest.raises(FailedPrecondition, match=r"is in use: stop .*, or set x to another"):
            check_free(address, "x")
    check_free(address, "x")
    for place in ("192.0.2.1:0", "nosuch.invalid:0"):
        with pytest.raises(FailedPrecondition, match=r"cannot listen on .* of this machine"):
            check_free(place, "x")


def test_ports_are_free_when_nobody_listens_on_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        found = free_ports("127.0.0.1", taken - 1, 3)
        assert taken not in found
        assert len(found) == 3
        assert all(port >= taken - 1 for port in found)
        # One that listens on every address is in the way too.
        with socket.create_server(("", 0)) as everywhere:
            assert everywhere.getsockname()[1] not in free_ports(
                "127.0.0.1", everywhere.getsockname()[1], 2
            )


def test_what_is_no_address_of_this_machine_has_no_ports() -> None:
    assert free_ports("192.0.2.1") == []
