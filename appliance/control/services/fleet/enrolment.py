"""How a server becomes a node or a gateway: join tokens, joining, recovery.

Rules kept here:
* a join token is used up in the transaction that lets the machine in: of two at once one wins; one
  for a node lets no gateway in, and the other way round;
* a certificate that has ended is replaced for a signature of its key over a challenge and the new
  request; what certificates count is the rule of `certificates`.

The attacks: a join token used twice, or for another kind of machine; a challenge or a signature
that is used again. Called by the RPCs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from appliance.api.agent.v1 import agent_service_pb2, enrolment_service_pb2
from appliance.api.nodes.v1 import node_service_pb2
from appliance.api.serving.v1 import gateway_service_pb2
from appliance.control.auth import escalation, join_tokens
from appliance.control.auth.challenges import Challenges
from appliance.control.auth.join_tokens import NewJoinToken
from appliance.control.auth.policy import PolicyStore
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import timestamp
from appliance.control.services.fleet import front_certificates
from appliance.control.services.fleet.certificates import Certificates
from appliance.control.services.fleet.recovery import Recovery
from appliance.control.store.database import Database
from appliance.core import names
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.keys import Keyring
from appliance.crypto.reading import serial_of

logger = logging.getLogger(__name__)


class Enrolment:
    """Join tokens, and the first certificates that they and old keys are good for."""

    def __init__(  # noqa: PLR0913  # what joining touches
        self,
        *,
        database: Database,
        keyring: Keyring,
        policies: PolicyStore,
        certificates: Certificates,
        challenges: Challenges,
        recovery: Recovery,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._policies = policies
        self._certificates = certificates
        self._challenges = challenges
        self._recovery = recovery
        self._clock = clock

    def create_join_token(
        self, caller: Caller, request: node_service_pb2.CreateJoinTokenRequest
    ) -> node_service_pb2.CreateJoinTokenResponse:
        """A token with which one server may join under this name within ten minutes."""
        node = names.check_id(request.node_id, "node_id")
        made = self._token(caller, Principal(PrincipalKind.NODE, node), escalation.JOIN)
        return node_service_pb2.CreateJoinTokenResponse(
            token=made.text,
            token_id=made.id,
            ca_fingerprint=self._keyring.ca.fingerprint(),
            expire_time=timestamp(made.expire_time),
        )

    def create_gateway_join_token(
        self, caller: Caller, request: gateway_service_pb2.CreateGatewayJoinTokenRequest
    ) -> gateway_service_pb2.CreateGatewayJoinTokenResponse:
        """A token with which one gateway may join under this name within ten minutes."""
        gateway = names.check_id(request.gateway_id, "gateway_id")
        made = self._token(
            caller,
            Principal(PrincipalKind.GATEWAY, gateway),
            escalation.JOIN_GATEWAY,
            front_certificates.check_hosts(request.hosts),
        )
        return gateway_service_pb2.CreateGatewayJoinTokenResponse(
            token=made.text,
            token_id=made.id,
            ca_fingerprint=self._keyring.ca.fingerprint(),
            expire_time=timestamp(made.expire_time),
        )

    def _token(
        self, caller: Caller, machine: Principal, permission: str, hosts: tuple[str, ...] = ()
    ) -> NewJoinToken:
        """A new token. Raises Denied unless the caller may let machines of this kind in."""
        escalation.check_lets_in(self._policies.current(), caller.principal, permission)
        with self._database.write() as transaction:
            return join_tokens.create(
                transaction,
                self._keyring.token_hmac,
                machine,
                caller.principal.name,
                self._clock(),
                hosts=hosts,
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
                    node=names.node(row.machine) if row.kind == "node" else "",
                    gateway=names.gateway(row.machine) if row.kind == "gateway" else "",
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
            machine = join_tokens.revoke(transaction, request.token_id)
        caller.notes[machine.kind.path] = machine.name
        return node_service_pb2.RevokeJoinTokenResponse()

    def join(
        self, caller: Caller, request: enrolment_service_pb2.JoinRequest
    ) -> enrolment_service_pb2.JoinResponse:
        """Exchange a join token and a certificate request for a node's certificate."""
        node, certificate = self._join(
            caller, PrincipalKind.NODE, request.token, request.certificate_request
        )
        return enrolment_service_pb2.JoinResponse(
            node=node.name,
            certificate=certificate.decode(),
            ca_certificate=self._keyring.ca.certificate_pem.decode(),
            cluster_id=self._keyring.cluster_id,
        )

    def join_gateway(
        self, caller: Caller, request: enrolment_service_pb2.JoinGatewayRequest
    ) -> enrolment_service_pb2.JoinGatewayResponse:
        """Exchange a join token and a certificate request for a gateway's identity."""
        gateway, certificate = self._join(
            caller, PrincipalKind.GATEWAY, request.token, request.certificate_request
        )
        return enrolment_service_pb2.JoinGatewayResponse(
            gateway=gateway.name,
            certificate=certificate.decode(),
            ca_certificate=self._keyring.ca.certificate_pem.decode(),
            cluster_id=self._keyring.cluster_id,
        )

    def _join(
        self, caller: Caller, kind: PrincipalKind, token: str, request: str
    ) -> tuple[Principal, bytes]:
        with self._database.write() as transaction:
            row = join_tokens.consume(
                transaction, self._keyring.token_hmac, token, self._clock(), kind
            )
            machine = Principal(kind, row.machine)
            caller.notes["principal"], caller.notes["token"] = machine.name, row.id
            hosts = {"hosts": row.hosts} if row.hosts else {}
            certificate = self._certificates.join(transaction, machine, request, hosts)
            caller.notes["certificate"] = serial_of(certificate)
        return machine, certificate

    def renew(
        self, caller: Caller, request: agent_service_pb2.RenewCertificateRequest
    ) -> agent_service_pb2.RenewCertificateResponse:
        """Replace the calling node's certificate.

        Raises Unauthenticated, and evicts the node, when its key was copied.
        """
        certificate = self._certificates.renew(
            caller, caller.principal, caller.credential, request.certificate_request
        )
        return agent_service_pb2.RenewCertificateResponse(certificate=certificate.decode())

    def challenge(self) -> enrolment_service_pb2.GetChallengeResponse:
        """What is to be signed with a request for recovery."""
        return enrolment_service_pb2.GetChallengeResponse(challenge=self._challenges.make())

    def recover(
        self, caller: Caller, request: enrolment_service_pb2.RecoverCertificateRequest
    ) -> enrolment_service_pb2.RecoverCertificateResponse:
        """Replace a machine's certificate that has ended.

        Raises:
            Unauthenticated: the certificate is not one of a machine that may call, was replaced, or
                ended too long ago; the challenge is none; its key did not sign. When its key was
                copied the machine is evicted.
            FailedPrecondition: it still holds.
        """
        machine, shown = self._recovery.owner_of(request), request.certificate.encode()
        serial = serial_of(shown)
        caller.notes["principal"], caller.notes["shown"] = machine.name, serial
        self._certificates.check_recoverable(machine, shown)
        certificate = self._certificates.renew(caller, machine, serial, request.certificate_request)
        logger.info("%s has recovered its certificate", machine.name)
        return enrolment_service_pb2.RecoverCertificateResponse(
            name=machine.name, certificate=certificate.decode()
        )
