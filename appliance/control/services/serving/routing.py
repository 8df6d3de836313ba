"""What gateways need to decide and route by themselves.

Rules kept here:
* the view holds what the policy engine decided, for live credentials only: a revoked token, a
  locked user or a lost role is missing from the next view;
* it never holds a secret of a person or application, only keyed digests;
* it is made once for all gateways, and only when something has changed.

The attack: a gateway that goes on serving a caller whose right has ended. Called by `rpc.routing`.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Generator, Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, select

from appliance.api.serving.v1 import endpoint_pb2
from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.control.auth import scopes
from appliance.control.auth.credentials import Credentials, LiveCredential
from appliance.control.auth.policy import Policy, PolicyStore
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.services.data.artifacts import Artifacts
from appliance.control.services.serving import served_tokenizers
from appliance.control.services.serving.endpoints import replica_resource
from appliance.control.services.serving.replica_rows import identity_of
from appliance.control.services.serving.routing_view import HeldView, Key, key_of
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core import names
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name
from appliance.wire.routing import ViewEntry

PERMISSIONS = ("endpoints.infer",)
"""What gateways decide."""
LOOK_AGAIN = timedelta(seconds=5)
"""After so long, credentials are read again though nothing was written: sessions end."""
_CALLERS = frozenset({PrincipalKind.USER, PrincipalKind.SERVICE_ACCOUNT})
_endpoint = tables.endpoint.c
_replica = tables.replica.c


class Routing:
    """Makes views, reads tokenizers.

    Args:
        token_key: key of the digests of bearer tokens.
    """

    def __init__(  # noqa: PLR0913  # the parts of the control plane it reads
        self,
        database: Database,
        policies: PolicyStore,
        credentials: Credentials,
        artifacts: Artifacts,
        token_key: bytes,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._policies = policies
        self._credentials = credentials
        self._artifacts = artifacts
        self._token_key = token_key
        self._clock = clock
        self._lock = threading.Lock()
        self._held: HeldView | None = None
        self._generation = 0
        self._made = clock()
        self._live: dict[str, tuple[LiveCredential, rpc.Credential]] = {}
        self._rights: dict[Principal, tuple[object, list[rpc.Right]]] = {}
        self._policy: Policy | None = None
        self._found: list[LiveCredential] = []
        self._people: dict[Key, ViewEntry] = {}
        """Entries of credentials and rights, as of `_policy` and `_found`."""

    def now(self) -> HeldView:
        """The view now; the same object for every gateway as long as it says the same.

        It is made anew only when something in the state has changed, or when so much time has
        passed that a credential may have ended by itself.
        """
        with self._lock:
            with self._database.read() as state:
                generation = int(state.value(select(tables.meta.c.generation)))
            moment = self._clock()
            if self._held is None:
                self._held = HeldView(generation, self._token_key, {})
            elif generation == self._generation and moment - self._made < LOOK_AGAIN:
                return self._held
            self._held = self._held.followed_by(generation, self._entries())
            self._generation, self._made = generation, moment
            return self._held

    def messages(self, before: HeldView | None) -> tuple[HeldView, list[rpc.RoutingView]]:
        """The view now, and what to send to a gateway that holds `before`."""
        held = self.now()
        if held is before:
            found = [rpc.RoutingView(version=held.version, unchanged=True)]
        else:
            found = held.since(before)
        now = self._clock()
        for message in found:
            message.as_of.FromDatetime(now)
        return held, found

    def _entries(self) -> dict[Key, ViewEntry]:
        """Everything gateways hold. Of what did not change, the same messages as before."""
        known = {name: credential for name, (credential, _) in self._live.items()}
        found = [each for each in self._credentials.live(known) if each.principal.kind in _CALLERS]
        policy = self._policies.current()
        if policy is not self._policy or not _are_same(found, self._found):
            self._people = self._entries_of(found, policy)
            self._policy, self._found = policy, found
        entries = dict(self._people)
        entries.update((key_of(route), route) for route in self._routes())
        return entries

    def _entries_of(self, found: list[LiveCredential], policy: Policy) -> dict[Key, ViewEntry]:
        """Credentials, and what those whose they are may do."""
        kept, self._live = self._live, {}
        entries: dict[Key, ViewEntry] = {}
        for credential in found:
            old = kept.get(credential.id)
            if old is None or old[0] is not credential:
                old = (credential, _credential_of(credential))
            self._live[credential.id] = old
            entries["credential", credential.id] = old[1]
        for right in self._rights_of({credential.principal for credential in found}, policy):
            entries[key_of(right)] = right
        return entries

    def _rights_of(self, principals: set[Principal], policy: Policy) -> Iterator[rpc.Right]:
        """What principals may do, by project; made anew for those whose roles have changed."""
        kept, self._rights = self._rights, {}
        for principal in principals:
            held = policy.held(principal)
            known = kept.get(principal)
            if known is None or known[0] is not held:
                known = (held, rights_of(policy, principal))
            self._rights[principal] = known
            yield from known[1]

    def tokenizer(
        self, caller: Caller, request: rpc.GetServedTokenizerRequest
    ) -> rpc.ServedTokenizer:
        """The tokenizer of a served model version, decrypted, in one message.

        Raises NotFound; FailedPrecondition when a message cannot hold it.
        """
        del caller  # a gateway, as the gate has decided
        return served_tokenizers.whole(self._artifacts.open(self._version(request.endpoint, "")))

    def tokenizer_parts(
        self, caller: Caller, request: rpc.ReadServedTokenizerRequest
    ) -> Generator[rpc.ServedTokenizerPart]:
        """The same in pieces of bounded size, each decrypted when it is asked for."""
        del caller
        reader = self._artifacts.open(self._version(request.endpoint, request.model_uid))
        return served_tokenizers.parts(reader, request.held)

    def _version(self, endpoint: str, uid: str) -> Row[Any]:
        """The row of a model version that an endpoint serves. Raises NotFound.

        Args:
            endpoint: its name.
            uid: of the version; empty: the one that it is to serve.
        """
        name = Name.parse(endpoint, "endpoint", field="endpoint")
        version = tables.artifact_version
        this = (_endpoint.project == name["project"], _endpoint.id == name["endpoint"])
        wanted = select(version).join(tables.endpoint, _endpoint.model_version == version.c.uid)
        of_replica = (
            select(version)
            .join(tables.replica, _replica.model_version == version.c.uid)
            .join(tables.endpoint, _endpoint.uid == _replica.endpoint)
        )
        with self._database.read() as state:
            row = state.first(wanted.where(*this))
            if uid and row is not None and row.uid != uid:
                row = state.first(of_replica.where(*this, version.c.uid == uid))
        if row is None:
            raise missing(endpoint)
        return row

    def _routes(self) -> Iterator[rpc.Route]:
        """The routes, by name."""
        version = tables.artifact_version.c
        model = (version.project.label("model_project"), version.artifact, version.number)
        replicas: dict[str, list[endpoint_pb2.Replica]] = {}
        with self._database.read() as state:
            # Also those that do not answer yet: a gateway waits for them, and only then.
            for row in state.all(
                select(tables.replica, *model)
                .join(tables.artifact_version, _replica.model_version == version.uid)
                .order_by(_replica.id)
            ):
                replicas.setdefault(row.endpoint, []).append(_replica_of(row))
            rows = state.all(
                select(tables.endpoint, *model)
                .join(tables.artifact_version, _endpoint.model_version == version.uid)
                .order_by(_endpoint.project, _endpoint.id)
            )
            for row in rows:
                yield rpc.Route(
                    endpoint=names.endpoint(row.project, row.id),
                    project=names.project(row.project),
                    model=_model_of(row),
                    model_uid=row.model_version,
                    max_sequence_length=row.max_sequence_length,
                    state=f"STATE_{row.state}",
                    replicas=replicas.get(row.uid, []),
                )


def rights_of(policy: Policy, principal: Principal) -> list[rpc.Right]:
    """What a principal may do that gateways decide, by project.

    One line for all projects and one for each project that is named by a role of the principal or
    by a rule; a gateway takes the line of a project before that of all.
    """
    found = []
    for domain in policy.places(principal):
        permissions = [each for each in PERMISSIONS if policy.allowed(principal, domain, each)]
        found.append(
            rpc.Right(
                principal=principal.name, project=scopes.name(domain), permissions=permissions
            )
        )
    return found


def _are_same(some: list[LiveCredential], others: list[LiveCredential]) -> bool:
    """Whether two lists hold the very same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _credential_of(credential: LiveCredential) -> rpc.Credential:
    return rpc.Credential(
        id=credential.id,
        digest=credential.digest,
        principal=credential.principal.name,
        expire_time=timestamp(credential.expire_time),
    )


def _model_of(row: Row[Any]) -> str:
    return names.model_version(row.model_project, row.artifact, row.number)


def _replica_of(row: Row[Any]) -> endpoint_pb2.Replica:
    """A replica as gateways see it: with the name that its server proves."""
    replica = replica_resource(row, _model_of(row))
    replica.server_name = identity_of(row).server_name
    return replica
