"""People, roles, bindings, applications and projects, through the API as a client sees it."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pyotp
import pytest

from appliance.api.access.v1 import (
    binding_pb2,
    binding_service_pb2,
    binding_service_pb2_grpc,
    role_service_pb2,
    role_service_pb2_grpc,
    service_account_service_pb2,
    service_account_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from appliance.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from appliance.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from appliance.api.projects.v1 import project_pb2, project_service_pb2, project_service_pb2_grpc
from appliance.api.system.v1 import system_service_pb2, system_service_pb2_grpc
from appliance.control.services.data.artifacts import Provenance
from appliance.control.store import tables
from appliance.core.errors import (
    AlreadyExists,
    Denied,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    Unauthenticated,
)
from tests.fakes.appliance import ADMINISTRATOR, PASSWORD, Appliance, bearer, error_of

STRONG = "nine blue kettles sing"


class Client:
    """Everything one caller may call."""

    def __init__(self, appliance: Appliance, token: str) -> None:
        self.metadata = bearer(token)
        self.auth = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
        self.users = appliance.api(user_service_pb2_grpc.UserServiceStub)
        self.roles = appliance.api(role_service_pb2_grpc.RoleServiceStub)
        self.bindings = appliance.api(binding_service_pb2_grpc.BindingServiceStub)
        self.projects = appliance.api(project_service_pb2_grpc.ProjectServiceStub)
        self.audit = appliance.api(audit_service_pb2_grpc.AuditServiceStub)
        self.system = appliance.api(system_service_pb2_grpc.SystemServiceStub)
        self.accounts = appliance.api(service_account_service_pb2_grpc.ServiceAccountServiceStub)

    def bind(self, principal: str, role: str, scope: str = "platform") -> Any:
        binding = binding_pb2.Binding(principal=principal, role=role, scope=scope)
        return self.bindings.CreateBinding(
            binding_service_pb2.CreateBindingRequest(binding=binding), metadata=self.metadata
        )

    def unbind(self, name: str) -> Any:
        return self.bindings.DeleteBinding(
            binding_service_pb2.DeleteBindingRequest(name=name), metadata=self.metadata
        )

    def create_user(self, name: str, **fields: Any) -> Any:
        request = user_service_pb2.CreateUserRequest(user_id=name, **{"password": STRONG, **fields})
        return self.users.CreateUser(request, metadata=self.metadata)

    def create_project(self, name: str, **fields: Any) -> Any:
        return self.projects.CreateProject(
            project_service_pb2.CreateProjectRequest(project_id=name, **fields),
            metadata=self.metadata,
        )

    def who(self) -> Any:
        return self.auth.WhoAmI(auth_service_pb2.WhoAmIRequest(), metadata=self.metadata)


@pytest.fixture
def alice(appliance: Appliance) -> Client:
    """The administrator, second factor just now."""
    return Client(appliance, appliance.session(ADMINISTRATOR))


async def test_log_in_from_password_to_log_out(appliance: Appliance) -> None:
    stub = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
    login = auth_service_pb2.LoginRequest(user=ADMINISTRATOR, password=PASSWORD)
    started = await stub.Login(login)
    assert started.next_step == auth_service_pb2.SESSION_STEP_ENROLL_TOTP
    enrolled = await stub.EnrollTotp(auth_service_pb2.EnrollTotpRequest(token=started.token))
    totp = pyotp.parse_uri(enrolled.provisioning_uri)
    code = totp.at(appliance.clock())
    verify = auth_service_pb2.VerifyTotpRequest
    completed = await stub.VerifyTotp(verify(token=started.token, code=code))
    assert len(set(completed.recovery_codes)) == 10
    client = Client(appliance, completed.token)
    who = await client.who()
    assert (who.principal, list(who.roles)) == (
        "users/alice",
        [
            "administrator@projects/-",
            "administrator@platform",
        ],
    )
    left = who.expire_time.ToDatetime() - completed.expire_time.ToDatetime()
    assert abs(left) < timedelta(seconds=1)

    again = await stub.Login(login)
    assert again.next_step == auth_service_pb2.SESSION_STEP_VERIFY_TOTP
    wrong = f"{(int(code) + 1) % 10**6:06}"
    for bad in (code, wrong):
        error = await error_of(stub.VerifyTotp(verify(token=again.token, code=bad)))
        assert isinstance(error, Unauthenticated)
        assert error.message == (
            "this code is wrong or was used before: wait for the next one, then try again"
        )
    recovered = await stub.VerifyTotp(
        verify(token=again.token, recovery_code=completed.recovery_codes[0])
    )
    await stub.Logout(auth_service_pb2.LogoutRequest(), metadata=bearer(recovered.token))
    error = await error_of(Client(appliance, recovered.token).who())
    assert isinstance(error, Unauthenticated)
    assert (await client.who()).principal == "users/alice"


async def test_a_wrong_password_is_one_sentence_and_says_not_who_exists(
    appliance: Appliance,
) -> None:
    stub = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
    errors = [
        await error_of(stub.Login(auth_service_pb2.LoginRequest(user=user, password="wrong")))
        for user in (ADMINISTRATOR, "nobody-at-all")
    ]
    assert [(type(error), error.message) for error in errors] == [
        (Unauthenticated, "the user or the password is wrong: check both, then try again")
    ] * 2


async def test_two_codes_or_none_are_bad_input(appliance: Appliance) -> None:
    stub = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
    token = appliance.session(ADMINISTRATOR)
    for codes in ({}, {"code": "123456", "recovery_code": "x"}):
        error = await error_of(
            stub.VerifyTotp(auth_service_pb2.VerifyTotpRequest(token=token, **codes))
        )
        assert isinstance(error, InvalidInput)


async def test_users_are_created_listed_locked_and_unlocked(
    appliance: Appliance, alice: Client
) -> None:
    made = await alice.create_user("bob")
    assert (made.name, made.locked, made.totp_enrolled) == ("users/bob", False, False)
    token = appliance.session("bob")
    assert (await Client(appliance, token).who()).principal == "users/bob"
    locked = await alice.users.LockUser(
        user_service_pb2.LockUserRequest(name="users/bob"), metadata=alice.metadata
    )
    assert locked.locked is True
    assert isinstance(await error_of(Client(appliance, token).who()), Unauthenticated)
    unlocked = await alice.users.UnlockUser(
        user_service_pb2.UnlockUserRequest(name="users/bob"), metadata=alice.metadata
    )
    assert unlocked.locked is False
    # The session ended when the user was locked; unlocking does not bring it back.
    assert isinstance(await error_of(Client(appliance, token).who()), Unauthenticated)
    listed = await alice.users.ListUsers(
        user_service_pb2.ListUsersRequest(page_size=1), metadata=alice.metadata
    )
    rest = await alice.users.ListUsers(
        user_service_pb2.ListUsersRequest(page_token=listed.next_page_token),
        metadata=alice.metadata,
    )
    assert [user.name for user in (*listed.users, *rest.users)] == ["users/alice", "users/bob"]
    assert rest.next_page_token == ""


async def test_a_repeated_request_gets_the_first_answer(
    appliance: Appliance, alice: Client
) -> None:
    first, other = str(uuid.uuid4()), str(uuid.uuid4())
    made = await alice.create_user("bob", request_id=first)
    assert await alice.create_user("bob", request_id=first) == made
    changed = await error_of(alice.create_user("bob", request_id=first, password=STRONG + " twice"))
    assert isinstance(changed, InvalidInput)
    taken = await error_of(alice.create_user("bob", request_id=other))
    assert isinstance(taken, AlreadyExists)
    with appliance.database.read() as state:
        rows = state.all(tables.request.select())
    assert rows
    assert all(STRONG.encode() not in bytes(row.response) for row in rows)


async def test_only_validated_means_nothing_changed(appliance: Appliance, alice: Client) -> None:
    checked = await alice.create_project("demo", validate_only=True)
    assert checked.name == "projects/demo"
    assert (await alice.create_user("bob", validate_only=True)).name == "users/bob"
    with appliance.database.read() as state:
        assert state.all(tables.project.select()) == []
        assert [row.id for row in state.all(tables.user.select())] == ["alice"]
    assert isinstance(
        await error_of(alice.create_project("Demo", validate_only=True)), InvalidInput
    )


async def test_a_project_has_a_key_of_its_own_from_the_start(
    appliance: Appliance, alice: Client
) -> None:
    made = await alice.create_project("demo", project=project_pb2.Project(description="a demo"))
    assert (made.name, made.description) == ("projects/demo", "a demo")
    assert isinstance(await error_of(alice.create_project("demo")), AlreadyExists)
    keys = appliance.control.base.keys
    artifacts = appliance.control.work.artifacts
    with appliance.database.write() as state:
        (row,) = state.all(tables.project_key.select())
        version = artifacts.allocate(state, "demo", "model", "base", Provenance("users/alice"))
        opened = keys.data_key(state, "demo", version.uid, row.version)
    assert (row.project, row.version) == ("demo", 1)
    assert opened == version.key


async def test_a_role_holds_from_the_moment_it_is_given_to_the_moment_it_is_taken(
    appliance: Appliance, alice: Client
) -> None:
    appliance.project("demo")
    appliance.user("bob")
    bob = Client(appliance, appliance.session("bob"))
    get = project_service_pb2.GetProjectRequest(name="projects/demo")
    assert isinstance(await error_of(bob.projects.GetProject(get, metadata=bob.metadata)), NotFound)
    bound = await alice.bind("users/bob", "roles/developer", "projects/demo")
    assert (await bob.projects.GetProject(get, metadata=bob.metadata)).name == "projects/demo"
    assert list((await bob.who()).roles) == ["developer@projects/demo"]
    await alice.unbind(bound.name)
    assert isinstance(await error_of(bob.projects.GetProject(get, metadata=bob.metadata)), NotFound)


@pytest.mark.parametrize(
    ("principal", "role", "scope", "says"),
    [
        ("users/bob", "roles/wizard", "projects/demo", "there is no role 'wizard'; roles: "),
        ("users/bob", "roles/node", "platform", "role node is not for users/bob"),
        ("users/bob", "roles/gateway", "platform", "role gateway is not for users/bob"),
        ("users/bob", "roles/administrator", "projects/demo", "not bound in projects/demo, "),
        ("users/bob", "roles/owner", "platform", "not bound on the platform, but in all projects"),
        ("users/bob", "roles/viewer", "", "binding.scope is empty: write projects/{project} for"),
        ("users/bob", "roles/viewer", "*", "is no scope: write projects/{project} for one"),
        ("users/bob", "roles/viewer", "/platform", "is no scope: write projects/{project} for"),
        ("users/ghost", "roles/viewer", "projects/-", "there is no users/ghost: create it first"),
        ("nodes/gpu-1", "roles/viewer", "projects/-", "roles are given to users/{user} and"),
        ("serviceAccounts/app", "roles/inference", "projects/other", "no serviceAccounts/app in "),
        ("serviceAccounts/app", "roles/administrator", "platform", "in its own project only"),
        ("role:owner", "roles/viewer", "projects/-", "names no caller"),
        ("users/role:owner", "roles/viewer", "projects/-", "cannot be the id of a caller"),
    ],
)
async def test_what_may_not_be_bound_is_one_sentence(  # a table
    appliance: Appliance, alice: Client, principal: str, role: str, scope: str, says: str
) -> None:
    appliance.project("demo")
    appliance.project("other")
    appliance.user("bob")
    appliance.service_account("app", "demo")
    before = await bindings(alice)
    error = await error_of(alice.bind(principal, role, scope))
    assert isinstance(error, InvalidInput)
    assert says in error.message
    assert await bindings(alice) == before


async def bindings(client: Client, *scopes: str) -> list[binding_pb2.Binding]:
    found: list[binding_pb2.Binding] = []
    for scope in scopes or ("platform", "projects/-"):
        answer = await client.bindings.ListBindings(
            binding_service_pb2.ListBindingsRequest(scope=scope), metadata=client.metadata
        )
        found += answer.bindings
    return found


async def test_an_owner_sees_and_gives_roles_of_the_own_project_only(
    appliance: Appliance, alice: Client
) -> None:
    appliance.project("mine")
    appliance.project("theirs")
    appliance.user("olga", ("owner", "mine"))
    appliance.user("bob", ("viewer", "theirs"))
    olga = Client(appliance, appliance.session("olga"))
    await olga.bind("users/bob", "roles/developer", "projects/mine")
    assert [
        (binding.principal, binding.role) for binding in await bindings(olga, "projects/mine")
    ] != []
    listed = {binding.principal for binding in await bindings(olga, "projects/mine")}
    assert listed == {"users/olga", "users/bob"}
    assert isinstance(
        await error_of(olga.bind("users/olga", "roles/viewer", "projects/theirs")), NotFound
    )
    assert isinstance(await error_of(olga.bind("users/olga", "roles/viewer")), Denied)
    theirs = [found for found in await bindings(alice) if found.scope == "projects/theirs"]
    assert isinstance(await error_of(olga.unbind(theirs[0].name)), NotFound)
    platform = await bindings(alice, "platform")
    missing = await error_of(olga.unbind("bindings/0000"))
    hidden = await error_of(olga.unbind(platform[0].name))
    assert type(missing) is type(hidden) is NotFound


async def test_there_is_always_an_administrator(appliance: Appliance, alice: Client) -> None:
    own, everywhere = await bindings(alice)
    lock = user_service_pb2.LockUserRequest(name="users/alice")
    for attempt in (
        alice.unbind(own.name),
        alice.users.LockUser(lock, metadata=alice.metadata),
    ):
        error = await error_of(attempt)
        assert isinstance(error, FailedPrecondition)
        assert error.message == (
            "users/alice is the last administrator on the platform who can log in: bind "
            "administrator there to somebody else first, and let them enrol an authenticator"
        )
    error = await error_of(alice.unbind(everywhere.name))
    assert "is the last administrator in all projects who can log in: bind" in error.message
    appliance.user("locked", ("administrator", "/platform"), locked=True)
    assert isinstance(await error_of(alice.unbind(own.name)), FailedPrecondition)
    appliance.user("newcomer", ("administrator", "/platform"))
    assert isinstance(await error_of(alice.unbind(own.name)), FailedPrecondition)
    appliance.user("carol", ("administrator", "/platform"), enrolled=True)
    await alice.unbind(own.name)
    assert isinstance(await error_of(alice.bind("users/bob", "roles/auditor")), Denied)


@pytest.mark.attack
async def test_two_administrators_who_unbind_each_other_leave_one(
    appliance: Appliance, alice: Client
) -> None:
    appliance.user("carol", ("administrator", "/platform"), ("administrator", "*"), enrolled=True)
    appliance.enrol(ADMINISTRATOR)
    carol = Client(appliance, appliance.session("carol"))
    names = {found.principal: found.name for found in await bindings(alice, "platform")}
    answers = await asyncio.gather(
        alice.unbind(names["users/carol"]),
        carol.unbind(names["users/alice"]),
        return_exceptions=True,
    )
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1


async def test_an_application_gets_a_token_that_can_be_ended(
    appliance: Appliance, alice: Client
) -> None:
    appliance.project("demo")
    rpc = service_account_service_pb2
    made = await alice.accounts.CreateServiceAccount(
        rpc.CreateServiceAccountRequest(parent="projects/demo", service_account_id="app"),
        metadata=alice.metadata,
    )
    assert (made.name, made.project) == ("serviceAccounts/demo--app", "projects/demo")
    token = await alice.accounts.CreateToken(
        rpc.CreateTokenRequest(name=made.name), metadata=alice.metadata
    )
    app = Client(appliance, token.token)
    assert (await app.who()).principal == "serviceAccounts/demo--app"
    lifetime = token.metadata.expire_time.ToDatetime() - token.metadata.create_time.ToDatetime()
    assert lifetime == timedelta(days=30)
    for days in (0, -1, 91, (1 << 31) - 1):
        request = rpc.CreateTokenRequest(name=made.name, lifetime_days=days)
        refused = await error_of(alice.accounts.CreateToken(request, metadata=alice.metadata))
        assert refused.fields == {"lifetime_days": "must be 1 to 90"}
    listed = await alice.accounts.ListServiceAccounts(
        rpc.ListServiceAccountsRequest(parent="projects/demo"), metadata=alice.metadata
    )
    assert [[each.id for each in found.tokens] for found in listed.service_accounts] == [
        [token.metadata.id]
    ]
    await alice.accounts.RevokeToken(
        rpc.RevokeTokenRequest(name=made.name, token_id=token.metadata.id),
        metadata=alice.metadata,
    )
    assert isinstance(await error_of(app.who()), Unauthenticated)
    log_out = alice.auth.Logout(auth_service_pb2.LogoutRequest(), metadata=app.metadata)
    assert isinstance(await error_of(log_out), Unauthenticated)


async def test_roles_are_the_built_in_ones(alice: Client) -> None:
    listed = await alice.roles.ListRoles(
        role_service_pb2.ListRolesRequest(), metadata=alice.metadata
    )
    assert {role.name: role.assignable for role in listed.roles} == {
        "roles/administrator": True,
        "roles/auditor": True,
        "roles/developer": True,
        "roles/gateway": False,
        "roles/inference": True,
        "roles/node": False,
        "roles/owner": True,
        "roles/viewer": True,
    }
    unknown = role_service_pb2.GetRoleRequest(name="roles/wizard")
    error = await error_of(alice.roles.GetRole(unknown, metadata=alice.metadata))
    assert isinstance(error, NotFound)


async def test_the_audit_log_can_be_searched_exported_and_verified(
    appliance: Appliance, alice: Client
) -> None:
    await error_of(alice.create_project("Demo"))
    listed = await alice.audit.ListRecords(
        audit_service_pb2.ListRecordsRequest(principal="users/alice", outcome="INVALID_INPUT"),
        metadata=alice.metadata,
    )
    assert [(record.kind, record.method.rsplit("/")[-1]) for record in listed.records] == [
        ("result", "CreateProject")
    ]
    sequences: list[int] = []
    token = ""
    while True:
        page = await alice.audit.ListRecords(
            audit_service_pb2.ListRecordsRequest(page_size=2, page_token=token),
            metadata=alice.metadata,
        )
        sequences += [record.sequence for record in page.records]
        token = page.next_page_token
        if not token:
            break
    assert sequences == sorted(set(sequences), reverse=True)
    assert sequences[-1] == 0
    lines = b"".join(
        [
            part.lines
            async for part in alice.audit.ExportRecords(
                audit_service_pb2.ExportRecordsRequest(from_sequence=1), metadata=alice.metadata
            )
        ]
    )
    log = (appliance.folder / "audit" / "000000000000.log").read_bytes()
    assert log.split(b"\n", 1)[1].startswith(lines)
    assert lines.count(b"\n") > 4


async def test_the_system_says_what_it_is_and_what_each_call_needs(
    appliance: Appliance, alice: Client
) -> None:
    system = await alice.system.GetSystem(
        system_service_pb2.GetSystemRequest(), metadata=alice.metadata
    )
    assert system.cluster_id == appliance.control.base.keyring.cluster_id
    assert system.openai_base_url == "https://127.0.0.1:8444/v1"
    listed = await alice.system.ListPermissions(
        system_service_pb2.ListPermissionsRequest(), metadata=alice.metadata
    )
    needs = {method.method.rsplit("/")[-1]: method for method in listed.methods}
    assert (needs["LockUser"].permission, needs["LockUser"].fresh_mfa) == ("users.lock", True)
    assert needs["Login"].anonymous is True
    assert needs["GetUser"].summary == "Returns one user."
