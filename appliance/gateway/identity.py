"""How a gateway begins: its identity, what it shows, and what it had before it kept either.

Rules kept here:
* nothing is served before there is something to show: a gateway whose front certificate has ended,
  or that has none, waits for the control plane; one that has a good one on disk does not;
* the files `key` and `certificate` of a gateway of 0.1.0 are taken over once, as identity and as
  front; a start that finds another identity in their place removes them: they would call, and pose
  as the gateway, for 397 days.

Called by the composition root.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import grpc

from appliance.api.serving.v1 import routing_service_pb2, routing_service_pb2_grpc
from appliance.core.errors import ApplianceError, Exhausted, FailedPrecondition, InvalidInput
from appliance.core.files import make_private_dir, read_secret
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.reading import fingerprint, not_after, peer_identity
from appliance.gateway.config import GatewayConfig
from appliance.gateway.front import Front
from appliance.machine import kinds
from appliance.machine.control_plane import ControlAddress
from appliance.machine.identity import Identity, IdentityStore
from appliance.machine.joining import Joining
from appliance.machine.keeping import Keeper
from appliance.machine.kinds import CALL_SECONDS
from appliance.wire.status import from_rpc_error
from appliance.wire.tls import ServerPair

STORE_AGAIN_SECONDS = 5.0

logger = logging.getLogger(__name__)


async def begin(config: GatewayConfig) -> tuple[Keeper, Front]:
    """Who this gateway is, and what it shows; waits for a join token and the control plane.

    Raises:
        FailedPrecondition: the authority's certificate cannot be read, or is another one.
    """
    try:
        state = make_private_dir(config.state_folder)
    except OSError as error:
        raise FailedPrecondition(
            f"{config.state_folder} cannot be made ({error.strerror}): set `state` to a folder that"
            " this gateway may write"
        ) from error
    store = IdentityStore(kinds.GATEWAY, state, _control(config))
    before = None if store.exists() else await _before(config, store)
    joining = Joining(store, config.join_token_file)
    keeper = Keeper(joining, await joining.begin())
    _remove_replaced(config, keeper.identity, store.pinned_ca())

    async def ask(request: str) -> str:
        async with store.machines(keeper.identity) as connection:
            stub = routing_service_pb2_grpc.RoutingServiceStub(connection)
            asked = routing_service_pb2.RenewFrontCertificateRequest(certificate_request=request)
            try:
                answer = await stub.RenewFrontCertificate(asked, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
        return str(answer.certificate)

    front = Front(state, ask, store.pinned_ca(), config.front.files, store.now)
    if before is not None:
        front.keep(before)
    if not front.load():
        await _wait_for(front, keeper)
    front.reload_site_files()
    return keeper, front


async def _wait_for(front: Front, keeper: Keeper) -> None:
    """Get a front certificate, however long that takes.

    One is enough: under a clock that is wrong it would not hold here either.
    """
    while True:
        try:
            await front.renew()
        except ApplianceError as error:
            logger.warning("there is no certificate to show to callers yet: %s", error)
            await keeper.recover_from(error)
        except OSError as error:
            logger.warning("a certificate to show cannot be stored: %s", error.strerror)
            await asyncio.sleep(STORE_AGAIN_SECONDS)
        else:
            return


def _control(config: GatewayConfig) -> ControlAddress:
    """Where the control plane is; its authority is the file's, unless a fingerprint is given."""
    try:
        announced = config.ca_fingerprint or fingerprint(config.ca.read_bytes())
    except OSError as error:
        raise FailedPrecondition(f"{error.filename}: {error.strerror}") from error
    return ControlAddress(config.ca, config.api, config.control, announced)


async def _before(config: GatewayConfig, store: IdentityStore) -> ServerPair | None:
    """Take over the files of a gateway of 0.1.0; what it showed with them.

    Waits while they cannot be stored: without them it would need a join token.
    """
    if config.key is None or config.certificate is None:
        return None
    try:
        key, certificate = await _read(config.key, config.certificate)
        ca_pem = store.pinned_ca()
        machine = _gateway_of(certificate, config.cluster_id, ca_pem)
        identity = Identity.of(machine, config.cluster_id, key, certificate, ca_pem)
        Identity.parse(identity.document(), PrincipalKind.GATEWAY)
        while not await asyncio.to_thread(_stored, store, identity):  # noqa: ASYNC110 - nothing tells of space
            await asyncio.sleep(STORE_AGAIN_SECONDS)
    except (FileNotFoundError, PermissionError, ApplianceError) as error:
        logger.warning("%s and %s cannot be used: %s", config.key, config.certificate, error)
        return None
    logger.info("took over %s and %s as %s", config.key, config.certificate, machine.name)
    return ServerPair(key, certificate)


async def _read(key: Path, certificate: Path) -> tuple[bytes, bytes]:
    """Both files; tried again while the disk gives none.

    Raises FailedPrecondition, FileNotFoundError or PermissionError when that would not help.
    """
    while True:
        try:
            return await asyncio.to_thread(lambda: (read_secret(key), certificate.read_bytes()))
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            logger.warning("%s cannot be read: %s", error.filename, error.strerror)
        await asyncio.sleep(STORE_AGAIN_SECONDS)


def _gateway_of(certificate: bytes, cluster: str, ca_pem: bytes) -> Principal:
    """The gateway that a certificate is of, be it over. Raises Unauthenticated or InvalidInput."""
    last = not_after(certificate) - timedelta(seconds=1)
    machine = peer_identity(certificate, cluster, last, need="client", ca_pem=ca_pem)
    if machine.kind is not PrincipalKind.GATEWAY:
        raise InvalidInput(f"it is of {machine.name}")
    return machine


def _remove_replaced(config: GatewayConfig, identity: Identity, ca_pem: bytes) -> None:
    """Remove the files of 0.1.0 once they are not the identity; no files that are of others."""
    if config.key is None or config.certificate is None:
        return
    try:
        certificate = config.certificate.read_bytes()
        if certificate == identity.certificate_pem:
            return
        _gateway_of(certificate, config.cluster_id, ca_pem)
        config.key.unlink(missing_ok=True)
        config.certificate.unlink()
        logger.info("removed %s and %s, which are replaced", config.key, config.certificate)
    except FileNotFoundError:
        return
    except ApplianceError as error:
        logger.warning("%s is not used, and left: %s", config.certificate, error)
    except OSError as error:
        logger.warning("%s is replaced, remove it: %s", error.filename, error.strerror)


def _stored(store: IdentityStore, identity: Identity) -> bool:
    try:
        store.keep(identity)
    except (Exhausted, OSError) as error:
        logger.warning("the identity of %s cannot be stored: %s", identity.name, error)
        return False
    return True
