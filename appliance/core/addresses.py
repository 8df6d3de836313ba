"""Addresses, `host:port`: one way to write them, one to read them, and whether they can be used.

Rules kept here:
* an IPv6 address stands in brackets wherever a port follows, `[::1]:7443`; without them nobody can
  say where the port begins;
* a taken port, a missing right or a wrong address is one sentence that names the setting.

Called by whatever joins, reads or listens on an address.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
from typing import Any

from appliance.core.errors import FailedPrecondition, InvalidInput

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
MAX_NAME = 253
MEETING_PORT = 29400
"""The first port at which ranks of several nodes meet."""
PORTS_TRIED = 1000


def host_port(host: str, port: int) -> str:
    """`host:port`; an IPv6 address in brackets, whether it came with them or not."""
    bare = host.removeprefix("[").removesuffix("]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def split_address(address: str, setting: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises InvalidInput naming the setting."""
    host, colon, port = address.rpartition(":")
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 1 << 16
    if not colon or not host or number >= 1 << 16:
        raise InvalidInput(f"{setting}: {address!r} is not host:port, such as 127.0.0.1:7443")
    bare = host.removeprefix("[").removesuffix("]")
    if ":" in host and host != f"[{bare}]":
        raise InvalidInput(
            f"{setting}: {address!r} is not host:port: an IPv6 address stands in brackets, such as "
            "[::1]:7443"
        )
    return bare, number


def is_host(text: str) -> bool:
    """Whether it is an IP address or the name of a host (RFC 1123), and nothing beside that."""
    try:
        return "%" not in str(ipaddress.ip_address(text))
    except ValueError:
        return len(text) <= MAX_NAME and _NAME.fullmatch(text) is not None


def place_of(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Family and socket address of a host, which may be a name; the first of them.

    Raises OSError when there is no such host.
    """
    family, _, _, _, place = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, place


def check_free(address: str, setting: str) -> None:
    """Raise FailedPrecondition with a sentence when nothing can listen on the address now."""
    host, port = split_address(address, setting)
    try:
        family, place = place_of(host, port)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise _cannot_listen(error, address, setting) from error


def _cannot_listen(error: OSError, address: str, setting: str) -> FailedPrecondition:
    port = address.rpartition(":")[2]
    if error.errno == errno.EADDRINUSE:
        return FailedPrecondition(
            f"port {port} is in use: stop what listens on {address}, "
            f"or set {setting} to another port",
            address=address,
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        why = f"this user may not listen on port {port}"
    else:
        why = error.strerror or str(error)
    return FailedPrecondition(
        f"cannot listen on {address} ({why}): set {setting} to an address of this machine",
        address=address,
    )


def free_ports(host: str, first: int = MEETING_PORT, count: int = 8) -> list[int]:
    """The first ports of an address of this machine on which nobody listens, as the system says.

    Args:
        host: an address or a name of this machine.
        first: the lowest.
        count: how many to find, among the next `PORTS_TRIED`.
    """
    try:
        family, (address, *_) = place_of(host, 0)
    except OSError:
        return []
    found: list[int] = []
    for port in range(first, first + PORTS_TRIED):
        if len(found) == count:
            break
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As whoever listens there does: what is left of connections that ended is in no way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((address, port))
                found.append(port)
    return found
