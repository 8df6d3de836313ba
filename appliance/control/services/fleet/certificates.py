"""The certificates of machines: which one counts, the next one, and the end of all of them.

One set of rules for nodes and gateways; `Machines` says where they differ. Rules kept here:
* of a request only the public key is used; the control plane chooses the name, the purpose
  (client only) and the time (10 days);
* the newest certificate counts, and the one before until the newest is shown for the first time:
  a machine whose last renewal was not answered has that one. It goes on for a minute more, for
  what is open; then, or when this process did not see that first time, it is refused, which the log
  says;
* when somebody renews with the one before in that minute, or recovers it at any time, although the
  newest was used, two hold the same key: the machine is evicted and must join again;
* one that has ended, at most 90 days ago, is replaced by proof of its key, under the same rules;
  never that of a machine that was evicted;
* joining again replaces the certificate before: it is refused from then on.

The attacks: a request for somebody else's name or for a CA certificate, a copied key (SPIRE and
Teleport notice it the same way), an old certificate found on a disk. Called by `identify` on every
call of a machine, by the enrolment and gateway services, and by `nodes`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, Table

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.control.auth import join_tokens, rules
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import ACCESS, NODES, QUEUE, ROUTING, Events
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import missing
from appliance.control.store import requests, tables
from appliance.control.store.database import Database, Transaction
from appliance.core.errors import FailedPrecondition, InvalidInput, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import LEAF_LIFETIME
from appliance.crypto.keys import Keyring
from appliance.crypto.reading import not_after, not_before, peer_identity, serial_of

RECOVERED_FOR = timedelta(days=90)
"""For so long after its end a certificate can be replaced by proof of its key."""
OVERLAP = timedelta(minutes=1)
"""How long the certificate before goes on once the newest was used; machines need 30 seconds."""
AT_REPLICAS = timedelta(hours=2)
"""For so long the one before of a gateway goes on at replicas: answers on open links end first."""
ALARM_EACH = timedelta(minutes=1)
EVICTED = "EVICTED"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Machines:
    """One kind of machine.

    Attributes:
        table: its rows.
        joined: the state of one that has just joined.
        events: what changes when one is evicted.
    """

    table: Table
    joined: str
    events: tuple[str, ...]


KINDS = {
    PrincipalKind.NODE: Machines(tables.node, "LOST", (ACCESS, NODES, QUEUE, ROUTING)),
    PrincipalKind.GATEWAY: Machines(tables.gateway, "READY", (ACCESS, ROUTING)),
}


def counting(newest: str, previous: str, *, used: bool) -> frozenset[str]:
    """Serial numbers of a machine's certificates that call, and renew without harm.

    The one before does until the newest was used; then it is a copy's, or that of a backup.
    """
    return frozenset(filter(None, (newest, "" if used else previous)))


def taken(row: Row[Any], now: datetime) -> frozenset[str]:
    """Serial numbers of a gateway's certificates that replicas take."""
    end = row.certificate_expire_time
    is_long_ago = end is not None and abs(now - (end - LEAF_LIFETIME)) > AT_REPLICAS
    used = row.certificate_used and is_long_ago
    return counting(row.certificate_serial, row.previous_serial, used=used)


def check_counts(row: Row[Any] | None, machine: Principal, serial: str) -> Row[Any]:
    """The row of a machine whose certificate is in `counting`. Raises Unauthenticated."""
    row = check_known(row, machine, serial)
    used = row.certificate_used
    if serial not in counting(row.certificate_serial, row.previous_serial, used=used):
        raise _replaced(machine)
    return row


def check_known(row: Row[Any] | None, machine: Principal, serial: str) -> Row[Any]:
    """The row of a machine that may call, with its newest certificate or the one before.

    Raises Unauthenticated.

    Args:
        row: of the machine; None when there is none.
        machine: which.
        serial: of the certificate that is shown.
    """
    name = machine.name
    if row is None or row.state == EVICTED:
        raise Unauthenticated(
            f"{name} was evicted or deleted: make a join token and join again", principal=name
        )
    if serial not in (row.certificate_serial, row.previous_serial):
        raise _replaced(machine)
    return row


def _replaced(machine: Principal) -> Unauthenticated:
    return Unauthenticated(
        f"this certificate of {machine.name} was replaced by a newer one: if its server does not "
        "have that, its key was copied; evict it and join again",
        principal=machine.name,
    )


