"""What gateways see and report."""

from __future__ import annotations

import json
import random
from typing import Any, cast

import pytest
from sqlalchemy import event

from appliance.api.serving.v1 import endpoint_pb2, endpoint_service_pb2, routing_service_pb2
from appliance.control.auth import rules, tokens
from appliance.control.auth.policy import Policy, compile_policy
from appliance.control.auth.roles import Roles
from appliance.control.auth.rules import PolicyRows, PolicyRule, RoleLink
from appliance.control.auth.scopes import EVERYWHERE
from appliance.control.auth.tokens import TokenKind
from appliance.control.services.access.bindings import Bindings
from appliance.control.services.common.caller import Caller
from appliance.control.services.serving import served_tokenizers
from appliance.control.services.serving.routing import rights_of
from appliance.control.store import tables
from appliance.core.errors import InvalidInput, NotFound
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.artifacts import ArtifactReader, FileEntry
from appliance.gateway import access
from appliance.gateway.snapshot import RoutingSnapshot
from appliance.gateway.view import View
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, Lab
from tests.fakes.routing import seal

NAME = "projects/demo/endpoints/chat"
GATEWAY = Caller(principal=Principal(PrincipalKind.GATEWAY, "gateway-1"))
Usage = routing_service_pb2.Usage


def application(lab: Lab, name: str, *, role: bool) -> str:
    """A service account with a live token; the token's id."""
    base, now = lab.base, lab.time.wall()
    minted = tokens.mint(TokenKind.SERVICE, base.keyring.token_hmac)
    with lab.database.write() as transaction:
        transaction.run(
            tables.service_account.insert().values(id=name, project="demo", create_time=now)
        )
        transaction.run(
            tables.token.insert().values(
                id=minted.id,
                service_account=name,
                digest=minted.digest,
                create_time=now,
                expire_time=now.replace(year=now.year + 1),
            )
        )
    if role:
        bind(lab, RoleLink(f"svc:{name}", "inference", "demo"))
    return minted.id


def bind(lab: Lab, link: RoleLink) -> None:
    base = lab.base
    bindings = Bindings(base.database, base.changes, base.policies, base.events, base.clock)
    with lab.database.write() as transaction:
        bindings.bind(transaction, link, "users/alice")


def take(view: View, messages: list[routing_service_pb2.RoutingView]) -> None:
    for message in messages:
        view.take(message)


async def serve(lab: Lab) -> None:
    node = await lab.connected("n1")
    request = endpoint_service_pb2.CreateEndpointRequest(
        parent="projects/demo",
        endpoint_id="chat",
        endpoint=endpoint_pb2.Endpoint(model=lab.model(), replicas=2, cache_bytes=64 << 20),
    )
    lab.endpoints.create(ALICE, request)
    lab.look()
    await node.take()
    node.ready(node.started[0].work, "127.0.0.1:5001")


async def test_the_view_holds_live_credentials_rights_and_ready_replicas(lab: Lab) -> None:
    await serve(lab)
    allowed, stranger = application(lab, "app", role=True), application(lab, "other", role=False)
    _, (view,) = lab.routing.messages(None)
    assert {credential.id for credential in view.credentials} == {allowed, stranger}
    assert [(r.principal, r.project, list(r.permissions)) for r in view.rights] == [
        ("serviceAccounts/app", "projects/demo", ["endpoints.infer"])
    ]
    route = view.routes[0]
    assert (route.endpoint, route.project, route.model, route.max_sequence_length) == (
        NAME,
        "projects/demo",
        "projects/demo/models/base/versions/1",
        128,
    )
    replica, coming = route.replicas
    assert (replica.id, replica.address) == ("r0", "127.0.0.1:5001")
    assert (coming.id, coming.address) == ("r1", "")
    # The name of this start alone: the certificate of an earlier one is worth nothing.
    (endpoint,) = lab.rows(tables.endpoint)
    assert replica.server_name == f"{endpoint.uid}-r0-1.replica.appliance"
    assert view.token_key == lab.base.keyring.token_hmac
    snapshot = RoutingSnapshot.of(view)
    assert access.allowed(snapshot, "serviceAccounts/app") == [NAME]
    assert access.allowed(snapshot, "serviceAccounts/other") == []


