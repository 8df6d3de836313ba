"""An upload goes on with its own token: past sessions, not past locks, ends and rights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from appliance.api.access.v1 import user_service_pb2, user_service_pb2_grpc
from appliance.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from appliance.api.data.v1 import (
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    upload_pb2,
    upload_service_pb2_grpc,
)
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.auth import service_tokens, sessions
from appliance.control.auth.tokens import TokenKind, parse
from appliance.control.services.common.caller import Caller
from appliance.control.store import tables
from appliance.core.errors import Denied, NotFound, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes import rows as attacker
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer, error_of
from tests.fakes.parts import batch, digest

PARENT = "projects/mine"
NAME = f"{PARENT}/datasets/raw"


class Uploading:
    """A developer with an upload and its token."""

    def __init__(self, appliance: Appliance) -> None:
        self.appliance = appliance
        self.stub: Any = appliance.api(upload_service_pb2_grpc.UploadServiceStub)
        self.session = self.grant = self.name = ""

    async def begin(self, user: str = "dora") -> None:
        self.session = self.appliance.session(user)
        metadata = bearer(self.session)
        upload = upload_pb2.Upload(artifact=NAME)
        request = rpc.CreateUploadRequest(parent=PARENT, upload=upload)
        self.name = (await self.stub.CreateUpload(request, metadata=metadata)).name
        granted = rpc.GrantUploadRequest(name=self.name)
        self.grant = (await self.stub.GrantUpload(granted, metadata=metadata)).token

    def send(self, number: int, *, token: str = "", name: str = "") -> Any:
        content = batch((f"d{number}", "x"))

        async def messages() -> AsyncIterator[rpc.UploadPartRequest]:
            yield rpc.UploadPartRequest(
                name=name or self.name, number=number, sha256=digest(content), data=content
            )

        return self.stub.UploadPart(messages(), metadata=bearer(token or self.grant))


@pytest.fixture
async def uploading(appliance: Appliance) -> Uploading:
    appliance.project("mine")
    appliance.user("dora", ("developer", "mine"))
    stub = appliance.api(dataset_service_pb2_grpc.DatasetServiceStub)
    request = dataset_service_pb2.CreateDatasetRequest(parent=PARENT, dataset_id="raw")
    await stub.CreateDataset(request, metadata=bearer(appliance.session(ADMINISTRATOR)))
    found = Uploading(appliance)
    await found.begin()
    return found


async def test_a_new_proof_of_the_second_factor_elsewhere_changes_nothing(
    uploading: Uploading, appliance: Appliance
) -> None:
    auth = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
    totp = appliance.enrol("dora")
    await uploading.send(0)
    renewed = await auth.VerifyTotp(
        auth_service_pb2.VerifyTotpRequest(token=uploading.session, code=totp.at(appliance.clock()))
    )
    assert isinstance(await error_of(uploading.send(1, token=uploading.session)), Unauthenticated)
    await uploading.send(1)
    # Who ends the session that took its place ends the token too.
    await auth.Logout(auth_service_pb2.LogoutRequest(), metadata=bearer(renewed.token))
    assert isinstance(await error_of(uploading.send(2)), Unauthenticated)


async def test_a_session_that_ends_by_its_time_changes_nothing(
    uploading: Uploading, appliance: Appliance
) -> None:
    appliance.clock.offset += timedelta(hours=20)
    assert isinstance(await error_of(uploading.send(0, token=uploading.session)), Unauthenticated)
    await uploading.send(0)
    appliance.session("dora")
    await uploading.send(1)
    appliance.clock.offset += timedelta(days=4)
    assert isinstance(await error_of(uploading.send(2)), Unauthenticated)


async def test_a_session_does_not_end_for_want_of_calls_while_its_upload_goes_on(
    uploading: Uploading, appliance: Appliance
) -> None:
    auth = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
    for number in range(2):
        appliance.clock.offset += timedelta(minutes=20)
        await uploading.send(number)
    who = auth_service_pb2.WhoAmIRequest()
    assert (await auth.WhoAmI(who, metadata=bearer(uploading.session))).principal == "users/dora"


@pytest.mark.attack
@pytest.mark.parametrize("how", ["lock", "end", "own", "right", "replaced"])
async def test_what_takes_the_right_away_refuses_the_next_part(
    uploading: Uploading, appliance: Appliance, how: str
) -> None:
    await uploading.send(0)
    administrator = bearer(appliance.session(ADMINISTRATOR))
    users = appliance.api(user_service_pb2_grpc.UserServiceStub)
    auth = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
    expected: type[Exception] = Unauthenticated
    if how == "lock":
        lock = user_service_pb2.LockUserRequest(name="users/dora")
        await users.LockUser(lock, metadata=administrator)
    elif how == "end":
        end = user_service_pb2.EndUserSessionsRequest(name="users/dora")
        await users.EndUserSessions(end, metadata=administrator)
    elif how == "own":
        session = parse(uploading.session, TokenKind.SESSION).id
        own = auth_service_pb2.EndSessionRequest(session_id=session)
        await auth.EndSession(own, metadata=bearer(appliance.session("dora")))
    elif how == "right":
        binding = tables.binding.c
        with appliance.database.write() as transaction:
            mine = binding.subject == "user:dora"
            transaction.run(tables.binding.update().where(mine).values(role="viewer"))
            appliance.control.base.policies.changed(transaction)
        expected = Denied
    else:
        again = rpc.GrantUploadRequest(name=uploading.name)
        await uploading.stub.GrantUpload(again, metadata=bearer(uploading.session))
    error = await error_of(uploading.send(1))
    assert isinstance(error, expected), error
    if how != "right":
        # A locked account is no better off once it is unlocked: the token has ended.
        with appliance.database.write() as transaction:
            transaction.run(tables.user.update().values(locked=False))
        assert isinstance(await error_of(uploading.send(1)), Unauthenticated)
    else:
        assert "uploads.create" in str(error) or "datasets.upload" in str(error)


@pytest.mark.attack
async def test_the_token_of_an_upload_is_good_for_nothing_else(
    uploading: Uploading, appliance: Appliance
) -> None:
    mine, token = uploading.name, bearer(uploading.grant)
    await uploading.begin()
    other = uploading.name
    assert isinstance(
        await error_of(uploading.send(0, token=token[0][1].removeprefix("Bearer "), name=other)),
        NotFound,
    )
    auth = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
    datasets = appliance.api(dataset_service_pb2_grpc.DatasetServiceStub)
    upload = upload_pb2.Upload(artifact=NAME)
    calls: list[Callable[[], Any]] = [
        lambda: auth.WhoAmI(auth_service_pb2.WhoAmIRequest(), metadata=token),
        lambda: datasets.GetDataset(
            dataset_service_pb2.GetDatasetRequest(name=NAME), metadata=token
        ),
        lambda: uploading.stub.GrantUpload(rpc.GrantUploadRequest(name=mine), metadata=token),
        lambda: uploading.stub.AbortUpload(rpc.AbortUploadRequest(name=mine), metadata=token),
        lambda: uploading.stub.ListUploads(rpc.ListUploadsRequest(parent=PARENT), metadata=token),
        lambda: uploading.stub.CreateUpload(
            rpc.CreateUploadRequest(parent=PARENT, upload=upload), metadata=token
        ),
    ]
    for call in calls:
        assert isinstance(await error_of(call()), Unauthenticated)
    found = await uploading.stub.GetUpload(rpc.GetUploadRequest(name=mine), metadata=token)
    assert found.name == mine


async def test_the_records_say_who_sent_which_part(
    uploading: Uploading, appliance: Appliance
) -> None:
    await uploading.send(7)
    (intent,) = (
        record
        for record in appliance.records()
        if record["kind"] == "intent" and record["method"].endswith("/UploadPart")
    )
    assert (intent["principal"], intent["resource"]) == ("users/dora", uploading.name)
    asked = intent["details"]["asked"]
    assert (asked["number"], asked["sha256"]) == (7, digest(batch(("d7", "x"))))


@pytest.mark.attack
async def test_a_row_that_somebody_wrote_gives_no_upload_away(
    uploading: Uploading, appliance: Appliance
) -> None:
    await uploading.send(0)
    mallory = appliance.user("mallory", ("developer", "mine"))
    assert mallory == "users/mallory"
    with attacker.somebody(appliance.database.path) as raw:
        raw.execute("UPDATE upload SET principal = 'user:mallory'")
    assert isinstance(await error_of(uploading.send(1)), Unauthenticated)
    session = appliance.session("mallory")
    assert isinstance(await error_of(uploading.send(1, token=session)), NotFound)


@pytest.mark.attack
@pytest.mark.parametrize("how", ["own", "all", "locked", "proof", "revoked"])
async def test_a_session_that_ends_while_a_token_is_made_leaves_none(
    uploading: Uploading, appliance: Appliance, how: str
) -> None:
    """The call was identified and let in before its session ended."""
    people = appliance.control.people
    text = uploading.session
    subject = Principal(PrincipalKind.USER, "dora")
    if how == "revoked":
        text = appliance.service_account("robot", "mine", "developer")
        subject = Principal(PrincipalKind.SERVICE_ACCOUNT, "robot")
        with appliance.database.write() as transaction:
            transaction.run(tables.upload.update().values(principal=subject.subject))
    proof = people.credentials.identify(f"Bearer {text}")
    caller = Caller(principal=subject, credential=proof.credential)
    if how == "own":
        people.sessions.end("dora", proof.credential)
    elif how == "proof":
        totp = appliance.enrol("dora")
        auth = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
        code = auth_service_pb2.VerifyTotpRequest(token=text, code=totp.at(appliance.clock()))
        await auth.VerifyTotp(code)
    else:
        with appliance.database.write() as transaction:
            if how == "all":
                sessions.revoke_all(transaction, "dora")
            elif how == "locked":
                transaction.run(tables.user.update().values(locked=True))
            else:
                service_tokens.revoke(transaction, "robot", proof.credential)
    before = granted(appliance)
    with pytest.raises(Unauthenticated):
        appliance.control.work.uploads().grant(caller, rpc.GrantUploadRequest(name=uploading.name))
    assert granted(appliance) == before


def granted(appliance: Appliance) -> list[Any]:
    """Id and session of the token of each upload."""
    with appliance.database.read() as state:
        return [(row.grant_id, row.grant_session) for row in state.all(select(tables.upload))]
