"""Somebody leaves: what ends, what goes on and is named, and what the next of that name gets."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from sqlalchemy import select

from appliance.api.access.v1 import (
    service_account_service_pb2,
    service_account_service_pb2_grpc,
    user_pb2,
    user_service_pb2,
    user_service_pb2_grpc,
)
from appliance.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from appliance.api.data.v1 import dataset_service_pb2, dataset_service_pb2_grpc
from appliance.api.data.v1 import upload_service_pb2 as uploads
from appliance.api.data.v1.upload_service_pb2_grpc import UploadServiceStub
from appliance.control.auth import rules
from appliance.control.auth.grants import NOBODY
from appliance.control.auth.scopes import EVERYWHERE, PLATFORM
from appliance.control.services.access.account_tokens import AccountTokens
from appliance.control.services.common.caller import Caller
from appliance.control.store import tables
from appliance.core.errors import (
    AlreadyExists,
    Conflict,
    Denied,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    Unauthenticated,
)
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer, error_of

rpc = user_service_pb2
STRONG = "nine blue kettles sing"
BOTH = (("administrator", PLATFORM), ("administrator", EVERYWHERE))


class Who:
    """Somebody who calls."""

    def __init__(self, appliance: Appliance, token: str) -> None:
        self.metadata = bearer(token)
        self.users = appliance.api(user_service_pb2_grpc.UserServiceStub)
        self.auth = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
        self.uploads = appliance.api(UploadServiceStub)
        self.datasets = appliance.api(dataset_service_pb2_grpc.DatasetServiceStub)
        self.accounts = appliance.api(service_account_service_pb2_grpc.ServiceAccountServiceStub)

    def delete(self, name: str, **fields: Any) -> Any:
        request = rpc.DeleteUserRequest(name=f"users/{name}", **fields)
        return self.users.DeleteUser(request, metadata=self.metadata)

    def create(self, name: str, **fields: Any) -> Any:
        request = rpc.CreateUserRequest(user_id=name, password=STRONG, **fields)
        return self.users.CreateUser(request, metadata=self.metadata)

    def get(self, name: str, view: Any = rpc.USER_VIEW_FULL) -> Any:
        request = rpc.GetUserRequest(name=f"users/{name}", view=view)
        return self.users.GetUser(request, metadata=self.metadata)

    def lock(self, name: str) -> Any:
        request = rpc.LockUserRequest(name=f"users/{name}")
        return self.users.LockUser(request, metadata=self.metadata)

    def who(self) -> Any:
        return self.auth.WhoAmI(auth_service_pb2.WhoAmIRequest(), metadata=self.metadata)

    def token(self, account: str) -> Any:
        request = service_account_service_pb2.CreateTokenRequest(name=f"serviceAccounts/{account}")
        return self.accounts.CreateToken(request, metadata=self.metadata)


@pytest.fixture
def alice(appliance: Appliance) -> Who:
    """The administrator, second factor just now."""
    return Who(appliance, appliance.session(ADMINISTRATOR))


@pytest.mark.attack
async def test_a_repeated_call_does_not_answer_for_who_was_deleted(alice: Who) -> None:
    create = str(uuid.uuid4())
    await alice.create("bob", request_id=create)
    await alice.create("bob", request_id=create)
    deleted = str(uuid.uuid4())
    gone = await alice.delete("bob", request_id=deleted)
    second = await alice.create("bob", request_id=create)
    assert (await alice.get("bob")).create_time == second.create_time
    assert await alice.delete("bob", request_id=deleted) == gone
    await alice.get("bob")


def left_of(appliance: Appliance, name: str) -> dict[str, int]:
    """How many rows of each table are about a person, by subject or by id."""
    found = {}
    with appliance.database.read() as state:
        for table, column, value in (
            (tables.user, "id", name),
            (tables.session, "user", name),
            (tables.device, "user", name),
            (tables.totp, "user", name),
            (tables.recovery_code, "user", name),
            (tables.binding, "subject", f"user:{name}"),
            (tables.request, "principal", f"user:{name}"),
            (tables.upload, "principal", f"user:{name}"),
            (tables.attempt, "account", f"user:{name}"),
        ):
            rows = state.all(select(table).where(table.c[column] == value))
            if rows:
                found[table.name] = len(rows)
    return found


async def bob_at_work(appliance: Appliance) -> tuple[Who, Any]:
    """A developer with everything a person can have; and an upload of his that is open."""
    appliance.project("demo")
    appliance.user("bob", ("owner", "demo"), enrolled=True)
    appliance.service_account("app", "demo")
    bob = Who(appliance, appliance.session("bob"))
    dataset = dataset_service_pb2.CreateDatasetRequest(
        parent="projects/demo", dataset_id="docs", request_id=str(uuid.uuid4())
    )
    await bob.datasets.CreateDataset(dataset, metadata=bob.metadata)
    begun = uploads.CreateUploadRequest(parent="projects/demo", request_id=str(uuid.uuid4()))
    begun.upload.artifact = "projects/demo/datasets/docs"
    upload = await bob.uploads.CreateUpload(begun, metadata=bob.metadata)
    now = appliance.clock()
    with appliance.database.write() as transaction:
        transaction.run(
            tables.job.insert().values(
                uid="j",
                project="demo",
                id="first",
                kind="train",
                spec={},
                state="QUEUED",
                creator="users/bob",
                create_time=now,
            )
        )
        counter = tables.attempt.insert()
        transaction.run(counter.values(account="user:bob", failures=7, next_time=now))
    return bob, upload


async def test_a_deleted_person_leaves_nothing_that_opens_and_everything_that_goes_on_is_named(
    appliance: Appliance, alice: Who
) -> None:
    bob, _ = await bob_at_work(appliance)
    token = await bob.token("app")
    made = await alice.delete("bob")
    assert isinstance(await error_of(bob.who()), Unauthenticated)
    assert left_of(appliance, "bob") == {}
    assert appliance.control.base.policies.cross_check()
    appliance.database.check_rows(lambda: None)
    assert appliance.database.found == {}
    assert list(made.user.details.roles) == ["owner@projects/demo"]
    assert not made.user.details.sessions
    assert [(each.what, each.end_command) for each in made.user.details.creations] == [
        (
            f"serviceAccounts/app token {token.metadata.id}",
            f"appliance service-account revoke-token serviceAccounts/app {token.metadata.id}",
        ),
        ("projects/demo/jobs/first", "appliance job cancel projects/demo/jobs/first"),
    ]
    # Nothing of this ends by itself: the application goes on.
    assert (await Who(appliance, token.token).who()).principal == "serviceAccounts/app"
    assert isinstance(await error_of(alice.get("bob")), NotFound)
    (record,) = [
        each
        for each in appliance.records()
        if each["kind"] == "result" and each["method"].endswith("/DeleteUser")
    ]
    assert record["details"]["made"]["user.details.roles"] == ["owner@projects/demo"]


@pytest.mark.attack
async def test_whoever_gets_the_name_next_inherits_nothing(
    appliance: Appliance, alice: Who
) -> None:
    bob, upload = await bob_at_work(appliance)
    request = dataset_service_pb2.CreateDatasetRequest(
        parent="projects/demo", dataset_id="mine", request_id=str(uuid.uuid4())
    )
    await bob.datasets.CreateDataset(request, metadata=bob.metadata)
    await bob.token("app")
    await alice.delete("bob")
    appliance.clock.forward(seconds=1)
    await alice.create("bob", description="another Bob")
    newcomer = Who(appliance, appliance.session("bob"))
    who = await newcomer.who()
    assert (who.principal, list(who.roles)) == ("users/bob", [])
    # Neither by the session of before, nor by a repeated call, nor by the upload that was open.
    assert isinstance(await error_of(bob.who()), Unauthenticated)
    appliance.bind(rules.RoleLink("user:bob", "developer", "demo"))
    repeated = newcomer.datasets.CreateDataset(request, metadata=newcomer.metadata)
    assert isinstance(await error_of(repeated), AlreadyExists)
    get = uploads.GetUploadRequest(name=upload.name)
    theirs = newcomer.uploads.GetUpload(get, metadata=newcomer.metadata)
    assert isinstance(await error_of(theirs), NotFound)
    # What the one before made is not said to be theirs.
    assert not (await alice.get("bob")).details.creations


async def test_what_a_deleted_person_was_sending_goes_within_a_minute(
    appliance: Appliance, alice: Who
) -> None:
    await bob_at_work(appliance)
    await alice.delete("bob")
    with appliance.database.read() as state:
        assert [row.principal for row in state.all(tables.upload.select())] == [NOBODY]
    appliance.control.work.upload_tasks.sweep()
    with appliance.database.read() as state:
        assert state.all(tables.upload.select()) == []


async def test_a_locked_person_loses_the_log_ins_and_keeps_the_rest_which_is_named(
    appliance: Appliance, alice: Who
) -> None:
    bob, _ = await bob_at_work(appliance)
    assert len((await alice.get("bob")).details.sessions) == 1
    assert not (await alice.get("bob", rpc.USER_VIEW_BASIC)).HasField("details")
    token = await bob.token("app")
    locked = await alice.lock("bob")
    assert locked.locked
    assert not locked.details.sessions
    assert [each.what for each in locked.details.creations] == [
        f"serviceAccounts/app token {token.metadata.id}",
        "projects/demo/jobs/first",
    ]


async def test_who_may_not_look_into_a_project_hears_how_many_and_not_which(
    appliance: Appliance,
) -> None:
    bob, _ = await bob_at_work(appliance)
    await bob.token("app")
    appliance.user("carol", ("administrator", PLATFORM))
    carol = Who(appliance, appliance.session("carol"))
    details = (await carol.get("bob")).details
    assert (list(details.roles), list(details.creations)) == ([], [])
    # A role, a token, a job.
    assert details.not_shown == 3


@pytest.mark.attack
async def test_nobody_is_deleted_by_whom_may_do_less(appliance: Appliance) -> None:
    appliance.project("demo")
    appliance.user("carol", ("administrator", PLATFORM))
    appliance.user("olga", ("owner", "demo"))
    carol = Who(appliance, appliance.session("carol"))
    error = await error_of(carol.delete("olga"))
    assert isinstance(error, Denied)
    assert "may not act for users/olga, who may do more" in error.message
    # So nobody gets rid of a person, makes one of that name, and waits for what was bound to it.
    assert left_of(appliance, "olga") == {"user": 1, "binding": 1}


async def test_nobody_deletes_themselves_or_the_last_administrator(
    appliance: Appliance, alice: Who
) -> None:
    appliance.enrol(ADMINISTRATOR)
    error = await error_of(alice.delete(ADMINISTRATOR))
    assert error.message == "this is you: have another administrator delete you"
    appliance.user("dora", *BOTH)  # Without a second factor: she could not.
    dora = Who(appliance, appliance.session("dora"))
    error = await error_of(dora.delete(ADMINISTRATOR))
    assert isinstance(error, FailedPrecondition)
    assert "is the last administrator on the platform who can log in" in error.message
    assert isinstance(await error_of(dora.delete("ghost")), NotFound)


@pytest.mark.attack
async def test_two_administrators_who_delete_each_other_leave_one(
    appliance: Appliance, alice: Who
) -> None:
    appliance.enrol(ADMINISTRATOR)
    appliance.user("carol", *BOTH, enrolled=True)
    carol = Who(appliance, appliance.session("carol"))
    answers = await asyncio.gather(
        alice.delete("carol"), carol.delete(ADMINISTRATOR), return_exceptions=True
    )
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1
    with appliance.database.read() as state:
        assert len(state.all(tables.user.select())) == 1


async def test_a_deletion_may_be_held_to_the_person_that_was_seen(
    appliance: Appliance, alice: Who
) -> None:
    appliance.user("bob")
    seen = await alice.get("bob")
    await alice.delete("bob", validate_only=True)
    await alice.delete("bob", etag=seen.etag)
    appliance.clock.forward(seconds=1)
    appliance.user("bob")
    assert isinstance(await error_of(alice.delete("bob", etag=seen.etag)), Conflict)
    first = str(uuid.uuid4())
    made = await alice.delete("bob", request_id=first)
    assert await alice.delete("bob", request_id=first) == made


async def test_a_person_is_described(appliance: Appliance, alice: Who) -> None:
    await alice.create("bob", description="Bob of the night shift")

    def update(*paths: str, **fields: Any) -> Any:
        request = rpc.UpdateUserRequest(user=user_pb2.User(name="users/bob", **fields))
        request.update_mask.paths.extend(paths)
        return alice.users.UpdateUser(request, metadata=alice.metadata)

    seen = await alice.get("bob", rpc.USER_VIEW_BASIC)
    assert seen.description == "Bob of the night shift"
    assert (await update("description", description="day")).description == "day"
    stale = update("description", description="night", etag=seen.etag)
    assert isinstance(await error_of(stale), Conflict)
    assert (await update("description")).description == ""
    for wrong in (update(), update("locked"), update("description", description="x" * 1001)):
        assert isinstance(await error_of(wrong), InvalidInput)


@pytest.mark.attack
@pytest.mark.parametrize("goes", ["lock", "delete"])
async def test_a_call_that_was_on_its_way_changes_nothing_once_its_caller_is_gone(
    appliance: Appliance, alice: Who, goes: str
) -> None:
    await bob_at_work(appliance)
    changes = appliance.control.base.changes
    # As the gate let it in, before alice's call returned.
    caller = Caller(principal=Principal(PrincipalKind.USER, "bob"), request_id="r")
    await getattr(alice, goes)("bob")
    request = rpc.EndUserSessionsRequest(name="users/bob", request_id=str(uuid.uuid4()))

    def work(transaction: Any) -> Any:
        raise AssertionError("it was let through")

    with pytest.raises(Unauthenticated):
        changes.make(caller, request, rpc.EndUserSessionsResponse, work)
    base = appliance.control.base
    made = AccountTokens(
        base.database, base.policies, base.keyring.token_hmac, base.events, base.clock
    )
    with pytest.raises(Unauthenticated):
        made.create(
            caller, service_account_service_pb2.CreateTokenRequest(name="serviceAccounts/app")
        )
