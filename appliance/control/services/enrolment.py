"""How a server becomes a node and stays one: join tokens, certificates, renewal.

Rules kept here:
* a join token is used up in the transaction that makes the node: of two at once one wins;
* of the request only the public key is used; the control plane chooses the name, the purpose
  (client only) and the time (10 days);
* joining again under the same name, with a new token, replaces the certificate before: the old one
  is refused from then on;
* a certificate is renewed with itself; when somebody renews with the one before although the newest
  was used already, two hold the same key: the node is evicted and must join again;
* one that has ended, at most 90 days ago, is replaced by proof of its key, under the same rules;
  never that of a node that was evicted.

The attacks: a join token used twice, a request for somebody else's name or for a CA certificate, a
copied node key (SPIRE and Teleport notice it the same way), an old certificate found on a disk.
Called by the RPCs and `identify`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row

from appliance.api.agent.v1 import agent_service_pb2, enrolment_service_pb2
from appliance.api.nodes.v1 import node_service_pb2
from appliance.control.auth import escalation, join_tokens, rules
from appliance.control.auth.challenges import Challenges
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import ACCESS, NODES, Events
from appliance.control.services import paging
from appliance.control.services.caller import Caller
from appliance.control.services.nodes import EVICTED, LOST, Nodes
from appliance.control.services.resources import timestamp
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.core import names
from appliance.core.errors import FailedPrecondition, InvalidInput, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto import possession
from appliance.crypto.certs import (
    LARGEST_PEM,
    LEAF_LIFETIME,
    not_after,
    not_before,
    peer_identity,
    serial_of,
)
from appliance.crypto.keys import Keyring

RECOVERED_FOR = timedelta(days=90)
"""For so long after its end a certificate can be replaced by proof of its key."""
logger = logging.getLogger(__name__)


class NodeCertificates:
    """Which certificate of a node counts, and whether the newest was used yet.

    A node whose last renewal was not answered has the one before: it counts until the newest is
    shown for the first time.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def check(self, node: str, serial: str) -> None:
        """Raise Unauthenticated unless a node may call with this certificate, which it now uses."""
        with self._database.read() as state:
            found = state.first(tables.node.select().where(tables.node.c.id == node))
        row = check_known(found, node, serial)
        if serial == row.certificate_serial and not row.certificate_used:
            with self._database.write() as transaction:
                transaction.run(
                    tables.node.update()
                    .where(tables.node.c.id == node, tables.node.c.certificate_serial == serial)
                    .values(certificate_used=True)
                )


def check_known(row: Row[Any] | None, node: str, serial: str) -> Row[Any]:
    """The row of a node that may call, with its newest certificate or the one before.

    Raises Unauthenticated.

    Args:
        row: of the node; None when there is none.
        node: its id.
        serial: of the certificate that is shown.
    """
    name = names.node(node)
    if row is None or row.state == EVICTED:
        raise Unauthenticated(
            f"{name} was evicted: make a join token and join again", principal=name
        )
    if serial not in (row.certificate_serial, row.previous_serial):
        raise Unauthenticated(
            f"this certificate of {name} was replaced by a newer one: if its server does not "
            "have that, its key was copied; evict it and join again",
            principal=name,
        )
    return row


class Enrolment:
    """Join tokens and node certificates."""

    def __init__(  # noqa: PLR0913  # what joining touches
        self,
        *,
        database: Database,
        keyring: Keyring,
        policies: PolicyStore,
        nodes: Nodes,
        challenges: Challenges,
        events: Events,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._policies = policies
        self._nodes = nodes
        self._challenges = challenges
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
        certificate = self._renewed(
            caller, caller.principal.id, caller.credential, request.certificate_request
        )
        return agent_service_pb2.RenewCertificateResponse(certificate=certificate.decode())

    def challenge(self) -> enrolment_service_pb2.GetChallengeResponse:
        """What is to be signed with a request for recovery."""
        return enrolment_service_pb2.GetChallengeResponse(challenge=self._challenges.make())

    def recover(
        self, caller: Caller, request: enrolment_service_pb2.RecoverCertificateRequest
    ) -> enrolment_service_pb2.RecoverCertificateResponse:
        """Replace a node's certificate that has ended.

        Raises:
            Unauthenticated: the certificate is not one of a node that may call, was replaced, or
                ended too long ago; the challenge is none; its key did not sign. When its key was
                copied the node is evicted.
            FailedPrecondition: it still holds.
        """
        if max(len(request.certificate), len(request.certificate_request)) > LARGEST_PEM:
            raise InvalidInput(f"a certificate and a request have at most {LARGEST_PEM} characters")
        self._challenges.check(request.challenge)
        shown = request.certificate.encode()
        node, end = self._identity_of(shown)
        possession.check(
            shown,
            self._keyring.cluster_id,
            request.challenge,
            request.certificate_request.encode(),
            request.signature,
        )
        name, serial = names.node(node), serial_of(shown)
        caller.notes["principal"], caller.notes["shown"] = name, serial
        now = self._clock()
        if not_before(shown) <= now < end:
            raise FailedPrecondition(
                f"the certificate of {name} holds until {end:%Y-%m-%d %H:%M}Z: look at the clock of"
                " its server"
            )
        if now - end > RECOVERED_FOR:
            raise Unauthenticated(
                f"the certificate of {name} ended more than {RECOVERED_FOR.days} days ago: make a"
                " join token and join again"
            )
        certificate = self._renewed(caller, node, serial, request.certificate_request)
        logger.info("%s has recovered its certificate", name)
        return enrolment_service_pb2.RecoverCertificateResponse(
            node=name, certificate=certificate.decode()
        )

    def _identity_of(self, certificate: bytes) -> tuple[str, datetime]:
        """Whose certificate it is, whenever it holds, and its end. Raises Unauthenticated."""
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
        if found.kind is not PrincipalKind.NODE:
            raise Unauthenticated("this certificate is not one of a node")
        return found.id, end

    def _renewed(self, caller: Caller, node: str, serial: str, certificate_request: str) -> bytes:
        """The next certificate of a node that shows the one with `serial`.

        Raises Unauthenticated when that counts no more; and evicts the node, when its key was
        copied.
        """
        name = names.node(node)
        with self._database.write() as transaction:
            found = transaction.first(tables.node.select().where(tables.node.c.id == node))
            try:
                row = check_known(found, node, serial)
            except Unauthenticated:
                logger.error("an old certificate of %s is shown with its key: %s", name, serial)  # noqa: TRY400  # no traceback: it is an alarm
                raise
            copied = serial != row.certificate_serial and row.certificate_used
            if copied:
                self._nodes.put_out(transaction, node)
                caller.notes["evicted"] = name
            else:
                certificate = self._issue(node, certificate_request, self._clock())
                self._replace(transaction, row, certificate, keep=serial)
                caller.notes["certificate"] = serial_of(certificate)
        if copied:
            logger.error("the key of %s was copied: evicted", name)
            raise Unauthenticated(
                f"two servers use the key of {name}: it was evicted; find out which one is real and"
                " let it join again",
                principal=name,
            )
        return certificate

    def _issue(self, node: str, certificate_request: str, now: datetime) -> bytes:
        return self._keyring.ca.issue(
            certificate_request.encode(),
            Principal(PrincipalKind.NODE, node),
            server=False,
            client=True,
            lifetime=LEAF_LIFETIME,
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
                certificate_used=False,
            )
        )
