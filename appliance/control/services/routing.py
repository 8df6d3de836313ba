"""What gateways need to decide and route by themselves, and what they report.

Rules kept here:
* the view holds what the policy engine decided, for live credentials only: a revoked token, a
  locked user or a lost role is missing from the next view;
* it never holds a secret of a person or application, only keyed digests;
* usage is durable in the audit chain before the call that reports it returns, and holds no text;
* what a gateway counted of strangers becomes one record for each source, so many at most.

The attacks: a gateway that goes on serving a caller whose right has ended; strangers who fill the
audit log through a gateway. Called by `rpc.routing`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select

from appliance.api.serving.v1 import endpoint_pb2
from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.control.audit.log import AuditLog
from appliance.control.audit.record import Entry
from appliance.control.auth.credentials import Credentials
from appliance.control.auth.policy import PolicyStore
from appliance.control.services.artifacts import Artifacts
from appliance.control.services.caller import Caller
from appliance.control.services.endpoints import model_name, replica_resource
from appliance.control.services.release import identity_of
from appliance.control.services.resources import missing, timestamp
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core import names
from appliance.core.errors import InvalidInput, Tampered
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name
from appliance.crypto.artifacts import ArtifactReader
from appliance.wire.admission import MAX_COUNTED_SOURCES

PERMISSION = "endpoints.infer"
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

    def view(self) -> rpc.RoutingView:
        """The view now; `version` is the state's generation."""
        live = [found for found in self._credentials.live() if found.principal.kind in _CALLERS]
        routes, projects = self._routes()
        with self._database.read() as state:
            generation = int(state.value(select(tables.meta.c.generation)))
        return rpc.RoutingView(
            version=generation,
            as_of=timestamp(self._clock()),
            token_key=self._token_key,
            credentials=[
                rpc.Credential(
                    id=found.id,
                    digest=found.digest,
                    principal=found.principal.name,
                    expire_time=timestamp(found.expire_time),
                )
                for found in live
            ],
            grants=self._grants({found.principal for found in live}, routes, projects),
            routes=routes,
        )

    def follow(self, last: rpc.RoutingView | None) -> rpc.RoutingView:
        """The view now, of a higher version than `last`; of the same version when equal to it.

        Only for comparison is everything else in it; `unchanged` says what to send.
        """
        view = self.view()
        if last is None:
            return view
        if _same(view, last):
            view.version = last.version
        else:
            view.version = max(view.version, last.version + 1)
        return view

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

    def _routes(self) -> tuple[list[rpc.Route], dict[str, str]]:
        """The routes by name, and the project of each."""
        routes: list[rpc.Route] = []
        projects: dict[str, str] = {}
        with self._database.read() as state:
            for row in state.all(select(tables.endpoint).order_by(_endpoint.project, _endpoint.id)):
                found = state.all(
                    select(tables.replica)
                    # Also those that do not answer yet: a gateway waits for them, and only then.
                    .where(_replica.endpoint == row.uid)
                    .order_by(_replica.id)
                )
                name = names.endpoint(row.project, row.id)
                projects[name] = row.project
                routes.append(
                    rpc.Route(
                        endpoint=name,
                        model=model_name(state, row),
                        max_sequence_length=row.max_sequence_length,
                        replicas=[_replica_of(replica) for replica in found],
                    )
                )
        return routes, projects

    def _grants(
        self, principals: set[Principal], routes: list[rpc.Route], projects: dict[str, str]
    ) -> list[rpc.Grant]:
        policy = self._policies.current()
        grants: list[rpc.Grant] = []
        for principal in sorted(principals, key=lambda principal: principal.name):
            endpoints = [
                route.endpoint
                for route in routes
                if policy.allowed(principal, projects[route.endpoint], PERMISSION)
            ]
            if endpoints:
                grants.append(rpc.Grant(principal=principal.name, endpoints=endpoints))
        return grants


def _replica_of(row: Row[Any]) -> endpoint_pb2.Replica:
    """A replica as gateways see it: with the name that its server proves."""
    replica = replica_resource(row)
    replica.server_name = identity_of(row).server_name
    return replica


def _same(view: rpc.RoutingView, other: rpc.RoutingView) -> bool:
    """Whether two views say the same, whenever they were made."""
    mine, its = rpc.RoutingView(), rpc.RoutingView()
    for copy, original in ((mine, view), (its, other)):
        copy.CopyFrom(original)
        copy.ClearField("version")
        copy.ClearField("as_of")
    return mine == its


def unchanged(view: rpc.RoutingView) -> rpc.RoutingView:
    """The message that says that `view` still holds."""
    return rpc.RoutingView(version=view.version, as_of=view.as_of, unchanged=True)


def served_tokenizer(reader: ArtifactReader) -> rpc.ServedTokenizer:
    """The tokenizer in a model, and what it takes to make prompts and to know the end."""
    files = set(reader.files())
    settings = _object(reader, "tokenizer_config.json", files)
    template = settings.get("chat_template", "")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default", "")
    if not template and "chat_template.jinja" in files:
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
