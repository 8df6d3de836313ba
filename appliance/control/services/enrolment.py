"""How a server becomes a node and stays one: join tokens, certificates, renewal.

Rules kept here:
* a join token is used up in the transaction that makes the node: of two at once one wins;
* of the request only the public key is used; the control plane chooses the name, the purpose
  (client only) and the time (24 hours);
* joining again under the same name, with a new token, replaces the certificate before: the old one
  is refused from then on;
* a certificate is renewed with itself; when somebody renews with the one before although the newest
  was used already, two hold the same key: the node is evicted and must join again.

The attacks: a join token used twice, a request for somebody else's name or for a CA certificate, a
copied node key (SPIRE and Teleport notice it the same way). Called by the RPCs and `identify`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from appliance.api.agent.v1 import agent_service_pb2, enrolment_service_pb2
from appliance.api.nodes.v1 import node_service_pb2
from appliance.control.auth import escalation, join_tokens, rules
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import ACCESS, NODES, Events
from appliance.control.services import paging
from appliance.control.services.caller import Caller
from appliance.control.services.nodes import EVICTED, LOST, Nodes
from appliance.control.services.resources import timestamp
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.core import names
from appliance.core.errors import Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import serial_of
from appliance.crypto.keys import Keyring

LIFETIME = timedelta(hours=24)
logger = logging.getLogger(__name__)


class NodeCertificates:
    """Which certificate of a node counts, and whether the newest was used yet.

    What was used is remembered in memory: after a restart a node whose last renewal was not
    answered may renew once more with the certificate before.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._used: dict[str, str] = {}

    def check(self, node: str, serial: str) -> None:
        """Raise Unauthenticated unless a node may call with this certificate."""
        with self._database.read() as state:
            row = state.first(tables.node.select().where(tables.node.c.id == node))
        name = names.node(node)
        if row is None or row.state == EVICTED:
            raise Unauthenticated(
                f"{name} was evicted: make a join token and join again", principal=name
            )
        if serial == row.certificate_serial:
            with self._lock:
                self._used[node] = serial
        elif serial != row.previous_serial:
            raise Unauthenticated(
                f"this certificate of {name} was replaced by a newer one: if its server does not "
                "have that, its key was copied; evict it and join again",
                principal=name,
            )

    def is_copied(self, row: Any, serial: str) -> bool:  # noqa: ANN401  # a row of SQLAlchemy
        """Whether whoever renews with `serial` is not the one who has used the newest."""
        with self._lock:
            return bool(
                serial != row.certificate_serial
                and self._used.get(row.id) == row.certificate_serial
            )


