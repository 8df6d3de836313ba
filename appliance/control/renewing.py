"""A new certificate for a gateway, made on the control plane's own server.

A node renews its certificate itself, over the connection it has. A gateway's is shown to people's
programs too, is read when the gateway starts, and holds for a year; it is renewed by whoever may
read the keys, before it ends.

Rules kept here:
* the control plane must not run: its lock is taken, so there is one writer of state and audit log;
* the key, the names and the addresses stay the same; only the time is new. Where the key was lost
  or cannot be read it gets another one, and where the certificate was, the names that `init` gave
  it;
* from now on the control plane refuses the certificate before;
* intent and result are in the audit log, under the method `gateway-certificate` and no principal:
  the operating system, not the appliance, says who may run it.

Called by `python -m appliance.control --config control.toml gateway-certificate`, and by
`starting`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Row

from appliance.control.audit.record import Entry
from appliance.control.config import ControlConfig
from appliance.control.opening import Opened, offline, open_data
from appliance.control.services.nodes import EVICTED
from appliance.control.setup import GATEWAY_LIFETIME, front_names
from appliance.control.store import tables
from appliance.core.addresses import split_address
from appliance.core.errors import FailedPrecondition
from appliance.core.files import read_secret, write_durably
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import (
    hosts_of,
    is_certificate,
    is_pair,
    is_private_key,
    make_csr,
    new_private_key,
    not_after,
    not_before,
    peer_identity,
    serial_of,
)

METHOD = "gateway-certificate"
SOON = timedelta(days=45)
"""Time before its end from which on a certificate is renewed when that can be done."""


@dataclass(frozen=True)
class Renewed:
    """Name of the gateway, the file of its new certificate, and when that ends."""

    gateway: str
    path: Path
    expire_time: datetime


@dataclass(frozen=True)
class _Shown:
    """What callers of a gateway see: its row, names, addresses, and certificate if it is there."""

    row: Row[Any]
    hosts: list[str]
    addresses: list[str]
    certificate: bytes | None


def renew(settings: ControlConfig, clock: Callable[[], datetime]) -> Renewed:
    """Make a new certificate for the gateway of the data directory, also when the old one is over.

    Raises:
        FailedPrecondition: the control plane runs, its data directory is not in order, or there is
            no gateway in it that may call.
        Unauthenticated: what lies there is not a certificate of this appliance.
        AuditUnavailable: it cannot be recorded; then nothing has changed.
    """
    with closing(open_data(settings, clock)) as opened:
        return renew_in(opened, settings, clock(), offline())


def why_renew(opened: Opened, settings: ControlConfig, now: datetime) -> str:
    """Why the gateway of a data directory needs a new certificate; empty when it does not.

    Raises as `renew` does.
    """
    shown = _shown(opened, settings)
    key = _key(opened)
    if shown.certificate is None or key is None:
        return "its key or its certificate was missing or could not be read"
    if not is_pair(key, shown.certificate):
        return "the one before was not that of its key"
    if serial_of(shown.certificate) != shown.row.certificate_serial:
        return "the control plane knows another one"
    return _why_by_now(shown.certificate, now)


def _why_by_now(certificate: bytes, now: datetime) -> str:
    begin, end = not_before(certificate), not_after(certificate)
    if now >= end:
        return f"the one before ended on {end:%Y-%m-%d %H:%M}Z"
    if end - now < SOON:
        return f"the one before ends on {end:%Y-%m-%d}"
    if now < begin:
        return f"the one before begins on {begin:%Y-%m-%d %H:%M}Z, made under a wrong clock"
    return ""


def renew_in(
    opened: Opened, settings: ControlConfig, now: datetime, by: Mapping[str, str]
) -> Renewed:
    """As `renew`, in an open data directory that nobody serves yet; `by` is for the record."""
    path, log, shown = _certificate_file(opened), opened.log, _shown(opened, settings)
    gateway = Principal(PrincipalKind.GATEWAY, shown.row.id)
    log.append(Entry("intent", method=METHOD, resource=gateway.name, details=dict(by))).result()
    key = _key(opened)
    if key is None:
        key = new_private_key()
        # Until the certificate is there too, the two are no pair, which is a reason to do it again.
        write_durably(_key_file(opened), key)
    certificate = opened.keyring.ca.issue(
        make_csr(key),
        gateway,
        server=True,
        client=True,
        dns=shown.hosts,
        ips=shown.addresses,
        lifetime=GATEWAY_LIFETIME,
        now=now,
    )
    with opened.database.write() as transaction:
        transaction.run(
            tables.gateway.update()
            .where(tables.gateway.c.id == gateway.id)
            .values(certificate_serial=serial_of(certificate))
        )
        # Last in the transaction: when it cannot be written, the certificate before stays good.
        write_durably(path, certificate)
    made = {**by, "made": {"certificate": serial_of(certificate)}}
    log.append(
        Entry("result", method=METHOD, resource=gateway.name, outcome="OK", details=made)
    ).result()
    return Renewed(gateway.name, path, not_after(certificate))


def _certificate_file(opened: Opened) -> Path:
    return opened.data.gateway / "cert.pem"


def _key_file(opened: Opened) -> Path:
    return opened.data.gateway / "key.pem"


def _key(opened: Opened) -> bytes | None:
    """The gateway's private key; None where it was lost, or is none."""
    path = _key_file(opened)
    if not path.exists():
        return None
    key = read_secret(path)
    return key if is_private_key(key) else None


def _shown(opened: Opened, settings: ControlConfig) -> _Shown:
    """What the gateway shows; where its certificate was lost, what `init` made it show."""
    path = _certificate_file(opened)
    certificate = read_secret(path) if path.exists() else b""
    if is_certificate(certificate):
        return _Shown(_row_of(opened, certificate), *hosts_of(certificate), certificate)
    with opened.database.read() as state:
        rows = state.all(tables.gateway.select().where(tables.gateway.c.state != EVICTED))
    if len(rows) != 1:
        raise FailedPrecondition(
            f"{path} is missing or no certificate, and there are {len(rows)} gateways: put it back"
            " from your backup"
        )
    host, _ = split_address(settings.gateway.grpc, "gateway.grpc")
    return _Shown(rows[0], *front_names(host), None)


def _row_of(opened: Opened, certificate: bytes) -> Row[Any]:
    """Of whose certificate it is, as of its last moment.

    Raises FailedPrecondition when that is not a gateway that may call.
    """
    ring = opened.keyring
    last = not_after(certificate) - timedelta(seconds=1)
    found = peer_identity(
        certificate, ring.cluster_id, last, need="server", ca_pem=ring.ca.certificate_pem
    )
    with opened.database.read() as state:
        row = state.first(tables.gateway.select().where(tables.gateway.c.id == found.id))
    if found.kind is not PrincipalKind.GATEWAY or row is None or row.state == EVICTED:
        raise FailedPrecondition(f"{found} is not a gateway that may call: it gets no certificate")
    return row
