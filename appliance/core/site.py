"""Where an appliance on one server listens, and under which host others reach it.

Rule kept here: what cannot work is refused before anything is made: a host that is none, an address
of another machine, one that does not lead where the appliance listens, a port that is taken.

Called by `appliance init` and by the control plane's own.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.core.addresses import check_free, host_port, is_host
from appliance.core.errors import InvalidInput

LOOPBACK = "127.0.0.1"
PORTS: Mapping[str, int] = {
    "api": 7443,
    "machines": 7444,
    "gateway": 8443,
    "openai": 8444,
    "metrics": 7445,
    "node-health": 7446,
    "node-metrics": 7447,
    "gateway-metrics": 8445,
}
"""Ports of an appliance on one server, in the order in which `--port-base` numbers them."""
_OPEN = frozenset({"api", "machines", "gateway", "openai"})
"""The others are on loopback always."""


@dataclass(frozen=True)
class Site:
    """One server of an appliance.

    Args:
        listen: host to listen on.
        address: host under which nodes, gateways and callers reach this server; None: `listen`.
        ports: by name, all of `PORTS`.
    """

    listen: str = LOOPBACK
    address: str | None = None
    ports: Mapping[str, int] = field(default_factory=lambda: dict(PORTS))

    @property
    def host(self) -> str:
        """The host under which others reach this server; IPv6 without brackets."""
        return _bare(self.listen if self.address is None else self.address)

    def listens(self, name: str) -> str:
        """`host:port` where what has this name listens."""
        return host_port(_bare(self.listen) if name in _OPEN else LOOPBACK, self.ports[name])

    def reached(self, name: str) -> str:
        """`host:port` under which others reach it."""
        return host_port(self.host, self.ports[name])

    def check_hosts(self) -> None:
        """Raise InvalidInput when the two hosts cannot be those of one server."""
        listen, listening = _bare(self.listen), _ip(self.listen)
        if not is_host(listen):
            raise InvalidInput(
                f"--listen {self.listen!r} is no host: write an address of this machine, such as "
                "127.0.0.1, or 0.0.0.0 for all it has"
            )
        if self.address is None and listening is not None and listening.is_unspecified:
            raise InvalidInput(
                f"--listen {listen} means every address of this machine: say with --address under "
                "which host others reach it"
            )
        address = _ip(self.host)
        if not is_host(self.host) or (address is not None and address.is_unspecified):
            raise InvalidInput(
                f"--address {self.address!r} is no host that others can reach: write the name or "
                "the IP address of this machine, without a port"
            )
        if listening is not None and address is not None and not _leads(address, listening):
            everywhere = "::" if listening.version == 6 else "0.0.0.0"  # noqa: S104 - only said
            raise InvalidInput(
                f"--address {self.host} does not lead to --listen {listen}: give the same address "
                f"for both, or listen on {everywhere}"
            )

    def check_listen(self) -> None:
        """Raise when nothing can listen there: InvalidInput, or FailedPrecondition."""
        self.check_hosts()
        check_free(host_port(_bare(self.listen), 0), "--listen")

    def check_ports(self, setting: str) -> None:
        """Raise when one of the ports is taken, by another of them or by another process.

        `setting` chooses them; raises InvalidInput or FailedPrecondition.
        """
        (port, count), *_ = Counter(self.ports.values()).most_common(1)
        if count > 1:
            names = " and ".join(name for name, other in self.ports.items() if other == port)
            raise InvalidInput(f"port {port} is that of {names}: give each a port of its own")
        for name in self.ports:
            check_free(self.listens(name), setting)


_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def _bare(host: str) -> str:
    """The host without the brackets of IPv6."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") and ":" in host else host


def _ip(host: str) -> _Ip | None:
    try:
        return ipaddress.ip_address(_bare(host))
    except ValueError:
        return None


def _leads(address: _Ip, listening: _Ip) -> bool:
    """Whether who calls `address` can come out at `listening`; between machines, nobody knows."""
    if listening.is_unspecified:
        # `::` takes calls of IPv4 too; `0.0.0.0` takes none of IPv6.
        return listening.version == 6 or address.version == 4
    if address == listening:
        return True
    return not address.is_loopback and not listening.is_loopback