def evict_in(
    transaction: Transaction, policies: PolicyStore, events: Events, machine: Principal
) -> None:
    """Evict a machine inside a transaction; join tokens of its name are void.

    Raises FailedPrecondition for one that has tokens and has not joined, NotFound for no machine.
    """
    kind = KINDS[machine.kind]
    changed = transaction.run(
        kind.table.update().where(kind.table.c.id == machine.id).values(state=EVICTED)
    )
    if not changed:
        if tokens := join_tokens.unused(transaction, machine):
            commands = (f"`appliance node revoke-join-token {token}`" for token in tokens)
            raise FailedPrecondition(
                f"{machine.name} has not joined: end what it could join with by"
                f" {' and '.join(commands)}"
            )
        raise missing(machine.name)
    join_tokens.revoke_all_of(transaction, machine)
    policies.after_revoking(transaction, rules.machine_link(machine.kind, machine.id))
    transaction.after_commit(lambda: events.publish(*kind.events))


def delete_in(
    transaction: Transaction, policies: PolicyStore, events: Events, machine: Principal
) -> None:
    """Delete a machine's row inside a transaction: its certificates count no more.

    Join tokens of its name are void.
    """
    kind = KINDS[machine.kind]
    transaction.run(kind.table.delete().where(kind.table.c.id == machine.id))
    requests.forget_about(transaction, machine.name)
    join_tokens.revoke_all_of(transaction, machine)
    policies.after_revoking(transaction, rules.machine_link(machine.kind, machine.id))
    transaction.after_commit(lambda: events.publish(*kind.events))


