"""Gateways: what is on record for each, its next certificates, evicting and deleting one.

Rules kept here:
* a gateway renews what it calls with under the rules of `certificates`, as a node does;
* what it shows to callers is another certificate, with the names on record for it
  (`front_certificates`);
* an evicted gateway is refused by the control plane from the moment `evict` returns, by replicas
  when their node has heard which certificates still count (`wire.accepted`): one that is cut off
  takes it until then, or until the certificate ends, ten days at most;
* one that is at work is not deleted: its process is stopped first, or it is evicted.

Called by the RPCs of both listeners.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from appliance.api.serving.v1 import gateway_service_pb2, routing_service_pb2
from appliance.control.auth.policy import PolicyStore
from appliance.control.events import Events
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.services.common.updates import check_etag, etag_of
from appliance.control.services.fleet import front_certificates
from appliance.control.services.fleet.certificates import (
    EVICTED,
    Certificates,
    check_counts,
    delete_in,
    evict_in,
)
from appliance.control.services.serving.connected_gateways import ConnectedGateways
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import FailedPrecondition
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name
from appliance.crypto.keys import Keyring
from appliance.crypto.reading import not_after, serial_of

_STATES = {
    "READY": gateway_service_pb2.Gateway.STATE_READY,
    EVICTED: gateway_service_pb2.Gateway.STATE_EVICTED,
}
_gateway = tables.gateway.c


class Gateways:
    """Shows, renews, evicts and deletes gateways.

    Args:
        announced: host under which the control plane says that gateways are reached.
    """

    def __init__(  # noqa: PLR0913  # what it reads, and what an eviction touches
        self,
        *,
        database: Database,
        keyring: Keyring,
        certificates: Certificates,
        changes: Changes,
        policies: PolicyStore,
        connected: ConnectedGateways,
        events: Events,
        clock: Callable[[], datetime],
        announced: str,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._certificates = certificates
        self._changes = changes
        self._policies = policies
        self._connected = connected
        self._events = events
        self._clock = clock
        self._announced = announced

    def get(self, caller: Caller, name: str) -> gateway_service_pb2.Gateway:
        """One gateway."""
        del caller
        with self._database.read() as state:
            return self._resource(_by_name(state, name))

    def list(
        self, caller: Caller, request: gateway_service_pb2.ListGatewaysRequest
    ) -> gateway_service_pb2.ListGatewaysResponse:
        """One page of gateways, by name."""
        del caller
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        wanted = tables.gateway.select().order_by(_gateway.id).limit(size + 1)
        if after is not None:
            wanted = wanted.where(_gateway.id > after[0])
        with self._database.read() as state:
            page, token = paging.cut(state.all(wanted), size, lambda row: (row.id,))
        return gateway_service_pb2.ListGatewaysResponse(
            gateways=[self._resource(row) for row in page], next_page_token=token
        )

    def evict(
        self, caller: Caller, request: gateway_service_pb2.EvictGatewayRequest
    ) -> gateway_service_pb2.Gateway:
        """Refuse a gateway from now on."""
        machine = Principal(PrincipalKind.GATEWAY, Name.parse(request.name, "gateway").id)

        def work(transaction: Transaction) -> gateway_service_pb2.Gateway:
            evict_in(transaction, self._policies, self._events, machine)
            return self._resource(_by_name(transaction, request.name))

        return self._changes.make(caller, request, gateway_service_pb2.Gateway, work)

    def delete(
        self, caller: Caller, request: gateway_service_pb2.DeleteGatewayRequest
    ) -> gateway_service_pb2.DeleteGatewayResponse:
        """Delete a gateway that was evicted or is not connected.

        Raises NotFound, Conflict, FailedPrecondition.
        """

        def work(transaction: Transaction) -> gateway_service_pb2.DeleteGatewayResponse:
            row = _by_name(transaction, request.name)
            check_etag(request.etag, _etag(row), request.name)
            if row.state != EVICTED and self._connected.has(row.id):
                raise FailedPrecondition(
                    f"{request.name} is not deleted, because it is connected and answers callers:"
                    f" stop its process, or refuse it with `appliance gateway evict {row.id}`; then"
                    " repeat"
                )
            machine = Principal(PrincipalKind.GATEWAY, row.id)
            delete_in(transaction, self._policies, self._events, machine)
            return gateway_service_pb2.DeleteGatewayResponse()

        answer = gateway_service_pb2.DeleteGatewayResponse
        return self._changes.make(caller, request, answer, work)

    def renew(
        self, caller: Caller, request: routing_service_pb2.RenewCertificateRequest
    ) -> routing_service_pb2.RenewCertificateResponse:
        """Replace what the calling gateway calls with.

        Raises Unauthenticated, and evicts it, when its key was copied.
        """
        certificate = self._certificates.renew(
            caller, caller.principal, caller.credential, request.certificate_request
        )
        return routing_service_pb2.RenewCertificateResponse(certificate=certificate.decode())

    def renew_front(
        self, caller: Caller, request: routing_service_pb2.RenewFrontCertificateRequest
    ) -> routing_service_pb2.RenewFrontCertificateResponse:
        """Issue what the calling gateway shows to its callers.

        Judged again in the transaction that issues it, so that none is made for one that is evicted
        meanwhile; the certificate before gets none once the newest is in use.

        Raises Unauthenticated or InvalidInput.
        """
        mine = _gateway.id == caller.principal.id
        with self._database.write() as transaction:
            found = transaction.first(tables.gateway.select().where(mine))
            row = check_counts(found, caller.principal, caller.credential)
            certificate = front_certificates.issue(
                self._keyring.ca,
                caller.principal,
                self._hosts(row),
                request.certificate_request,
                self._clock(),
            )
            transaction.run(
                tables.gateway.update().where(mine).values(front_expire_time=not_after(certificate))
            )
        caller.notes["certificate"] = serial_of(certificate)
        return routing_service_pb2.RenewFrontCertificateResponse(certificate=certificate.decode())

    def _hosts(self, row: Row[Any]) -> Sequence[str]:
        return tuple(row.hosts) or (self._announced,)

    def _resource(self, row: Row[Any]) -> gateway_service_pb2.Gateway:
        return gateway_service_pb2.Gateway(
            name=names.gateway(row.id),
            state=_STATES[row.state],
            hosts=self._hosts(row),
            expire_time=timestamp(row.certificate_expire_time),
            front_expire_time=timestamp(row.front_expire_time),
            create_time=timestamp(row.create_time),
            connected=self._connected.has(row.id),
            etag=_etag(row),
        )


def _by_name(state: Reading, name: str) -> Row[Any]:
    """The row of a gateway. Raises InvalidInput, NotFound."""
    identifier = Name.parse(name, "gateway").id
    row = state.first(tables.gateway.select().where(_gateway.id == identifier))
    if row is None:
        raise missing(name)
    return row


def _etag(row: Row[Any]) -> str:
    return etag_of(row.create_time.isoformat(), row.state == EVICTED, *row.hosts)
