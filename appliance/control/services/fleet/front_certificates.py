"""The certificates that gateways show to their callers: for which names, and the next one.

Rules kept here:
* the names are those on record for the gateway, from `init` or from whoever made its join token; a
  gateway cannot ask for others; where none are on record, those that the control plane announces;
* such a certificate is for a server alone: nobody can call with it; it holds ten days.

The attack: a gateway whose key was taken asks for the name of another server of the site. Called by
the enrolment service (names) and the gateway service.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from datetime import datetime

from appliance.core.errors import InvalidInput
from appliance.core.identity import SERVER_ZONE, Principal
from appliance.crypto.certs import LEAF_LIFETIME, Authority
from appliance.crypto.reading import SHOWN_EARLY

MAX_HOSTS = 16
MAX_HOST = 253
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_LOCAL = ("localhost", "127.0.0.1", "::1")


def check_hosts(hosts: Collection[str]) -> tuple[str, ...]:
    """DNS names and IP addresses for a certificate, as given. Raises InvalidInput."""
    if len(hosts) > MAX_HOSTS:
        raise InvalidInput(f"a gateway has at most {MAX_HOSTS} hosts")
    for host in hosts:
        if not (_reachable(host) or _is_name(host)):
            raise InvalidInput(
                f"{host!r} is no host of a gateway: write a DNS name in lower case, not below "
                f"`.{SERVER_ZONE}`, or an IP address that clients can ask for",
                fields={"hosts": "must be DNS names or IP addresses"},
            )
    return tuple(hosts)


def names_of(hosts: Iterable[str]) -> tuple[list[str], list[str]]:
    """DNS names and IP addresses of a gateway: its hosts, and this machine's own."""
    every = list(dict.fromkeys((*_LOCAL, *hosts)))
    addresses = [str(ipaddress.ip_address(host)) for host in every if _is_address(host)]
    return [host for host in every if not _is_address(host)], addresses


def issue(
    authority: Authority, gateway: Principal, hosts: Iterable[str], request: str, now: datetime
) -> bytes:
    """A front certificate, PEM.

    Args:
        authority: of the appliance.
        gateway: whose.
        hosts: on record for it.
        request: PKCS #10, PEM; of it only the key is used.
        now: aware time.

    Raises InvalidInput.
    """
    names, addresses = names_of(hosts)
    return authority.issue(
        request.encode(),
        gateway,
        server=True,
        client=False,
        dns=names,
        ips=addresses,
        lifetime=LEAF_LIFETIME,
        early=SHOWN_EARLY,
        now=now,
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _reachable(host: str) -> bool:
    """Whether it is an address that a client can name: not `::`, and without a scope of its own."""
    if "%" in host or not _is_address(host):
        return False
    return not ipaddress.ip_address(host).is_unspecified


def _is_name(host: str) -> bool:
    """Whether it is a DNS name; one that ends in a number is an address that is none (RFC 1123)."""
    fits = len(host) <= MAX_HOST and _HOST.fullmatch(host) is not None
    last = host.rpartition(".")[2]
    return fits and last != SERVER_ZONE and not last.isdigit()
