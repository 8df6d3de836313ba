"""What gateways need to decide and route by themselves, and what they report.

Rules kept here:
* the view holds what the policy engine decided, for live credentials only: a revoked token, a
  locked user or a lost role is missing from the next view;
* it never holds a secret of a person or application, only keyed digests;
* it is made once for all gateways, and only when something has changed;
* usage is durable in the audit chain before the call that reports it returns, and holds no text;
* what a gateway counted of strangers becomes one record for each source, so many at most.

The attacks: a gateway that goes on serving a caller whose right has ended; strangers who fill the
audit log through a gateway. Called by `rpc.routing`.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, select

from appliance.api.serving.v1 import endpoint_pb2
from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import Entry
from appliance.control.auth import scopes
from appliance.control.auth.credentials import Credentials, LiveCredential
from appliance.control.auth.policy import Policy, PolicyStore
from appliance.control.services.artifacts import Artifacts
from appliance.control.services.caller import Caller
from appliance.control.services.endpoints import model_name, replica_resource
from appliance.control.services.release import identity_of
from appliance.control.services.resources import missing, timestamp
from appliance.control.services.routing_view import Held, Key, key_of
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core import names
from appliance.core.errors import InvalidInput, Tampered
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name
from appliance.crypto.artifacts import ArtifactReader
from appliance.wire.admission import MAX_COUNTED_SOURCES
from appliance.wire.routing import ViewEntry

PERMISSIONS = ("endpoints.infer",)
"""What gateways decide."""
LOOK_AGAIN = timedelta(seconds=5)
"""After so long, credentials are read again though nothing was written: sessions end."""
METHOD = "/appliance.api.inference.v1.InferenceService/Generate"
MOST_USAGES = 1000
MAX_REFUSALS = MAX_COUNTED_SOURCES + 1
"""Rows of one report: as many as a gateway tells apart in a minute, and one for all others."""
MAX_REASONS = 32
LONGEST_WORD = 256
DURABLE_SECONDS = 30.0
_CALLERS = frozenset({PrincipalKind.USER, PrincipalKind.SERVICE_ACCOUNT})
_endpoint = tables.endpoint.c
_replica = tables.replica.c


class Routing:
    """Makes views, reads tokenizers, takes in usage.

    Args:
        token_key: key of the digests of bearer tokens.
    """

    def __init__(  # noqa: PLR0913  # the parts of the control plane it reads
        self,
        database: Database,
        policies: PolicyStore,
        credentials: Credentials,
        artifacts: Artifacts,
        log: AuditLog,
        token_key: bytes,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._policies = policies
        self._credentials = credentials
        self._artifacts = artifacts
        self._log = log
        self._token_key = token_key
        self._clock = clock
        self._lock = threading.Lock()
        self._held: Held | None = None
        self._generation = 0
        self._made = clock()
        self._live: dict[str, tuple[LiveCredential, rpc.Credential]] = {}
        self._rights: dict[Principal, tuple[object, list[rpc.Right]]] = {}

    def now(self) -> Held:
        """The view now; the same object for every gateway as long as it says the same.

        It is made anew only when something in the state has changed, or when so much time has
        passed that a credential may have ended by itself.
        """
        with self._lock:
            with self._database.read() as state:
                generation = int(state.value(select(tables.meta.c.generation)))
            moment = self._clock()
            if self._held is None:
                self._held = Held(generation, self._token_key, {})
            elif generation == self._generation and moment - self._made < LOOK_AGAIN:
                return self._held
            self._held = self._held.followed_by(generation, self._entries())
            self._generation, self._made = generation, moment
            return self._held

    def messages(self, before: Held | None) -> tuple[Held, list[rpc.RoutingView]]:
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
        kept, self._live = self._live, {}
        entries: dict[Key, ViewEntry] = {}
        for credential in found:
            old = kept.get(credential.id)
            if old is None or old[0] is not credential:
                old = (credential, _credential_of(credential))
            self._live[credential.id] = old
            entries["credential", credential.id] = old[1]
        for right in self._rights_of({credential.principal for credential in found}):
            entries[key_of(right)] = right
        for route in self._routes():
            entries[key_of(route)] = route
        return entries

    def _rights_of(self, principals: set[Principal]) -> Iterator[rpc.Right]:
        """What principals may do, by project; made anew for those whose roles have changed."""
        policy = self._policies.current()
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
        """The tokenizer of a served model version, decrypted."""
        del caller  # a gateway, as the gate has decided
        name = Name.parse(request.endpoint, "endpoint", field="endpoint")
        version = tables.artifact_version.c
        with self._database.read() as state:
            row = state.first(
                select(tables.artifact_version)
                .join(tables.endpoint, _endpoint.model_version == version.uid)
                .where(_endpoint.project == name["project"], _endpoint.id == name["endpoint"])
            )
        if row is None:
            raise missing(request.endpoint)
        return served_tokenizer(self._artifacts.open(row))

    def report(self, caller: Caller, request: rpc.ReportUsageRequest) -> rpc.ReportUsageResponse:
        """Record inference calls and counted refusals in the audit chain; durable when it returns.

        Raises AuditUnavailable when it cannot be made durable.
        """
        if len(request.usages) > MOST_USAGES:
            raise InvalidInput(f"report at most {MOST_USAGES} usages at a time")
        if len(request.refusals) > MAX_REFUSALS:
            raise InvalidInput(f"report at most {MAX_REFUSALS} rows of refusals at a time")
        entries = [_entry(caller, usage) for usage in request.usages]
        entries += [_refused(caller, row) for row in request.refusals]
        waiting: list[Future[int]] = [self._log.append(entry) for entry in entries]
        for future in waiting:
            future.result(DURABLE_SECONDS)
        return rpc.ReportUsageResponse()

    def _routes(self) -> Iterator[rpc.Route]:
        """The routes, by name."""
        replicas: dict[str, list[endpoint_pb2.Replica]] = {}
        with self._database.read() as state:
            # Also those that do not answer yet: a gateway waits for them, and only then.
            for replica in state.all(select(tables.replica).order_by(_replica.id)):
                replicas.setdefault(replica.endpoint, []).append(_replica_of(replica))
            for row in state.all(select(tables.endpoint).order_by(_endpoint.project, _endpoint.id)):
                yield rpc.Route(
                    endpoint=names.endpoint(row.project, row.id),
                    project=names.project(row.project),
                    model=model_name(state, row),
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


def _credential_of(credential: LiveCredential) -> rpc.Credential:
    return rpc.Credential(
        id=credential.id,
        digest=credential.digest,
        principal=credential.principal.name,
        expire_time=timestamp(credential.expire_time),
    )


def _replica_of(row: Row[Any]) -> endpoint_pb2.Replica:
    """A replica as gateways see it: with the name that its server proves."""
    replica = replica_resource(row)
    replica.server_name = identity_of(row).server_name
    return replica


def served_tokenizer(reader: ArtifactReader) -> rpc.ServedTokenizer:
    """The tokenizer in a model, and what it takes to make prompts and to know the end."""
    files = set(reader.files())
    settings = _object(reader, "tokenizer_config.json", files)
    template = settings.get("chat_template", "")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default", "")
    # A file of its own is the newer place, and counts before the older one, as in transformers.
    if "chat_template.jinja" in files:
        template = reader.read_bytes("chat_template.jinja").decode()
    ends: set[int] = set()
    for file in ("generation_config.json", "config.json"):
        value = _object(reader, file, files).get("eos_token_id")
        ends.update(_ids(value))
    return rpc.ServedTokenizer(
        tokenizer_json=reader.read_bytes("tokenizer.json"),
        chat_template=template if isinstance(template, str) else "",
        end_token_ids=sorted(ends),
        bos_token=_token(settings.get("bos_token")),
        eos_token=_token(settings.get("eos_token")),
    )


def _object(reader: ArtifactReader, file: str, files: set[str]) -> dict[str, Any]:
    if file not in files:
        return {}
    try:
        value = reader.read_json(file)
    except json.JSONDecodeError as error:
        raise Tampered(f"{file} of {reader.object} is not JSON", object=reader.object) from error
    return value if isinstance(value, dict) else {}


def _ids(value: object) -> Iterator[int]:
    """Token ids in a value that is one, a list of them, or something else."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 32:
            yield item


