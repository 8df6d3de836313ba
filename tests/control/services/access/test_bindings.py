"""Who gives roles, and what he learns of names on the way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from appliance.api.access.v1 import binding_pb2
from appliance.api.access.v1 import binding_service_pb2 as rpc
from appliance.api.access.v1 import service_account_service_pb2 as accounts_rpc
from appliance.api.access.v1 import user_service_pb2 as users_rpc
from appliance.api.access.v1.binding_service_pb2_grpc import BindingServiceStub
from appliance.api.access.v1.service_account_service_pb2_grpc import ServiceAccountServiceStub
from appliance.api.access.v1.user_service_pb2_grpc import UserServiceStub
from appliance.api.data.v1 import dataset_service_pb2 as datasets_rpc
from appliance.api.data.v1.dataset_service_pb2_grpc import DatasetServiceStub
from appliance.api.nodes.v1 import node_service_pb2 as nodes_rpc
from appliance.api.nodes.v1.node_service_pb2_grpc import NodeServiceStub
from appliance.control.auth.policy import PolicyStore
from appliance.control.auth.roles import Role
from appliance.control.auth.rules import RoleLink
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM
from appliance.control.services.access.account_tokens import AccountTokens
from appliance.control.services.access.service_accounts import ServiceAccounts
from appliance.control.services.common.caller import Caller
from appliance.control.store import tables
from appliance.core.errors import Denied, InvalidInput, NotFound
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer, error_of
from tests.fakes.state import add_binding


class Giver:
    """Somebody who gives and takes roles."""

    def __init__(self, appliance: Appliance, name: str) -> None:
        self.stub = appliance.api(BindingServiceStub)
        self.name = f"users/{name}"
        self.metadata = bearer(appliance.session(name))

    def bind(self, role: str, scope: str, principal: str = "", **more: Any) -> Any:
        binding = binding_pb2.Binding(
            principal=principal or self.name, role=f"roles/{role}", scope=scope
        )
        request = rpc.CreateBindingRequest(binding=binding, **more)
        return self.stub.CreateBinding(request, metadata=self.metadata)

    def unbind(self, name: str) -> Any:
        request = rpc.DeleteBindingRequest(name=name)
        return self.stub.DeleteBinding(request, metadata=self.metadata)


@pytest.mark.attack
async def test_an_owner_of_all_projects_gets_nothing_on_the_platform(appliance: Appliance) -> None:
    appliance.user("olga", ("owner", EVERYWHERE))
    olga = Giver(appliance, "olga")
    for role in ("administrator", "auditor"):
        assert isinstance(await error_of(olga.bind(role, "platform")), Denied)
    # Not even the half of it that is about projects: it lets servers in, with half of the other.
    error = await error_of(olga.bind("administrator", "projects/-"))
    for machine in ("gateways", "nodes"):
        assert f"{machine}.createJoinToken in all projects" in error.message
    alice = Giver(appliance, ADMINISTRATOR)
    listed = await alice.stub.ListBindings(
        rpc.ListBindingsRequest(scope="projects/-"), metadata=alice.metadata
    )
    (administrator,) = [b for b in listed.bindings if b.role == "roles/administrator"]
    assert isinstance(await error_of(olga.unbind(administrator.name)), Denied)


@pytest.mark.attack
async def test_an_administrator_of_the_platform_gets_nothing_in_projects(
    appliance: Appliance,
) -> None:
    appliance.project("mine")
    appliance.user("paul", ("administrator", PLATFORM))
    paul = Giver(appliance, "paul")
    assert isinstance(await error_of(paul.bind("administrator", "projects/-")), Denied)
    assert isinstance(await error_of(paul.bind("owner", "projects/mine")), NotFound)
    error = await error_of(
        appliance.api(DatasetServiceStub).ListDatasets(
            datasets_rpc.ListDatasetsRequest(parent="projects/mine"), metadata=paul.metadata
        )
    )
    assert isinstance(error, NotFound)
    token = nodes_rpc.CreateJoinTokenRequest(node_id="gpu-1")
    error = await error_of(
        appliance.api(NodeServiceStub).CreateJoinToken(token, metadata=paul.metadata)
    )
    assert isinstance(error, Denied)
    assert "it gets keys of the work of every project" in error.message


@pytest.mark.attack
async def test_an_owner_takes_no_role_away_beyond_the_own_project(appliance: Appliance) -> None:
    appliance.project("mine")
    appliance.user("olga", ("owner", "mine"))
    appliance.user("erik", ("owner", EVERYWHERE))
    appliance.user("vera")
    wide = appliance.bind(RoleLink("user:vera", "viewer", EVERYWHERE))
    platform = appliance.bind(RoleLink("user:vera", "auditor", PLATFORM))
    here = appliance.bind(RoleLink("user:vera", "viewer", "mine"))
    olga, erik = Giver(appliance, "olga"), Giver(appliance, "erik")
    for name in (wide, platform):
        assert isinstance(await error_of(olga.unbind(name)), NotFound)
    assert isinstance(await error_of(erik.unbind(platform)), NotFound)
    await erik.unbind(wide)
    await olga.unbind(here)


@pytest.mark.parametrize("scope", ["", "*", "/platform", "projects/", "projects/*", "mine"])
async def test_a_scope_is_said(appliance: Appliance, scope: str) -> None:
    alice = Giver(appliance, ADMINISTRATOR)
    listing = alice.stub.ListBindings(rpc.ListBindingsRequest(scope=scope), metadata=alice.metadata)
    for call in (alice.bind("viewer", scope), listing):
        error = await error_of(call)
        assert isinstance(error, InvalidInput)
        for each in ("projects/{project} for one", "projects/- for all", "platform for the"):
            assert each in error.message


@pytest.mark.parametrize("parent", ["projects/-", "platform", ""])
async def test_only_a_scope_is_all_projects_or_the_platform(
    appliance: Appliance, parent: str
) -> None:
    alice = Giver(appliance, ADMINISTRATOR)
    error = await error_of(
        appliance.api(DatasetServiceStub).ListDatasets(
            datasets_rpc.ListDatasetsRequest(parent=parent), metadata=alice.metadata
        )
    )
    assert isinstance(error, InvalidInput)
    assert error.message.startswith("parent")


@pytest.mark.attack
async def test_who_may_not_see_people_does_not_learn_who_is_there(appliance: Appliance) -> None:
    appliance.project("mine")
    appliance.user("bob")
    appliance.user("olga", ("owner", "mine"))
    olga = Giver(appliance, "olga")
    there, absent = [
        await olga.bind("viewer", "projects/mine", f"users/{name}") for name in ("bob", "ghost")
    ]
    assert (there.principal, absent.principal) == ("users/bob", "users/ghost")
    for answer in (there, absent):
        answer.ClearField("name")
        answer.ClearField("principal")
        answer.ClearField("create_time")
    assert there == absent
    alice = Giver(appliance, ADMINISTRATOR)
    error = await error_of(alice.bind("viewer", "projects/mine", "users/phantom"))
    assert "there is no users/phantom: create it first" in error.message


@pytest.mark.attack
async def test_who_creates_a_person_holds_what_waits_for_that_name(appliance: Appliance) -> None:
    """He chooses the first password, so he could act as that person."""
    appliance.project("mine")
    appliance.user("olga", ("owner", "mine"))
    appliance.user("plat", ("administrator", PLATFORM))
    await Giver(appliance, "olga").bind("owner", "projects/mine", "users/yan")
    users = appliance.api(UserServiceStub)
    request = users_rpc.CreateUserRequest(user_id="yan", password="nine slow rivers 48")
    plat, alice = (bearer(appliance.session(name)) for name in ("plat", ADMINISTRATOR))
    assert isinstance(await error_of(users.CreateUser(request, metadata=plat)), Denied)
    assert (await users.CreateUser(request, metadata=alice)).name == "users/yan"


@pytest.mark.attack
async def test_a_foreign_application_looks_like_one_that_is_not_there(
    appliance: Appliance,
) -> None:
    appliance.project("mine")
    appliance.project("theirs")
    appliance.service_account("secret-plan", "theirs")
    appliance.user("olga", ("owner", "mine"))
    olga = Giver(appliance, "olga")
    for scope in ("projects/mine", "projects/-", "platform"):
        said = []
        for account in ("secret-plan", "nobody-here"):
            call = olga.bind("inference", scope, f"serviceAccounts/{account}")
            error = await error_of(call)
            said.append((error.reason, error.message.replace(account, "it")))
        assert said[0] == said[1]


@pytest.mark.attack
async def test_ids_of_another_projects_applications_are_free(appliance: Appliance) -> None:
    base = appliance.control.base
    said = []
    for project in ("mine", "theirs"):
        appliance.project(project)
        appliance.user(f"owner-{project}", ("owner", project))
        stub = appliance.api(ServiceAccountServiceStub)
        request = accounts_rpc.CreateServiceAccountRequest(
            parent=f"projects/{project}", service_account_id="payroll"
        )
        metadata = bearer(appliance.session(f"owner-{project}"))
        said.append(await stub.CreateServiceAccount(request, metadata=metadata))
        error = await error_of(stub.CreateServiceAccount(request, metadata=metadata))
        assert error.message == (
            f"serviceAccounts/{project}--payroll exists already: choose another id"
        )
    assert [account.name for account in said] == [
        "serviceAccounts/mine--payroll",
        "serviceAccounts/theirs--payroll",
    ]
    assert base.policies.cross_check()


@pytest.mark.attack
async def test_a_token_of_an_application_is_for_who_holds_all_it_holds(
    appliance: Appliance,
) -> None:
    base = appliance.control.base
    appliance.project("mine")
    appliance.service_account("app", "mine")
    appliance.user("ida")
    # No built-in role makes tokens and lacks what an application can hold; one more does.
    calls = ("createToken", "rotateToken", "delete")
    may = (*(f"serviceAccounts.{call}" for call in calls), "jobs.get")
    issuer = Role("issuer", "", True, frozenset({"project"}), may)
    roles = dataclasses.replace(
        base.policies.roles, roles={**base.policies.roles.roles, "issuer": issuer}
    )
    policies = PolicyStore(base.database, roles)
    tokens = AccountTokens(
        base.database, policies, base.keyring.token_hmac, base.events, base.clock
    )
    add_binding(base.database, "user:ida", "issuer", "mine")
    caller = Caller(principal=Principal(PrincipalKind.USER, "ida"))
    accounts = ServiceAccounts(
        database=base.database,
        changes=base.changes,
        policies=policies,
        events=base.events,
        clock=base.clock,
    )
    named = {"name": "serviceAccounts/app"}
    request = accounts_rpc.CreateTokenRequest(**named)
    with base.database.read() as state:
        held = str(state.value(tables.token.select().with_only_columns(tables.token.c.id)))
    rotation = accounts_rpc.RotateTokenRequest(**named, token_id=held)
    for call, asked in (
        (tokens.create, request),
        (tokens.rotate, rotation),
        (accounts.delete, accounts_rpc.DeleteServiceAccountRequest(**named)),
    ):
        with pytest.raises(
            Denied, match=r"who may do more: you lack endpoints\.get in projects/mine"
        ):
            call(caller, asked)
    add_binding(base.database, "user:ida", "inference", "mine")
    assert tokens.create(caller, request).token