@pytest.mark.attack
async def test_a_revoked_token_is_gone_with_the_next_change(lab: Lab) -> None:
    await serve(lab)
    token = application(lab, "app", role=True)
    view = View(10.0)
    held, messages = lab.routing.messages(None)
    take(view, messages)
    with lab.database.write() as transaction:
        transaction.run(tables.token.delete().where(tables.token.c.id == token))
    held, (change,) = lab.routing.messages(held)
    assert (list(change.gone_credentials), list(change.routes)) == ([token], [])
    assert [right.principal for right in change.gone_rights] == ["serviceAccounts/app"]
    take(view, [change])
    assert (view.current().credentials, view.current().rights) == ({}, {})
    assert view.current().version == held.version


async def test_a_view_that_says_the_same_keeps_its_version_and_is_sent_short(lab: Lab) -> None:
    await serve(lab)
    held, (first,) = lab.routing.messages(None)
    lab.forward(1)
    with lab.database.write():
        pass
    same, (short,) = lab.routing.messages(held)
    assert same is held
    assert (short.unchanged, short.version, list(short.routes)) == (True, first.version, [])
    assert short.as_of.ToDatetime() > first.as_of.ToDatetime()


async def test_nothing_is_read_again_for_another_gateway(lab: Lab) -> None:
    await serve(lab)
    application(lab, "app", role=True)
    held, _ = lab.routing.messages(None)
    reads: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        reads.append(statement)

    event.listen(lab.database._reader, "before_cursor_execute", note)
    for _ in range(3):
        again, messages = lab.routing.messages(None)
        assert again is held
        assert messages[0].credentials
    assert {read for read in reads if read.startswith("SELECT")} == {
        "SELECT meta.generation \nFROM meta"
    }


async def test_a_session_that_ends_by_itself_is_gone_after_a_while(lab: Lab) -> None:
    await serve(lab)
    token = application(lab, "app", role=True)
    held, _ = lab.routing.messages(None)
    lab.forward(400 * 24 * 3600)
    _, (change,) = lab.routing.messages(held)
    assert list(change.gone_credentials) == [token]


async def test_roles_of_all_projects_are_one_line(lab: Lab) -> None:
    await serve(lab)
    bind(lab, RoleLink("user:alice", "viewer", "demo"))
    (right,) = rights_of(lab.base.policies.current(), ALICE.principal)[:1]
    assert (right.project, list(right.permissions)) == ("projects/-", ["endpoints.infer"])


def policy_with(roles: Roles, *links: RoleLink, extra: tuple[PolicyRule, ...] = ()) -> Policy:
    rows = PolicyRows(1, (*rules.rules_of(roles), *extra), links, {})
    return compile_policy(rows, roles)


def test_a_gateway_decides_as_the_policy_does() -> None:
    roles, chance = Roles.load(), random.Random(3)
    places = ["p0", "p1", "p2", EVERYWHERE]
    for _ in range(8):
        links = [
            RoleLink(f"user:{chance.choice('abcd')}", role, chance.choice(places))
            for role in ("owner", "viewer", "inference")
            for _ in range(3)
        ]
        deny = PolicyRule(f"user:{chance.choice('abcd')}", "p1", "endpoints", "infer", "deny")
        policy = policy_with(roles, *links, extra=(deny,))
        people = [Principal(PrincipalKind.USER, letter) for letter in ("aa", *"abcd")]
        view = routing_service_pb2.RoutingView(
            rights=[right for who in people for right in rights_of(policy, who)]
        )
        snapshot = RoutingSnapshot.of(seal(view))
        for who in people:
            for project in ("p0", "p1", "p2", "p9"):
                assert snapshot.may(who.name, f"projects/{project}", "endpoints.infer") == (
                    policy.allowed(who, project, "endpoints.infer")
                ), (who, project, links)


