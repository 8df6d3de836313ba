"""Who this machine is: its key and certificate, how it gets them, and when it needs new ones.

One store for nodes and gateways; `kinds` says where they differ. Rules kept here:
* the authority is pinned before the first byte is sent: its certificate must have the fingerprint
  that came with the join token, and TLS trusts nothing else;
* the private key is made here and never leaves; a new one with each renewal;
* key and certificate are one file, so a crash leaves the old pair or the new, never half of each;
* the join token's file is removed once it has been used.

The attacks: somebody between machine and control plane answers the join, be it with a certificate
that was made for a worker; a copied state folder (the control plane notices when both renew).
Called by `joining` and `keeping`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import grpc
import grpc.aio

from appliance.api.agent.v1 import enrolment_service_pb2, enrolment_service_pb2_grpc
from appliance.core.errors import FailedPrecondition, InvalidInput, Unauthenticated
from appliance.core.files import read_secret, write_durably
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto import possession
from appliance.crypto.certs import make_csr, new_private_key
from appliance.crypto.reading import (
    fingerprint,
    is_pair,
    issued_by,
    not_after,
    not_before,
    renew_time,
)
from appliance.crypto.signing import equal
from appliance.machine.control_plane import ControlAddress
from appliance.machine.kinds import CALL_SECONDS, MachineKind
from appliance.wire.status import from_rpc_error
from appliance.wire.tls import channel

CONTROL_NAME = PrincipalKind.CONTROL.server_name
FILE = "identity.json"
ROOM_BYTES = 8192
"""More than an identity needs."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """A machine's name, cluster, key and certificate.

    `renew_at` is when the latter is a day old.
    """

    machine: Principal
    cluster: str
    key_pem: bytes = field(repr=False)
    certificate_pem: bytes
    ca_pem: bytes
    renew_at: datetime

    def document(self) -> bytes:
        """As it stands in its file; a secret."""
        return json.dumps(
            {
                self.machine.kind.path: self.machine.id,
                "cluster": self.cluster,
                "key": base64.b64encode(self.key_pem).decode(),
                "certificate": self.certificate_pem.decode(),
                "ca_certificate": self.ca_pem.decode(),
                "renew_at": self.renew_at.isoformat(),
            }
        ).encode()

    @property
    def name(self) -> str:
        """`nodes/gpu-1`."""
        return self.machine.name

    @classmethod
    def of(
        cls, machine: Principal, cluster: str, key_pem: bytes, certificate_pem: bytes, ca_pem: bytes
    ) -> Identity:
        """An identity with this certificate. Raises InvalidInput when it is none."""
        renew_at = renew_time(certificate_pem)
        return cls(machine, cluster, key_pem, certificate_pem, ca_pem, renew_at)

    @classmethod
    def parse(cls, document: bytes, kind: PrincipalKind) -> Identity:
        """Read what `document` made. Raises FailedPrecondition when it is something else."""
        its = kind.path
        try:
            value = json.loads(document)
            found = cls(
                machine=Principal(kind, value[its]),
                cluster=value["cluster"],
                key_pem=base64.b64decode(value["key"]),
                certificate_pem=value["certificate"].encode(),
                ca_pem=value["ca_certificate"].encode(),
                renew_at=datetime.fromisoformat(value["renew_at"]),
            )
            whole = is_pair(found.key_pem, found.certificate_pem)
        except (KeyError, TypeError, ValueError, AttributeError, InvalidInput) as error:
            raise FailedPrecondition(
                f"the identity of this {its} cannot be read ({type(error).__name__})"
            ) from None
        if not whole:
            raise FailedPrecondition(f"the certificate of this {its} is not that of its key")
        return found


@dataclass
class IdentityStore:
    """The identity of this machine, on disk and in memory.

    Args:
        kind: of the machine.
        folder: private folder of its process.
        control: where and who the control plane is.
        now: the time, aware.
    """

    kind: MachineKind
    folder: Path
    control: ControlAddress
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / FILE

    def exists(self) -> bool:
        """Whether this machine has joined."""
        return self.path.exists()

    def load(self) -> Identity:
        """The identity, whether its certificate still holds or not.

        Raises FailedPrecondition when it is missing, open to others or not an identity.
        """
        return Identity.parse(read_secret(self.path), self.kind.principal)

    def useless(self, identity: Identity) -> str:
        """Why nobody will take the certificate of an identity, as a sentence; empty while it holds.

        It is judged by this clock, and by the authority that was announced.
        """
        certificate, now = identity.certificate_pem, self.now()
        begin, end = not_before(certificate), not_after(certificate)
        its = f"the certificate of {identity.name}"
        if now >= end:
            return f"{its} ended on {end:%Y-%m-%d %H:%M}Z"
        if now < begin:
            return f"{its} begins on {begin:%Y-%m-%d %H:%M}Z, made under a wrong clock"
        try:
            authority = self.pinned_ca()
        except FailedPrecondition:
            return ""  # said when a token is there to be sent to it
        if not issued_by(certificate, authority):
            return f"{its} is of another authority than {self.control.ca}"
        return ""

    async def join(self, token_file: Path) -> Identity:
        """Exchange the one-use token for a certificate, store it, and remove the token's file.

        Raises:
            FailedPrecondition: no token, or the authority is not the one that was announced.
            Unauthenticated: the token is unknown, used or over.
            Exhausted, OSError: an identity cannot be stored; the token is as it was.
        """
        ca_pem = self.pinned_ca()
        token = read_secret(token_file).decode("ascii", "replace").strip()
        await asyncio.to_thread(self._check_room)
        key = new_private_key()
        async with channel(self.control.join, ca_pem, server_name=CONTROL_NAME) as connection:
            try:
                joined = await self.kind.join(connection, token, make_csr(key).decode())
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
        machine = Principal(self.kind.principal, joined.id)
        identity = await self._keep(machine, joined.cluster, key, joined.certificate, ca_pem)
        try:
            await asyncio.to_thread(token_file.unlink)
        except OSError as error:
            logger.warning("%s is used, remove it: %s", token_file, error.strerror)
        logger.info("joined as %s", identity.name)
        return identity

    async def renew(self, identity: Identity) -> Identity:
        """A new key and certificate for the same machine, stored when this returns."""
        key = new_private_key()
        async with self.machines(identity) as connection:
            try:
                certificate = await self.kind.renew(connection, make_csr(key).decode())
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
        return await self._keep(
            identity.machine, identity.cluster, key, certificate, identity.ca_pem
        )

    async def recover(self, identity: Identity) -> Identity:
        """A new key and certificate by proof of the old key, also when its certificate has ended.

        Raises:
            Unauthenticated: the machine was evicted, or another certificate has replaced this one.
            FailedPrecondition: the authority is not the one that was announced.
        """
        ca_pem, key = self.pinned_ca(), new_private_key()
        last, request = identity.certificate_pem, make_csr(key)
        if not issued_by(last, ca_pem):
            raise FailedPrecondition("its certificate is of another authority")
        async with channel(self.control.join, ca_pem, server_name=CONTROL_NAME) as connection:
            stub = enrolment_service_pb2_grpc.EnrolmentServiceStub(connection)
            try:
                asked = enrolment_service_pb2.GetChallengeRequest()
                challenge = (await stub.GetChallenge(asked, timeout=CALL_SECONDS)).challenge
                answer = await stub.RecoverCertificate(
                    enrolment_service_pb2.RecoverCertificateRequest(
                        certificate=last.decode(),
                        challenge=challenge,
                        certificate_request=request.decode(),
                        signature=possession.prove(
                            identity.key_pem, last, identity.cluster, challenge, request
                        ),
                    ),
                    timeout=CALL_SECONDS,
                )
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
        made = await self._keep(identity.machine, identity.cluster, key, answer.certificate, ca_pem)
        logger.info("recovered the certificate of %s", made.name)
        return made

    def machines(self, identity: Identity) -> grpc.aio.Channel:
        """A channel to the control plane as this machine."""
        return channel(
            self.control.machines,
            identity.ca_pem,
            identity.key_pem,
            identity.certificate_pem,
            server_name=CONTROL_NAME,
        )

    def pinned_ca(self) -> bytes:
        """The authority's certificate, when it is the one that was announced.

        Raises FailedPrecondition.
        """
        try:
            ca_pem = self.control.ca.read_bytes()
        except OSError as error:
            raise FailedPrecondition(
                f"{self.control.ca} cannot be read: copy the CA certificate of the appliance there"
            ) from error
        announced = self.control.ca_fingerprint.replace(":", "").lower()
        if not announced:
            raise FailedPrecondition(
                "control.ca_fingerprint is not set: take it from where the join token was made"
            )
        if not equal(fingerprint(ca_pem).encode(), announced.encode()):
            raise FailedPrecondition(
                f"{self.control.ca} is not the authority that the join token came with: do not"
                " join, and find out who replaced it"
            )
        return ca_pem

    def keep(self, identity: Identity) -> None:
        """Store an identity; it is the one to load from now on."""
        write_durably(self.path, identity.document())

    def _check_room(self) -> None:
        """Raise Exhausted or OSError when an identity could not be stored: a token works once."""
        room = self.path.with_name("room")
        write_durably(room, bytes(ROOM_BYTES))
        with contextlib.suppress(OSError):
            room.unlink()

    async def _keep(
        self, machine: Principal, cluster: str, key: bytes, certificate: str, ca_pem: bytes
    ) -> Identity:
        if not certificate:
            raise Unauthenticated("the control plane gave no certificate")
        pem = certificate.encode()
        if not (is_pair(key, pem) and issued_by(pem, ca_pem)):
            raise Unauthenticated("the control plane gave a certificate that is not of this key")
        identity = Identity.of(machine, cluster, key, pem, ca_pem)
        # In a thread: a disk that hangs must stop nothing but this.
        await asyncio.to_thread(self.keep, identity)
        return identity
