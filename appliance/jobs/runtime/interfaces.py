"""Which network interface this machine uses towards another: gloo and NCCL are told it by name.

Linux's own tables, and no packet is sent. Called by `ranks`.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path

from appliance.core.errors import Internal

_SIOCGIFADDR = 0x8915
_SIX = Path("/proc/net/if_inet6")


def use_interface_to(host: str) -> None:
    """Let gloo and NCCL talk on the interface whose address this machine uses towards `host`.

    Raises Internal when no interface has that address.
    """
    family, address = source_towards(host)
    interface = interface_of(family, address)
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    os.environ["NCCL_SOCKET_IFNAME"] = interface
    # NCCL takes IPv4 where an interface has both.
    os.environ["NCCL_SOCKET_FAMILY"] = "AF_INET6" if family == socket.AF_INET6 else "AF_INET"


def source_towards(host: str) -> tuple[socket.AddressFamily, str]:
    """Family and address that this machine calls a host from."""
    family, _, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        # Connecting a datagram socket sends nothing; it chooses the source address.
        probe.connect(place)
        return family, str(probe.getsockname()[0])


def interface_of(family: socket.AddressFamily, address: str) -> str:
    """Name of the interface that has an address. Raises Internal when none has."""
    names = _of_six(address) if family == socket.AF_INET6 else _of_four(address)
    if not names:
        raise Internal(f"no network interface of this node has the address {address}")
    return names[0]


def _of_six(address: str) -> list[str]:
    """proc(5): a line for each address, 32 hexadecimal digits first and the interface last."""
    wanted = ipaddress.IPv6Address(address.partition("%")[0]).packed.hex()
    lines = [line.split() for line in _SIX.read_text(encoding="ascii").splitlines()]
    return [line[-1] for line in lines if line[0] == wanted]


def _of_four(address: str) -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return [name for _, name in socket.if_nameindex() if _address(probe, name) == address]


def _address(probe: socket.socket, name: str) -> str:
    """IPv4 address of an interface (netdevice(7), SIOCGIFADDR); empty when it has none."""
    request = struct.pack("256s", name.encode()[:15])
    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
    except OSError:
        return ""
    return socket.inet_ntoa(answer[20:24])
