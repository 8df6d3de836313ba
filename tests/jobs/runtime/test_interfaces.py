"""The interface that this machine uses towards another, with either kind of address."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from appliance.core.errors import Internal
from appliance.jobs.runtime import interfaces

SET = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_SOCKET_FAMILY")


@pytest.mark.parametrize(
    ("host", "family"),
    [("127.0.0.1", "AF_INET"), ("::1", "AF_INET6")],
)
def test_loopback_is_lo(host: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SET:
        monkeypatch.setenv(name, "")
    interfaces.use_interface_to(host)
    assert [os.environ[name] for name in SET] == ["lo", "lo", family]


@pytest.mark.parametrize(
    ("family", "address"),
    [(socket.AF_INET, "192.0.2.77"), (socket.AF_INET6, "2001:db8::77")],
)
def test_an_address_of_another_machine_has_none(family: socket.AddressFamily, address: str) -> None:
    with pytest.raises(Internal, match=address):
        interfaces.interface_of(family, address)


def test_every_address_of_this_machine_has_its_interface() -> None:
    with Path("/proc/net/if_inet6").open(encoding="ascii") as table:
        lines = [line.split() for line in table]
    for digits, *_, name in lines:
        address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
        assert interfaces.interface_of(socket.AF_INET6, address) in {
            other for found, *_, other in lines if found == digits
        }, name