def _token(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _entry(caller: Caller, usage: rpc.Usage) -> Entry:
    """One audit record; ids, names and numbers only."""
    return Entry(
        kind="inference",
        request_id=_word(usage.request_id),
        principal=_word(usage.principal),
        method=METHOD,
        resource=_resource(usage.endpoint),
        outcome=_word(usage.reason) or "OK",
        source=_word(usage.source),
        details={
            "gateway": caller.principal.id,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "continuations": usage.continuations,
            "first_token_milliseconds": _milliseconds(usage.first_token_seconds),
            "milliseconds": _milliseconds(usage.seconds),
            "start_time": usage.start_time.ToJsonString() if usage.HasField("start_time") else "",
        },
    )


def _refused(caller: Caller, row: rpc.Refusals) -> Entry:
    """One audit record of everything that a source, or a caller over its budget, was refused."""
    reasons, methods = _counts(row.reasons), _counts(row.methods)
    return Entry(
        kind="denied",
        principal=_word(row.principal),
        outcome=max(reasons, key=lambda reason: reasons[reason], default=""),
        source=_word(row.source),
        details={
            "gateway": caller.principal.id,
            "count": row.count,
            "reasons": reasons,
            "methods": methods,
        },
    )


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    """How many of what, by names of ours; not more names than a gateway tells apart."""
    named = ((_word(name), count) for name, count in sorted(counts.items())[:MAX_REASONS])
    return {name: count for name, count in named if name}


def _word(text: str) -> str:
    """An id or a name; what a caller wrote instead of one is left out, for it could be anything."""
    return text if len(text) <= LONGEST_WORD and text.isprintable() and " " not in text else ""


def _resource(text: str) -> str:
    try:
        return str(Name.parse(text, "endpoint"))
    except InvalidInput:
        return ""


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds) if math.isfinite(1000 * seconds) else 0