class Certificates:
    """The certificates of nodes and gateways.

    Args:
        clock: the time, aware.
    """

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        policies: PolicyStore,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._policies = policies
        self._events = events
        self._clock = clock
        self._first_used: dict[Principal, tuple[str, datetime]] = {}
        """Of each machine the newest certificate that was used, and when that was first seen."""
        self._alarmed: dict[Principal, datetime] = {}

    def check(self, machine: Principal, serial: str) -> None:
        """Raise Unauthenticated unless a machine may call with this certificate, now in use."""
        table = KINDS[machine.kind].table
        with self._database.read() as state:
            found = state.first(table.select().where(table.c.id == machine.id))
        row = check_known(found, machine, serial)
        if serial != row.certificate_serial and row.certificate_used:
            self._check_overlap(row, machine, serial)
        elif serial == row.certificate_serial and not row.certificate_used:
            # Before it is in the row: whoever reads there that it was used finds when.
            self._first_used[machine] = (serial, self._clock())
            with self._database.write() as transaction:
                transaction.run(
                    table.update()
                    .where(table.c.id == machine.id, table.c.certificate_serial == serial)
                    .values(certificate_used=True)
                )

    def at_replicas(self) -> rpc.GatewayCertificates:
        """The certificates of gateways that replicas take."""
        now = self._clock()
        with self._database.read() as state:
            rows = state.all(tables.gateway.select().where(tables.gateway.c.state != EVICTED))
        serials = [serial for row in rows for serial in sorted(taken(row, now))]
        found = rpc.GatewayCertificates(serials=serials)
        found.as_of.FromDatetime(now)
        return found

    def _check_overlap(self, row: Row[Any], machine: Principal, serial: str) -> None:
        """Raise Unauthenticated when the newest was used too long ago for the one before."""
        now = self._clock()
        newest, since = self._first_used.get(machine, ("", now))
        # Also a clock that was set back ends it.
        if newest == row.certificate_serial and abs(now - since) <= OVERLAP:
            return
        last = self._alarmed.get(machine)
        if last is None or abs(now - last) >= ALARM_EACH:
            self._alarmed[machine] = now
            logger.error(
                "a certificate of %s whose successor is in use is shown with its key: %s",
                machine.name,
                serial,
            )
        raise _replaced(machine)

    def owner_of(self, certificate: bytes) -> Principal:
        """Whose certificate it is, whenever it holds. Raises Unauthenticated."""
        ring = self._keyring
        try:
            end = not_after(certificate)
        except InvalidInput as error:
            raise Unauthenticated(error.message) from error
        found = peer_identity(
            certificate,
            ring.cluster_id,
            end - timedelta(seconds=1),
            need="client",
            ca_pem=ring.ca.certificate_pem,
        )
        if found.kind not in KINDS:
            raise Unauthenticated("this certificate is not one of a node or a gateway")
        return found

    def check_recoverable(self, machine: Principal, certificate: bytes) -> None:
        """Raise unless a machine's certificate has ended, or has not begun, and not too long ago.

        Raises:
            FailedPrecondition: it holds.
            Unauthenticated: it ended too long ago.
        """
        now, end = self._clock(), not_after(certificate)
        if not_before(certificate) <= now < end:
            raise FailedPrecondition(
                f"the certificate of {machine.name} holds until {end:%Y-%m-%d %H:%M}Z, so it is not"
                " replaced; if its server takes it for over, look at the clock of its server"
            )
        if now - end > RECOVERED_FOR:
            raise Unauthenticated(
                f"the certificate of {machine.name} ended more than {RECOVERED_FOR.days} days ago: "
                "make a join token and join again"
            )

    def join(
        self,
        transaction: Transaction,
        machine: Principal,
        request: str,
        columns: Mapping[str, Any],
    ) -> bytes:
        """The first certificate of a machine that has shown a token; any before are refused.

        Args:
            transaction: the one that used the token up; this is the last thing in it.
            machine: which; its row is made when there is none.
            request: PKCS #10, PEM.
            columns: what else its row says from now on.

        Raises InvalidInput.
        """
        kind, certificate = KINDS[machine.kind], self._issue(machine, request)
        row = transaction.first(kind.table.select().where(kind.table.c.id == machine.id))
        if row is None:
            transaction.run(
                kind.table.insert().values(
                    id=machine.id,
                    state=kind.joined,
                    certificate_serial=serial_of(certificate),
                    certificate_expire_time=not_after(certificate),
                    create_time=self._clock(),
                    **columns,
                )
            )
        else:
            mine = kind.table.update().where(kind.table.c.id == machine.id)
            transaction.run(mine.values(state=kind.joined, **columns))
            self._replace(transaction, machine, row, certificate, keep="")
        self._policies.after_granting(transaction, rules.machine_link(machine.kind, machine.id))
        transaction.after_commit(lambda: self._events.publish(ACCESS, NODES))
        return certificate

    def renew(self, caller: Caller, machine: Principal, serial: str, request: str) -> bytes:
        """The next certificate of a machine that shows the one with `serial`.

        Raises Unauthenticated when that counts no more; and evicts the machine, when its key was
        copied.
        """
        table, name = KINDS[machine.kind].table, machine.name
        with self._database.write() as transaction:
            found = transaction.first(table.select().where(table.c.id == machine.id))
            try:
                row = check_known(found, machine, serial)
            except Unauthenticated:
                if found is not None and found.state != EVICTED:
                    logger.error(  # noqa: TRY400  # no traceback: it is an alarm
                        "an old certificate of %s is shown with its key: %s", name, serial
                    )
                raise
            copied = serial != row.certificate_serial and row.certificate_used
            if copied:
                evict_in(transaction, self._policies, self._events, machine)
                caller.notes["evicted"] = name
            else:
                certificate = self._issue(machine, request)
                self._replace(transaction, machine, row, certificate, keep=serial)
                caller.notes["certificate"] = serial_of(certificate)
        if copied:
            logger.error("the key of %s was copied: evicted", name)
            raise Unauthenticated(
                f"two servers use the key of {name}: it was evicted; find out which one is real and"
                " let it join again",
                principal=name,
            )
        return certificate

    def _issue(self, machine: Principal, request: str) -> bytes:
        return self._keyring.ca.issue(
            request.encode(),
            machine,
            server=False,
            client=True,
            lifetime=LEAF_LIFETIME,
            now=self._clock(),
        )

    def _replace(
        self,
        transaction: Transaction,
        machine: Principal,
        row: Row[Any],
        certificate: bytes,
        *,
        keep: str,
    ) -> None:
        """Make `certificate` the newest; the one with serial `keep` may call until it is used."""
        table = KINDS[machine.kind].table
        transaction.run(
            table.update()
            .where(table.c.id == row.id)
            .values(
                certificate_serial=serial_of(certificate),
                certificate_expire_time=not_after(certificate),
                previous_serial=keep,
                certificate_used=False,
            )
        )
