"""Applications to their end: changed, deleted; their tokens replaced, used, found."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from appliance.api.access.v1 import service_account_pb2, service_account_service_pb2_grpc
from appliance.api.access.v1 import service_account_service_pb2 as rpc
from appliance.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from appliance.api.serving.v1 import routing_service_pb2
from appliance.control.auth.rules import RoleLink
from appliance.control.auth.scopes import EVERYWHERE
from appliance.control.services.common.caller import Caller
from appliance.control.services.serving.routing import Routing
from appliance.control.store import tables
from appliance.core.errors import (
    AlreadyExists,
    Conflict,
    Denied,
    FailedPrecondition,
    FreshMfaRequired,
    InvalidInput,
    NotFound,
    Unauthenticated,
)
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.tokens import TokenKind, parse
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer, error_of
from tests.fakes.state import full

APP = "serviceAccounts/demo--app"
GATEWAY = Caller(principal=Principal(PrincipalKind.GATEWAY, "gateway-1"))


class Who:
    """Somebody who calls."""

    def __init__(self, appliance: Appliance, token: str) -> None:
        self.metadata = bearer(token)
        self.accounts = appliance.api(service_account_service_pb2_grpc.ServiceAccountServiceStub)
        self.auth = appliance.api(auth_service_pb2_grpc.AuthServiceStub)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**fields: Any) -> Any:
            request = getattr(rpc, f"{name}Request")(**fields)
            return getattr(self.accounts, name)(request, metadata=self.metadata)

        return call

    def update(self, *paths: str, **fields: Any) -> Any:
        request = rpc.UpdateServiceAccountRequest(
            service_account=service_account_pb2.ServiceAccount(name=APP, **fields)
        )
        request.update_mask.paths.extend(paths)
        return self.accounts.UpdateServiceAccount(request, metadata=self.metadata)

    def who(self) -> Any:
        return self.auth.WhoAmI(auth_service_pb2.WhoAmIRequest(), metadata=self.metadata)


@pytest.fixture
def alice(appliance: Appliance) -> Who:
    """The administrator, second factor just now."""
    return Who(appliance, appliance.session(ADMINISTRATOR))


@pytest.fixture
async def app(appliance: Appliance, alice: Who) -> Any:
    """The token of an application `demo--app` as it was made."""
    appliance.project("demo")
    await alice.CreateServiceAccount(
        parent="projects/demo", service_account_id="app", description="the intranet's search"
    )
    appliance.bind(RoleLink("svc:demo--app", "inference", "demo"))
    return await alice.CreateToken(name=APP)


def at_gateways(appliance: Appliance) -> set[str]:
    """Ids of the credentials that gateways take with their next view."""
    base, control = appliance.control.base, appliance.control
    routing = Routing(
        base.database,
        base.policies,
        control.people.credentials,
        control.work.artifacts,
        base.keyring.token_hmac,
        base.clock,
    )
    return {key[1] for key in routing.now().entries if key[0] == "credential"}


async def test_an_application_is_described_locked_and_unlocked(
    appliance: Appliance, alice: Who, app: Any
) -> None:
    seen = await alice.GetServiceAccount(name=APP)
    assert (seen.description, seen.locked) == ("the intranet's search", False)
    caller = Who(appliance, app.token)
    assert (await alice.update("locked", locked=True, etag=seen.etag)).locked
    assert isinstance(await error_of(caller.who()), Unauthenticated)
    assert app.metadata.id not in at_gateways(appliance)
    assert isinstance(
        await error_of(alice.update("locked", locked=False, etag=seen.etag)), Conflict
    )
    made = await alice.update("locked", "description", locked=False, description="")
    assert (made.locked, made.description) == (False, "")
    assert (await caller.who()).principal == APP
    for wrong in (
        alice.update(),
        alice.update("project"),
        alice.update("description", description="x" * 1001),
    ):
        assert isinstance(await error_of(wrong), InvalidInput)


@pytest.mark.attack
async def test_a_token_of_a_deleted_application_opens_nothing_and_its_name_neither(
    appliance: Appliance, alice: Who, app: Any
) -> None:
    caller = Who(appliance, app.token)
    assert app.metadata.id in at_gateways(appliance)
    now = appliance.clock()
    with appliance.database.write() as transaction:
        answer = tables.request.insert()
        values = {"method": "m", "request_id": "r", "payload_digest": b"", "response": b""}
        transaction.run(answer.values(principal="svc:demo--app", create_time=now, **values))
    seen = await alice.GetServiceAccount(name=APP, view=rpc.SERVICE_ACCOUNT_VIEW_FULL)
    assert list(seen.details.roles) == ["inference@projects/demo"]
    await alice.DeleteServiceAccount(name=APP, validate_only=True)
    made = await alice.DeleteServiceAccount(name=APP, etag=seen.etag)
    assert [each.id for each in made.service_account.tokens] == [app.metadata.id]
    assert list(made.service_account.details.roles) == ["inference@projects/demo"]
    assert isinstance(await error_of(caller.who()), Unauthenticated)
    assert app.metadata.id not in at_gateways(appliance)
    assert isinstance(await error_of(alice.GetServiceAccount(name=APP)), NotFound)
    await alice.CreateServiceAccount(parent="projects/demo", service_account_id="app")
    assert isinstance(await error_of(caller.who()), Unauthenticated)
    again = await alice.CreateToken(name=APP)
    assert list((await Who(appliance, again.token).who()).roles) == []
    with appliance.database.read() as state:
        subjects = [row.principal for row in state.all(tables.request.select())]
    assert "svc:demo--app" not in subjects


@pytest.mark.attack
async def test_an_owner_deletes_no_application_of_others_and_replaces_none_of_their_tokens(
    appliance: Appliance, app: Any
) -> None:
    appliance.user("olga", ("owner", "demo"))
    appliance.user("eve", ("owner", EVERYWHERE))
    olga = Who(appliance, appliance.session("olga"))
    appliance.project("theirs")
    other = Who(appliance, appliance.session("eve"))
    await other.CreateServiceAccount(parent="projects/theirs", service_account_id="app")
    theirs = "serviceAccounts/theirs--app"
    for call in (
        olga.DeleteServiceAccount(name=theirs),
        olga.RotateToken(name=theirs, token_id=app.metadata.id),
        olga.ListTokens(scope="projects/theirs"),
    ):
        assert isinstance(await error_of(call), NotFound)
    # Of another application: as if there were none.
    other_one = other.RotateToken(name=theirs, token_id=app.metadata.id)
    assert isinstance(await error_of(other_one), NotFound)
    assert isinstance(await error_of(olga.ListTokens(scope="projects/-")), Denied)


async def test_a_token_is_replaced_with_an_overlap(
    appliance: Appliance, alice: Who, app: Any
) -> None:
    made = await alice.RotateToken(name=APP, token_id=app.metadata.id, overlap_hours=2)
    old, new = Who(appliance, app.token), Who(appliance, made.token)
    assert (await old.who()).principal == (await new.who()).principal == APP
    listed = (await alice.ListTokens(scope="projects/demo")).tokens
    assert {each.id: (each.replaces, each.replaced_by) for each in listed} == {
        app.metadata.id: ("", made.metadata.id),
        made.metadata.id: (app.metadata.id, ""),
    }
    assert made.replaced.expire_time == next(
        each.expire_time for each in listed if each.id == app.metadata.id
    )
    assert {app.metadata.id, made.metadata.id} <= at_gateways(appliance)
    appliance.clock.forward(hours=2)
    assert isinstance(await error_of(old.who()), Unauthenticated)
    assert (await new.who()).principal == APP
    assert app.metadata.id not in at_gateways(appliance)


async def test_without_an_overlap_the_old_token_ends_before_the_call_returns(
    appliance: Appliance, alice: Who, app: Any
) -> None:
    made = await alice.RotateToken(name=APP, token_id=app.metadata.id, overlap_hours=0)
    old, new = Who(appliance, app.token), Who(appliance, made.token)
    assert isinstance(await error_of(old.who()), Unauthenticated)
    assert (await new.who()).principal == APP
    assert app.metadata.id not in at_gateways(appliance)
    # A clock that was ahead brings back what ended by its time, and not what somebody ended.
    appliance.clock.forward(days=-1)
    assert isinstance(await error_of(old.who()), Unauthenticated)


@pytest.mark.attack
async def test_a_rotation_makes_nothing_live_longer_than_it_may(
    appliance: Appliance, alice: Who, app: Any
) -> None:
    appliance.clock.forward(days=29, hours=23)
    alice = Who(appliance, appliance.session(ADMINISTRATOR))
    for wrong in (
        {"overlap_hours": 169},
        {"overlap_hours": -1},
        {"lifetime_days": 91},
        {"lifetime_days": 0},
    ):
        call = alice.RotateToken(name=APP, token_id=app.metadata.id, **wrong)
        assert isinstance(await error_of(call), InvalidInput)
    made = await alice.RotateToken(name=APP, token_id=app.metadata.id, lifetime_days=90)
    # An hour is left of it: an overlap of a day is none the longer.
    assert made.replaced.expire_time == app.metadata.expire_time
    lived = made.metadata.expire_time.ToDatetime() - made.metadata.create_time.ToDatetime()
    assert lived == timedelta(days=90)
    # Neither a second time, nor a third token beside two.
    error = await error_of(alice.RotateToken(name=APP, token_id=app.metadata.id))
    assert error.message == f"{app.metadata.id} was replaced by {made.metadata.id}: rotate that one"
    full = await error_of(alice.RotateToken(name=APP, token_id=made.metadata.id))
    assert isinstance(full, FailedPrecondition)
    assert f"with {app.metadata.id} this application has 2 live tokens" in full.message
    await alice.RotateToken(name=APP, token_id=made.metadata.id, overlap_hours=0)
    # Not an application for itself: a stolen token would live for ever.
    appliance.bind(RoleLink("svc:demo--app", "owner", "demo"))
    last = (await alice.GetServiceAccount(name=APP)).tokens[-1]
    with appliance.database.read() as state:
        assert len(state.all(tables.token.select())) == 2
    again = await alice.RotateToken(name=APP, token_id=last.id, overlap_hours=0)
    own = Who(appliance, again.token).RotateToken(name=APP, token_id=again.metadata.id)
    assert isinstance(await error_of(own), FreshMfaRequired)
    ended = alice.RotateToken(name=APP, token_id=last.id)
    assert isinstance(await error_of(ended), NotFound)


async def test_the_last_use_of_a_token_is_kept_to_the_hour(
    appliance: Appliance, alice: Who, app: Any
) -> None:
    caller = Who(appliance, app.token)

    def used() -> Any:
        with appliance.database.read() as state:
            mine = tables.token.c.id == app.metadata.id
            return state.value(select(tables.token.c.use_time).where(mine))

    assert used() is None
    await caller.who()
    first, generation = used(), appliance.database.load_generation()
    for _ in range(3):
        await caller.who()
    assert (used(), appliance.database.load_generation()) == (first, generation)
    appliance.clock.forward(minutes=61)
    await caller.who()
    assert used() >= first + timedelta(minutes=61)
    appliance.clock.forward(minutes=61)
    # Most applications are seen by gateways alone.
    report = routing_service_pb2.ReportUsageRequest(in_use=[app.metadata.id, "nobody's"])
    appliance.control.work.usage.report(GATEWAY, report)
    assert used() >= first + timedelta(minutes=122)
    alice = Who(appliance, appliance.session(ADMINISTRATOR))
    shown = (await alice.GetServiceAccount(name=APP)).tokens[0]
    assert shown.use_time.ToDatetime() == used().replace(tzinfo=None)


async def test_a_full_disk_keeps_no_application_out(
    appliance: Appliance, alice: Who, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = Who(appliance, app.token)
    with full(monkeypatch):
        assert (await caller.who()).principal == APP
        report = routing_service_pb2.ReportUsageRequest(in_use=[app.metadata.id])
        appliance.control.work.usage.report(GATEWAY, report)
    assert not (await alice.GetServiceAccount(name=APP)).tokens[0].HasField("use_time")
    await caller.who()
    assert (await alice.GetServiceAccount(name=APP)).tokens[0].HasField("use_time")


async def test_tokens_are_found_by_their_maker_and_by_what_nobody_uses(
    appliance: Appliance, app: Any
) -> None:
    appliance.user("olga", ("owner", "demo"))
    olga = Who(appliance, appliance.session("olga"))
    made = await olga.CreateToken(name=APP, lifetime_days=90)

    async def found(**fields: Any) -> list[str]:
        listed = await olga.ListTokens(scope="projects/demo", **fields)
        return [each.id for each in listed.tokens]

    both = sorted([app.metadata.id, made.metadata.id])
    assert await found() == both
    assert await found(creator="users/olga") == [made.metadata.id]
    assert await found(service_account="serviceAccounts/demo--other") == []
    assert await found(unused_days=1) == []
    page = await olga.ListTokens(scope="projects/demo", page_size=1)
    rest = await olga.ListTokens(scope="projects/demo", page_token=page.next_page_token)
    assert [each.id for each in (*page.tokens, *rest.tokens)] == both
    appliance.clock.forward(days=20)
    olga = Who(appliance, appliance.session("olga"))
    await Who(appliance, app.token).who()
    assert await found(unused_days=20) == [made.metadata.id]
    appliance.clock.forward(days=20)
    olga = Who(appliance, appliance.session("olga"))
    # One has ended by now.
    assert await found() == [made.metadata.id]
    assert isinstance(
        await error_of(olga.ListTokens(scope="projects/demo", unused_days=-1)), InvalidInput
    )
    everywhere = Who(appliance, appliance.session(ADMINISTRATOR))
    assert len((await everywhere.ListTokens(scope="projects/-")).tokens) == 1


async def test_one_hears_what_one_may_do_in_a_scope(appliance: Appliance, alice: Who) -> None:
    appliance.project("mine")
    appliance.project("theirs")
    appliance.user("vera", ("viewer", "mine"))
    vera = Who(appliance, appliance.session("vera"))

    def ask(who: Who, scope: str) -> Any:
        request = auth_service_pb2.ListMyPermissionsRequest(scope=scope)
        return who.auth.ListMyPermissions(request, metadata=who.metadata)

    roles = appliance.control.base.policies.roles
    mine = list((await ask(vera, "projects/mine")).permissions)
    assert mine == sorted(roles.given("viewer", "mine"))
    assert list((await ask(vera, "platform")).permissions) == []
    assert "users.delete" in (await ask(alice, "platform")).permissions
    # What is not there and what nobody may know of are the same.
    for scope in ("projects/theirs", "projects/absent"):
        error = await error_of(ask(vera, scope))
        assert isinstance(error, NotFound)
        assert error.message == f"there is no {scope}, or you hold no role there"
    assert isinstance(await error_of(ask(alice, "projects/absent")), NotFound)
    assert isinstance(await error_of(ask(alice, "")), InvalidInput)


async def test_a_name_of_a_deleted_application_is_free_and_a_live_one_is_not(
    appliance: Appliance, alice: Who, app: Any
) -> None:
    again = alice.CreateServiceAccount(parent="projects/demo", service_account_id="app")
    assert isinstance(await error_of(again), AlreadyExists)
    first = str(uuid.uuid4())
    made = await alice.DeleteServiceAccount(name=APP, request_id=first)
    assert await alice.DeleteServiceAccount(name=APP, request_id=first) == made
    assert parse(app.token, TokenKind.SERVICE).id == app.metadata.id