async def test_the_tokenizer_of_what_is_served(lab: Lab) -> None:
    await serve(lab)
    request = routing_service_pb2.GetServedTokenizerRequest(endpoint=NAME)
    found = lab.routing.tokenizer(GATEWAY, request)
    assert found.tokenizer_json == tiny_model.files()["tokenizer.json"]
    assert (found.chat_template, found.bos_token, found.eos_token) == (
        tiny_model.TEMPLATE,
        "<s>",
        "</s>",
    )
    assert list(found.end_token_ids) == [2, 7]
    request.endpoint = "projects/demo/endpoints/none"
    with pytest.raises(NotFound):
        lab.routing.tokenizer(GATEWAY, request)


class Folder:
    """The files of a model, opened."""

    object = "m"

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def files(self) -> list[str]:
        return list(self._files)

    def read_bytes(self, file: str) -> bytes:
        return self._files[file]

    def read_json(self, file: str) -> Any:
        return json.loads(self._files[file])

    def entry(self, file: str) -> FileEntry:
        return FileEntry(file, len(self._files[file]), 0, "0" * 64)


def test_a_template_in_a_file_of_its_own_is_the_newer_one() -> None:
    files = tiny_model.files() | {"chat_template.jinja": b"newer"}
    found = served_tokenizers.whole(cast("ArtifactReader", Folder(files)))
    assert found.chat_template == "newer"


def test_usage_is_in_the_audit_chain_when_the_call_returns_and_holds_no_text(lab: Lab) -> None:
    usages = [
        Usage(
            request_id="r-1",
            principal="users/alice",
            endpoint=NAME,
            prompt_tokens=5,
            completion_tokens=7,
            seconds=1.5,
        ),
        Usage(
            endpoint="tell me a secret\nplease", reason="RESOURCE_NOT_FOUND", seconds=float("nan")
        ),
    ]
    lab.usage.report(GATEWAY, routing_service_pb2.ReportUsageRequest(usages=usages))
    newest = list(lab.base.opened.log.newest())[:2]
    assert [(r["kind"], r["principal"], r["resource"], r["outcome"]) for r in newest] == [
        ("inference", "", "", "RESOURCE_NOT_FOUND"),
        ("inference", "users/alice", NAME, "OK"),
    ]
    assert newest[1]["details"]["completion_tokens"] == 7
    assert newest[1]["details"]["milliseconds"] == 1500


@pytest.mark.attack
def test_counted_refusals_are_one_record_for_each_source(lab: Lab) -> None:
    rows = [
        routing_service_pb2.Refusals(
            source="10.0.0.7",
            count=1203,
            reasons={"UNAUTHENTICATED": 1200, "CONNECTIONS": 3, "tell me a secret\nplease": 9},
            methods={"/v1/models": 1200, "connection": 3},
        ),
        routing_service_pb2.Refusals(
            principal="users/alice", count=5, reasons={"RESOURCE_NOT_FOUND": 5}
        ),
    ]
    before = len(list(lab.base.opened.log.newest()))
    lab.usage.report(GATEWAY, routing_service_pb2.ReportUsageRequest(refusals=rows))
    records = list(lab.base.opened.log.newest())
    assert len(records) == before + 2
    named, strangers = records[:2]
    assert (strangers["kind"], strangers["source"], strangers["principal"]) == (
        "denied",
        "10.0.0.7",
        "",
    )
    assert strangers["outcome"] == "UNAUTHENTICATED"
    assert strangers["details"] == {
        "gateway": "gateway-1",
        "count": 1203,
        "reasons": {"UNAUTHENTICATED": 1200, "CONNECTIONS": 3},
        "methods": {"/v1/models": 1200, "connection": 3},
    }
    assert (named["principal"], named["source"], named["details"]["count"]) == (
        "users/alice",
        "",
        5,
    )


@pytest.mark.attack
def test_a_gateway_reports_no_more_rows_than_it_tells_apart(lab: Lab) -> None:
    rows = [routing_service_pb2.Refusals(source=str(number), count=1) for number in range(66)]
    with pytest.raises(InvalidInput, match="at most 65 rows"):
        lab.usage.report(GATEWAY, routing_service_pb2.ReportUsageRequest(refusals=rows))
