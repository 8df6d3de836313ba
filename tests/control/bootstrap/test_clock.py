"""A clock that was a year ahead for a while does no lasting harm."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyotp
import pytest

from appliance.api.access.v1 import service_account_service_pb2 as accounts_rpc
from appliance.api.access.v1 import service_account_service_pb2_grpc as accounts_grpc
from appliance.api.agent.v1 import enrolment_service_pb2, enrolment_service_pb2_grpc
from appliance.api.auth.v1 import auth_service_pb2 as rpc
from appliance.api.auth.v1 import auth_service_pb2_grpc
from appliance.api.nodes.v1 import node_service_pb2, node_service_pb2_grpc
from appliance.control.bootstrap import rescuing
from appliance.control.bootstrap.opening import open_data
from appliance.control.main import ControlPlane
from appliance.control.services.system.sweeper import Sweeper
from appliance.control.store import requests, tables
from appliance.core.errors import FailedPrecondition, FreshMfaRequired, Unauthenticated
from appliance.crypto.certs import make_csr, new_private_key
from tests.fakes.appliance import (
    ADMINISTRATOR,
    PASSWORD,
    Appliance,
    MovingClock,
    bearer,
    error_of,
    settings_of,
)

YEAR = timedelta(days=365)


class Person:
    """The administrator, with password and authenticator."""

    def __init__(self, appliance: Appliance) -> None:
        self.appliance = appliance
        self.stub = appliance.api(auth_service_pb2_grpc.AuthServiceStub)
        self.totp: pyotp.TOTP = appliance.enrol(ADMINISTRATOR)

    async def log_in(self, **known: str) -> Any:
        self.appliance.clock.forward(seconds=60)
        begun = await self.stub.Login(
            rpc.LoginRequest(user=ADMINISTRATOR, password=PASSWORD, **known)
        )
        return await self.prove(begun.token)

    async def prove(self, token: str) -> Any:
        code = self.totp.at(self.appliance.clock())
        return await self.stub.VerifyTotp(rpc.VerifyTotpRequest(token=token, code=code))

    async def who(self, token: str) -> Any:
        return await self.stub.WhoAmI(rpc.WhoAmIRequest(), metadata=bearer(token))

    async def fail(self) -> None:
        request = rpc.LoginRequest(user=ADMINISTRATOR, password="wrong password 1")
        assert isinstance(await error_of(self.stub.Login(request)), Unauthenticated)


@pytest.fixture
def alice(appliance: Appliance) -> Person:
    return Person(appliance)


async def test_people_and_applications_go_on_when_it_is_right_again(
    appliance: Appliance, alice: Person
) -> None:
    appliance.project("demo")
    device = (await alice.log_in()).device_token
    before = appliance.service_account("app", "demo")
    appliance.clock.offset += YEAR
    ahead = await alice.log_in(device_token=device)
    ahead = await alice.log_in(device_token=ahead.device_token)
    made = await appliance.api(accounts_grpc.ServiceAccountServiceStub).CreateToken(
        accounts_rpc.CreateTokenRequest(name="serviceAccounts/app"), metadata=bearer(ahead.token)
    )
    assert (await alice.who(made.token)).principal == "serviceAccounts/app"
    assert isinstance(await error_of(alice.who(before)), Unauthenticated)
    for _ in range(5):
        await alice.fail()
    appliance.clock.offset -= YEAR
    # What lived before lives again, what was made ahead does not, and everybody can log in.
    assert (await alice.who(before)).principal == "serviceAccounts/app"
    for token in (made.token, ahead.token):
        assert isinstance(await error_of(alice.who(token)), Unauthenticated)
    credentials = appliance.control.people.credentials
    assert {found.principal.id for found in credentials.live()} == {"alice", "app"}
    done = await alice.log_in()
    assert (await alice.who(done.token)).principal == "users/alice"
    again = await alice.log_in(device_token=done.device_token)
    assert again.device_token == ""
    ids = {made.token.split("_")[2], before.split("_")[2]}
    shown = await appliance.api(accounts_grpc.ServiceAccountServiceStub).GetServiceAccount(
        accounts_rpc.GetServiceAccountRequest(name="serviceAccounts/app"),
        metadata=bearer(again.token),
    )
    assert {token.id for token in shown.tokens} == ids


@pytest.mark.attack
async def test_a_code_used_before_it_went_back_does_not_work_again(
    appliance: Appliance, alice: Person
) -> None:
    appliance.clock.forward(seconds=60)
    now, offset = appliance.clock(), appliance.clock.offset
    token = appliance.session(ADMINISTRATOR)
    code = alice.totp.at(now)
    first = await alice.stub.VerifyTotp(rpc.VerifyTotpRequest(token=token, code=code))
    appliance.clock.offset += YEAR
    ahead = appliance.session(ADMINISTRATOR)
    await alice.prove(ahead)
    appliance.clock.offset = offset
    repeated = rpc.VerifyTotpRequest(token=first.token, code=code)
    assert isinstance(await error_of(alice.stub.VerifyTotp(repeated)), Unauthenticated)


@pytest.mark.attack
async def test_a_proof_of_the_future_is_not_fresh(appliance: Appliance, alice: Person) -> None:
    token = appliance.session(ADMINISTRATOR, mfa_age=-YEAR)
    request = node_service_pb2.CreateJoinTokenRequest(node_id="gpu-1")
    stub = appliance.api(node_service_pb2_grpc.NodeServiceStub)
    error = await error_of(stub.CreateJoinToken(request, metadata=bearer(token)))
    assert isinstance(error, FreshMfaRequired)


@pytest.mark.attack
async def test_a_session_whose_last_use_lies_ahead_has_ended(
    appliance: Appliance, alice: Person
) -> None:
    token = appliance.session(ADMINISTRATOR, lifetime=timedelta(hours=12))
    appliance.clock.forward(hours=0.4)
    await alice.who(token)
    appliance.clock.forward(hours=-0.2)
    assert isinstance(await error_of(alice.who(token)), Unauthenticated)


@pytest.mark.attack
async def test_a_join_token_of_the_future_lets_nobody_in(appliance: Appliance) -> None:
    stub = appliance.api(node_service_pb2_grpc.NodeServiceStub)
    appliance.clock.offset += YEAR
    admin = bearer(appliance.session(ADMINISTRATOR))
    made = await stub.CreateJoinToken(
        node_service_pb2.CreateJoinTokenRequest(node_id="gpu-1"), metadata=admin
    )
    appliance.clock.offset -= YEAR
    csr = make_csr(new_private_key()).decode()
    join = enrolment_service_pb2.JoinRequest(token=made.token, certificate_request=csr)
    enrolment = appliance.api(enrolment_service_pb2_grpc.EnrolmentServiceStub)
    assert isinstance(await error_of(enrolment.Join(join)), Unauthenticated)
    listed = await stub.ListJoinTokens(
        node_service_pb2.ListJoinTokensRequest(),
        metadata=bearer(appliance.session(ADMINISTRATOR)),
    )
    assert made.token_id not in {token.id for token in listed.join_tokens}


def test_answers_that_were_kept_ahead_are_forgotten(copy: Path) -> None:
    clock = MovingClock()
    control_requests = tables.request
    opened = open_data(settings_of(copy), clock)
    try:
        with opened.database.write() as transaction:
            for name, moment in (("a", clock() + YEAR), ("b", clock())):
                requests.remember(
                    transaction,
                    principal="user:alice",
                    method=name,
                    request_id="0b9e5e9e-53f5-4b5e-8a0e-2f4a3f1f0c11",
                    payload=b"",
                    response=b"",
                    now=moment,
                )
        Sweeper(opened.database, clock, lambda: 0.0).sweep()
        with opened.database.read() as state:
            assert [row.method for row in state.all(control_requests.select())] == ["b"]
    finally:
        opened.close()


# --- the start ------------------------------------------------------------------------------------


def worked_ahead(copy: Path) -> None:
    """Leave a record that is a year ahead, as an appliance does that ran under a wrong clock."""
    opened = open_data(settings_of(copy), MovingClock(YEAR))
    opened.close()
    rescuing.unlock(settings_of(copy), ADMINISTRATOR, MovingClock(YEAR))


async def test_it_starts_again_when_whoever_may_read_the_keys_accepts_the_clock(copy: Path) -> None:
    worked_ahead(copy)
    with pytest.raises(FailedPrecondition, match="accept-clock"):
        ControlPlane.build(settings_of(copy), MovingClock())
    ahead = rescuing.accept_clock(settings_of(copy), MovingClock())
    assert ahead > datetime.now(UTC) + timedelta(days=364)
    control = ControlPlane.build(settings_of(copy), MovingClock())
    records = list(control.base.opened.log.newest())[:2]
    await control.close()
    assert [(each["method"], each["kind"]) for each in records] == [
        ("accept-clock", "result"),
        ("accept-clock", "intent"),
    ]
    said = records[1]["details"]
    assert datetime.fromisoformat(said["last_record"]) == ahead
    assert datetime.fromisoformat(said["clock"]) < ahead - timedelta(days=364)


async def test_an_appliance_made_under_a_wrong_clock_starts_too(copy: Path) -> None:
    opened = open_data(settings_of(copy), MovingClock())
    with opened.database.write() as transaction:
        made = transaction.value(tables.meta.select().with_only_columns(tables.meta.c.create_time))
        transaction.run(tables.meta.update().values(create_time=made + YEAR))
    opened.close()
    with pytest.raises(FailedPrecondition, match="accept-clock"):
        ControlPlane.build(settings_of(copy), MovingClock())
    rescuing.accept_clock(settings_of(copy), MovingClock())
    control = ControlPlane.build(settings_of(copy), MovingClock())
    await control.close()


@pytest.mark.attack
def test_a_clock_is_not_accepted_in_advance_and_each_step_back_is_accepted_anew(
    copy: Path,
) -> None:
    with pytest.raises(FailedPrecondition, match="nothing to accept"):
        rescuing.accept_clock(settings_of(copy), MovingClock())
    worked_ahead(copy)
    rescuing.accept_clock(settings_of(copy), MovingClock())
    with pytest.raises(FailedPrecondition, match="set the clock right"):
        open_data(settings_of(copy), MovingClock(-timedelta(minutes=10)))


def test_a_refused_start_changes_nothing(copy: Path) -> None:
    worked_ahead(copy)
    log = copy / "audit" / "000000000000.log"
    before = log.read_bytes()
    with pytest.raises(FailedPrecondition):
        open_data(settings_of(copy), MovingClock())
    assert log.read_bytes() == before
    assert json.loads(before.splitlines()[-1])["method"] == "unlock"
