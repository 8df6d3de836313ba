"""A join token made on the control plane's own server, by whoever may read its keys.

`appliance node create-join-token` and `appliance gateway create-join-token` are the way for people:
they need a session and a fresh second factor. This one is for automation that sets the servers up,
when nobody has logged in yet.

Rules kept here:
* the control plane must not run: its lock is taken, so there is one writer of state and audit log;
* intent and result are in the audit log, under the method `join-token` and no principal: the
  operating system, not the appliance, says who may run it;
* a machine that was evicted gets none unless it is said that it may come back: to evict was a
  decision;
* the token is stored as a keyed digest, like every other.

Called by `python -m appliance.control --config control.toml join-token`, and by `starting`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta

from appliance.control.audit.record import AuditEntry
from appliance.control.auth import join_tokens
from appliance.control.auth.join_tokens import NewJoinToken
from appliance.control.bootstrap.opening import Opened, offline, open_data
from appliance.control.config import ControlConfig
from appliance.control.services.fleet import front_certificates
from appliance.control.services.fleet.certificates import EVICTED, KINDS
from appliance.core import names
from appliance.core.errors import FailedPrecondition
from appliance.core.identity import Principal

METHOD = "join-token"
LIFETIME = timedelta(hours=1)
"""A playbook may install for long between making a token and starting the agent."""


@dataclass(frozen=True)
class Invitation:
    """What a machine needs to join: the token, and the fingerprint of the authority."""

    token: NewJoinToken
    ca_fingerprint: str


def make(
    settings: ControlConfig,
    machine: Principal,
    clock: Callable[[], datetime],
    hosts: Sequence[str] = (),
    *,
    readmit: bool = False,
) -> Invitation:
    """Make a token with which one server may join as `machine`, once, within an hour.

    Args:
        settings: of the control plane.
        machine: a node or a gateway.
        clock: the time, aware.
        hosts: names and addresses under which clients reach a gateway; none: as before.
        readmit: whether it may come back after an eviction.

    Raises:
        InvalidInput: the machine cannot be called so, or a host is none.
        FailedPrecondition: the control plane runs, its data directory is not in order, or the
            machine was evicted and may not come back.
        AuditUnavailable: it cannot be recorded; then there is no token.
    """
    names.check_id(machine.id, machine.kind.path)
    front_certificates.check_hosts(hosts)
    with closing(open_data(settings, clock)) as opened:
        if not readmit:
            _check_not_evicted(opened, machine)
        return invite(opened, machine, clock(), offline(), hosts)


def _check_not_evicted(opened: Opened, machine: Principal) -> None:
    table = KINDS[machine.kind].table
    with opened.database.read() as state:
        row = state.first(table.select().where(table.c.id == machine.id))
    if row is not None and row.state == EVICTED:
        raise FailedPrecondition(
            f"{machine.name} was evicted: add --readmit if it may come back (in the playbook, name "
            "it in control_readmit)"
        )


def invite(
    opened: Opened,
    machine: Principal,
    now: datetime,
    by: Mapping[str, str],
    hosts: Sequence[str] = (),
) -> Invitation:
    """The same in an open data directory that nobody serves yet.

    Args:
        opened: the data directory.
        machine: a node or a gateway.
        now: aware time.
        by: who asks for it, for the record.
        hosts: of a gateway.

    Raises AuditUnavailable.
    """
    log, keyring, name = opened.log, opened.keyring, machine.name
    told: dict[str, object] = {**by, **({"asked": {"hosts": list(hosts)}} if hosts else {})}
    log.append(AuditEntry("intent", method=METHOD, resource=name, details=told)).result()
    with opened.database.write() as transaction:
        token = join_tokens.create(
            transaction, keyring.token_hmac, machine, "", now, lifetime=LIFETIME, hosts=hosts
        )
    made = {"token_id": token.id, "expire_time": token.expire_time.isoformat()}
    details = {**told, "made": made}
    log.append(
        AuditEntry("result", method=METHOD, resource=name, outcome="OK", details=details)
    ).result()
    return Invitation(token, keyring.ca.fingerprint())
