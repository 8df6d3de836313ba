"""Who makes this call: by bearer token on one listener, by client certificate on the other.

Rules kept here:
* asked on every call, and again while a stream runs: gRPC checks a certificate once per connection
  and knows nothing of tokens, so an ended, revoked, locked or evicted one would live on;
* one listener takes tokens only, the other certificates only; on the second a token is not read;
* a machine's certificate must be its newest, or the one before until that is in use (a stream that
  was opened with it goes on for a minute);
* a made-up token, challenge or proof in the message of an anonymous call is refused before anything
  is recorded, so that rubbish is counted and not kept;
* of a credential that is refused the owner is still found, for the audit record.

The attacks: a stolen or ended token, a certificate of an evicted node, a copied node key, the
certificate of a worker used to speak to the control plane. Called by the gate.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from appliance.api.agent.v1.enrolment_service_pb2 import RecoverCertificateRequest
from appliance.control.auth import grants, tokens
from appliance.control.auth.credentials import SCHEME, Credentials, check_shape
from appliance.control.auth.tokens import TokenKind
from appliance.control.services.common.caller import Caller
from appliance.control.services.fleet.certificates import KINDS, Certificates
from appliance.control.services.fleet.recovery import Recovery
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.errors import ApplianceError, Unauthenticated
from appliance.core.identity import ANONYMOUS, Principal, PrincipalKind
from appliance.crypto.reading import (
    not_after,
    peer_identity,
    serial_of,
)
from appliance.wire.door import Call

_HOLDERS = {
    TokenKind.SESSION: PrincipalKind.USER,
    TokenKind.SERVICE: PrincipalKind.SERVICE_ACCOUNT,
}
_TOKENS = {
    TokenKind.SESSION: (tables.session, tables.session.c.user),
    TokenKind.SERVICE: (tables.token, tables.token.c.service_account),
    TokenKind.JOIN: (tables.join_token, tables.join_token.c.machine),
}
"""Where the digest of each kind of token is, and whose it is."""


class Identify(Protocol):
    """One way to find out who calls."""

    def check_presented(self, call: Call) -> None:
        """Raise Unauthenticated when the call shows nothing that can be a credential.

        Reads nothing but the call, so that such calls cost no look-up of who calls.
        """

    def caller(self, call: Call) -> Caller:
        """Who calls. Raises Unauthenticated or MfaRequired; never reads the request."""

    def check_carried(self, call: Call) -> None:
        """Raise when the message of an anonymous call carries a made-up token or proof.

        Before the record of an intent, so that rubbish is counted like every stranger's.
        """

    def stranger(self, call: Call, refused: ApplianceError) -> Caller:
        """A caller without rights, for the record of a call whose credential was `refused`."""


class ByToken:
    """Callers of the API listener: people and applications.

    Args:
        credentials: sessions and tokens.
        database: to find the owner of a refused token.
        token_key: the keyring's token key.
        recovery: judges proofs of a key.
    """

    def __init__(
        self,
        credentials: Credentials,
        database: Database,
        token_key: bytes,
        recovery: Recovery,
    ) -> None:
        self._credentials = credentials
        self._database = database
        self._token_key = token_key
        self._recovery = recovery

    def check_presented(self, call: Call) -> None:
        """A token of the right shape, with a right checksum."""
        check_shape(_authorization(call))

    def caller(self, call: Call) -> Caller:
        """The owner of the token; nobody for a call that needs no identity."""
        if call.rule.anonymous:
            return _nobody(call)
        proof = self._credentials.identify(
            _authorization(call), unfinished=call.rule.unfinished, granted=call.rule.granted
        )
        return Caller(
            principal=proof.principal,
            request_id=call.request_id,
            source=call.peer,
            notes=_notes(call),
            credential=proof.credential,
            mfa_time=proof.mfa_time,
            expire_time=proof.expire_time,
            upload=proof.upload,
        )

    def stranger(self, call: Call, refused: ApplianceError) -> Caller:
        """Whose token it was, if the secret in it is right though it no longer works."""
        del refused
        text = _authorization(call).removeprefix(SCHEME)
        kinds = (TokenKind.SESSION, TokenKind.SERVICE, TokenKind.UPLOAD)
        try:
            presented = tokens.parse(text, *kinds)
        except Unauthenticated:
            return _nobody(call)
        caller = _nobody(call)
        if presented.kind is TokenKind.UPLOAD:
            with self._database.read() as state:
                row = grants.holder(state, presented, self._token_key)
            if row is not None:
                caller.notes["principal"] = row.creator
            return caller
        owner = self._owner(presented)
        if owner is not None:
            caller.notes["principal"] = Principal(_HOLDERS[presented.kind], owner).name
        return caller

    def check_carried(self, call: Call) -> None:
        """The token of a log-in that has begun, or of a server that joins; it may have ended.

        Or the proof of a key, by a certificate that may have ended.
        """
        if isinstance(call.request, RecoverCertificateRequest):
            self._recovery.owner_of(call.request)
        carried = getattr(call.request, "token", None)
        if carried is None:
            return
        if self._owner(tokens.parse(carried, TokenKind.SESSION, TokenKind.JOIN)) is None:
            raise tokens.refused()

    def _owner(self, presented: tokens.Parsed) -> str | None:
        """Id of whose token it is, live or not; None when the secret in it is wrong."""
        table, owner = _TOKENS[presented.kind]
        with self._database.read() as state:
            row = state.first(
                table.select()
                .with_only_columns(owner.label("owner"), table.c.digest)
                .where(table.c.id == presented.id)
            )
        if row is None or not tokens.matches(presented, row.digest, self._token_key):
            return None
        return str(row.owner)


class ByCertificate:
    """Callers of the machine listener: nodes and gateways.

    Args:
        cluster: id of this appliance.
        certificates: which certificate of a machine is its newest, and who was evicted.
        clock: the time, aware.
    """

    def __init__(
        self,
        cluster: str,
        certificates: Certificates,
        clock: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._certificates = certificates
        self._clock = clock

    def check_presented(self, call: Call) -> None:
        """A certificate, which the handshake asks for."""
        if call.certificate is None:
            raise Unauthenticated("this listener asks for a certificate of the appliance")

    def check_carried(self, call: Call) -> None:
        """Nothing: no call on this listener goes without a certificate."""

    def caller(self, call: Call) -> Caller:
        """The machine a certificate was issued to, if it still holds."""
        self.check_presented(call)
        certificate = call.certificate or b""
        principal = peer_identity(certificate, self._cluster, self._clock(), need="client")
        serial = serial_of(certificate)
        if principal.kind not in KINDS:
            raise Unauthenticated(
                f"{principal.name} does not call the control plane", principal=principal.name
            )
        self._certificates.check(principal, serial)
        return Caller(
            principal=principal,
            request_id=call.request_id,
            source=call.peer,
            notes=_notes(call),
            credential=serial,
            expire_time=not_after(certificate),
        )

    def stranger(self, call: Call, refused: ApplianceError) -> Caller:
        """Nobody, with the name in the refused certificate."""
        caller = _nobody(call)
        if "principal" in refused.metadata:
            caller.notes["principal"] = refused.metadata["principal"]
        return caller


def _authorization(call: Call) -> str:
    value = call.metadata.get("authorization", "")
    return value if isinstance(value, str) else ""


def _nobody(call: Call) -> Caller:
    return Caller(
        principal=ANONYMOUS, request_id=call.request_id, source=call.peer, notes=_notes(call)
    )


def _notes(call: Call) -> dict[str, str]:
    """The caller's own request id beside ours: it helps the caller and names nothing here."""
    return {"caller_request_id": call.caller_request_id} if call.caller_request_id else {}