class Enrolment:
    """Join tokens and node certificates."""

    def __init__(  # noqa: PLR0913  # what joining touches
        self,
        *,
        database: Database,
        keyring: Keyring,
        policies: PolicyStore,
        nodes: Nodes,
        certificates: NodeCertificates,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._policies = policies
        self._nodes = nodes
        self._certificates = certificates
        self._events = events
        self._clock = clock

    def create_join_token(
        self, caller: Caller, request: node_service_pb2.CreateJoinTokenRequest
    ) -> node_service_pb2.CreateJoinTokenResponse:
        """A token with which one server may join under this name within ten minutes."""
        node = names.check_id(request.node_id, "node_id")
        escalation.check_lets_in(self._policies.current(), caller.principal)
        with self._database.write() as transaction:
            made = join_tokens.create(
                transaction,
                self._keyring.token_hmac,
                node,
                caller.principal.name,
                self._clock(),
            )
        return node_service_pb2.CreateJoinTokenResponse(
            token=made.text,
            token_id=made.id,
            ca_fingerprint=self._keyring.ca.fingerprint(),
            expire_time=timestamp(made.expire_time),
        )

    def list_join_tokens(
        self, caller: Caller, request: node_service_pb2.ListJoinTokensRequest
    ) -> node_service_pb2.ListJoinTokensResponse:
        """One page of the join tokens that can still be used, by id."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        with self._database.read() as state:
            rows = join_tokens.usable(
                state, self._clock(), after=str(after[0]) if after else "", limit=size + 1
            )
        page, token = paging.cut(rows, size, lambda row: (row.id,))
        return node_service_pb2.ListJoinTokensResponse(
            join_tokens=[
                node_service_pb2.JoinToken(
                    id=row.id,
                    node=names.node(row.node),
                    creator=row.creator,
                    create_time=timestamp(row.create_time),
                    expire_time=timestamp(row.expire_time),
                )
                for row in page
            ],
            next_page_token=token,
        )

    def revoke_join_token(
        self, caller: Caller, request: node_service_pb2.RevokeJoinTokenRequest
    ) -> node_service_pb2.RevokeJoinTokenResponse:
        """End a join token; no server can join with it once this returns."""
        with self._database.write() as transaction:
            node = join_tokens.revoke(transaction, request.token_id)
        caller.notes["node"] = names.node(node)
        return node_service_pb2.RevokeJoinTokenResponse()

    def join(
        self, caller: Caller, request: enrolment_service_pb2.JoinRequest
    ) -> enrolment_service_pb2.JoinResponse:
        """Exchange a join token and a certificate request for a node's certificate."""
        now = self._clock()
        with self._database.write() as transaction:
            node = join_tokens.consume(transaction, self._keyring.token_hmac, request.token, now)
            caller.notes["principal"] = names.node(node)
            certificate = self._issue(node, request.certificate_request, now)
            self._store(transaction, node, certificate, now)
            caller.notes["certificate"] = serial_of(certificate)
        return enrolment_service_pb2.JoinResponse(
            node=names.node(node),
            certificate=certificate.decode(),
            ca_certificate=self._keyring.ca.certificate_pem.decode(),
            cluster_id=self._keyring.cluster_id,
        )

    def renew(
        self, caller: Caller, request: agent_service_pb2.RenewCertificateRequest
    ) -> agent_service_pb2.RenewCertificateResponse:
        """Replace the calling node's certificate.

        Raises Unauthenticated, and evicts the node, when its key was copied.
        """
        node, now = caller.principal.id, self._clock()
        with self._database.write() as transaction:
            row = transaction.first(tables.node.select().where(tables.node.c.id == node))
            copied = row is None or self._certificates.is_copied(row, caller.credential)
            if copied:
                self._nodes.put_out(transaction, node)
                caller.notes["evicted"] = names.node(node)
            else:
                certificate = self._issue(node, request.certificate_request, now)
                self._replace(transaction, row, certificate, keep=caller.credential)
                caller.notes["certificate"] = serial_of(certificate)
        if copied:
            logger.error("the key of %s was copied: evicted", names.node(node))
            raise Unauthenticated(
                f"two servers use the key of {names.node(node)}: it was evicted; find out which "
                "one is real and let it join again",
                principal=names.node(node),
            )
        return agent_service_pb2.RenewCertificateResponse(certificate=certificate.decode())

    def _issue(self, node: str, certificate_request: str, now: datetime) -> bytes:
        return self._keyring.ca.issue(
            certificate_request.encode(),
            Principal(PrincipalKind.NODE, node),
            server=False,
            client=True,
            lifetime=LIFETIME,
            now=now,
        )

    def _store(
        self, transaction: Transaction, node: str, certificate: bytes, now: datetime
    ) -> None:
        row = transaction.first(tables.node.select().where(tables.node.c.id == node))
        if row is None:
            transaction.run(
                tables.node.insert().values(
                    id=node,
                    state=LOST,
                    certificate_serial=serial_of(certificate),
                    create_time=now,
                )
            )
        else:
            transaction.run(tables.node.update().where(tables.node.c.id == node).values(state=LOST))
            self._replace(transaction, row, certificate, keep="")
        self._policies.gave(transaction, rules.machine_link(PrincipalKind.NODE, node))
        transaction.after_commit(lambda: self._events.publish(ACCESS, NODES))

    def _replace(
        self,
        transaction: Transaction,
        row: Any,  # noqa: ANN401  # a row of SQLAlchemy
        certificate: bytes,
        *,
        keep: str,
    ) -> None:
        """Make `certificate` the newest; the one with serial `keep` may call until it is used."""
        transaction.run(
            tables.node.update()
            .where(tables.node.c.id == row.id)
            .values(
                certificate_generation=row.certificate_generation + 1,
                certificate_serial=serial_of(certificate),
                previous_serial=keep,
            )
        )
