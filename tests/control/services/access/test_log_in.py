"""Log-in and what proves a person, through the API: floods, lock-outs, resets, sessions."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import argon2
import grpc.aio
import pyotp
import pytest

from appliance.api.access.v1 import user_service_pb2, user_service_pb2_grpc
from appliance.api.auth.v1 import auth_service_pb2 as rpc
from appliance.api.auth.v1 import auth_service_pb2_grpc
from appliance.api.nodes.v1 import node_service_pb2, node_service_pb2_grpc
from appliance.control.auth import devices, hasher
from appliance.control.store import tables
from appliance.core.errors import (
    Denied,
    Exhausted,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    PasswordChangeRequired,
    Unauthenticated,
)
from tests.fakes.appliance import ADMINISTRATOR, PASSWORD, Appliance, bearer, error_of

FIRST = "nine blue kettles sing"
SECOND = "some red kettles whistle"


@dataclass
class Person:
    """Somebody with a password and an authenticator."""

    appliance: Appliance
    name: str
    password: str
    totp: pyotp.TOTP

    def code(self) -> str:
        return self.totp.at(self.appliance.clock())

    async def begin(self, password: str = "", **known: str) -> rpc.LoginResponse:
        request = rpc.LoginRequest(user=self.name, password=password or self.password, **known)
        return await auth(self.appliance).Login(request)

    async def log_in(self, **known: str) -> rpc.VerifyTotpResponse:
        self.appliance.clock.forward(seconds=60)
        begun = await self.begin(**known)
        return await auth(self.appliance).VerifyTotp(
            rpc.VerifyTotpRequest(token=begun.token, code=self.code())
        )


def auth(appliance: Appliance) -> Any:
    return appliance.api(auth_service_pb2_grpc.AuthServiceStub)


def users(appliance: Appliance) -> Any:
    return appliance.api(user_service_pb2_grpc.UserServiceStub)


def nodes(appliance: Appliance) -> Any:
    return appliance.api(node_service_pb2_grpc.NodeServiceStub)


@pytest.fixture
def alice(appliance: Appliance) -> Person:
    return Person(appliance, ADMINISTRATOR, PASSWORD, appliance.enrol(ADMINISTRATOR))


@pytest.fixture
def admin(appliance: Appliance, alice: Person) -> Any:
    """Metadata of the administrator, second factor just now."""
    return bearer(appliance.session(alice.name))


async def create(appliance: Appliance, admin: Any, name: str) -> None:
    request = user_service_pb2.CreateUserRequest(user_id=name, password=FIRST)
    await users(appliance).CreateUser(request, metadata=admin)


async def who(appliance: Appliance, token: str) -> Any:
    return await auth(appliance).WhoAmI(rpc.WhoAmIRequest(), metadata=bearer(token))


def shut(appliance: Appliance, counter: str) -> None:
    """As a hundred failures leave a counter."""
    with appliance.database.write() as transaction:
        transaction.run(
            tables.attempt.insert().values(
                account=counter, failures=100, next_time=appliance.clock()
            )
        )


async def test_a_first_password_is_replaced_before_anything_else(
    appliance: Appliance, admin: Any
) -> None:
    await create(appliance, admin, "bob")
    shown = await users(appliance).GetUser(
        user_service_pb2.GetUserRequest(name="users/bob"), metadata=admin
    )
    assert shown.must_change_password
    stub = auth(appliance)
    begun = await stub.Login(rpc.LoginRequest(user="bob", password=FIRST))
    enrolled = await stub.EnrollTotp(rpc.EnrollTotpRequest(token=begun.token))
    totp = pyotp.parse_uri(enrolled.provisioning_uri)
    assert isinstance(totp, pyotp.TOTP)
    bob = Person(appliance, "bob", FIRST, totp)
    done = await stub.VerifyTotp(rpc.VerifyTotpRequest(token=begun.token, code=bob.code()))
    assert done.next_step == rpc.SESSION_STEP_CHANGE_PASSWORD
    refused = await error_of(who(appliance, done.token))
    assert isinstance(refused, PasswordChangeRequired)
    for wrong, says in (
        ({"password": FIRST, "new_password": FIRST}, "it is the present password"),
        ({"password": FIRST, "new_password": "short"}, "fewer than 12"),
        ({"password": FIRST, "new_password": "bobbobbobbob"}, "guessed|own name"),
        ({"password": "wrong password 1", "new_password": SECOND}, "not your present password"),
    ):
        call = stub.ChangePassword(rpc.ChangePasswordRequest(**wrong), metadata=bearer(done.token))
        error = await error_of(call)
        assert isinstance(error, InvalidInput)
        assert any(part in error.message for part in says.split("|"))
    changed = await stub.ChangePassword(
        rpc.ChangePasswordRequest(password=FIRST, new_password=SECOND), metadata=bearer(done.token)
    )
    assert (await who(appliance, changed.token)).principal == "users/bob"
    assert isinstance(await error_of(who(appliance, done.token)), Unauthenticated)
    bob.password = SECOND
    again = await bob.log_in(device_token=changed.device_token)
    assert (again.next_step, again.device_token) == (rpc.SESSION_STEP_COMPLETE, "")


async def test_changing_a_password_needs_a_fresh_code(appliance: Appliance, alice: Person) -> None:
    stale = bearer(appliance.session(alice.name, mfa_age=timedelta(minutes=6)))
    request = rpc.ChangePasswordRequest(password=PASSWORD, new_password=SECOND)
    error = await error_of(auth(appliance).ChangePassword(request, metadata=stale))
    assert "a code from your authenticator" in error.message


async def test_own_sessions_are_listed_and_ended(
    appliance: Appliance, alice: Person, admin: Any
) -> None:
    other = appliance.session(alice.name)
    appliance.user("bob")
    foreign = appliance.session("bob")
    stub = auth(appliance)
    listed = await stub.ListSessions(rpc.ListSessionsRequest(), metadata=admin)
    assert [found.current for found in listed.sessions].count(True) == 1
    assert len(listed.sessions) == 2
    (ending,) = [found.id for found in listed.sessions if not found.current]
    await stub.EndSession(rpc.EndSessionRequest(session_id=ending), metadata=admin)
    assert isinstance(await error_of(who(appliance, other)), Unauthenticated)
    for session in (ending, foreign.split("_")[2], "", "'; DROP TABLE session; --"):
        call = stub.EndSession(rpc.EndSessionRequest(session_id=session), metadata=admin)
        assert isinstance(await error_of(call), NotFound)
    assert (await who(appliance, foreign)).principal == "users/bob"


async def test_an_application_has_no_sessions_and_no_password(appliance: Appliance) -> None:
    appliance.project("demo")
    app = bearer(appliance.service_account("app", "demo"))
    stub = auth(appliance)
    for call in (
        stub.ListSessions(rpc.ListSessionsRequest(), metadata=app),
        stub.EndSession(rpc.EndSessionRequest(session_id="x"), metadata=app),
        stub.Logout(rpc.LogoutRequest(), metadata=app),
    ):
        assert isinstance(await error_of(call), FailedPrecondition)


async def test_an_administrator_ends_the_sessions_of_somebody(
    appliance: Appliance, admin: Any
) -> None:
    appliance.user("bob")
    tokens = [appliance.session("bob") for _ in range(3)]
    answer = await users(appliance).EndUserSessions(
        user_service_pb2.EndUserSessionsRequest(name="users/bob"), metadata=admin
    )
    assert answer.sessions == 3
    for token in tokens:
        assert isinstance(await error_of(who(appliance, token)), Unauthenticated)


async def test_a_reset_password_is_good_for_one_log_in(appliance: Appliance, admin: Any) -> None:
    appliance.user("bob")
    bob = Person(appliance, "bob", SECOND, appliance.enrol("bob"))
    live = appliance.session("bob")
    shut(appliance, "user:bob")
    request = user_service_pb2.ResetPasswordRequest(name="users/bob", password=SECOND)
    assert (await users(appliance).ResetPassword(request, metadata=admin)).must_change_password
    assert isinstance(await error_of(who(appliance, live)), Unauthenticated)
    done = await bob.log_in()
    assert done.next_step == rpc.SESSION_STEP_CHANGE_PASSWORD
    text = json.dumps(appliance.records())
    assert SECOND not in text


@pytest.mark.attack
async def test_nobody_resets_their_own_password(appliance: Appliance, admin: Any) -> None:
    request = user_service_pb2.ResetPasswordRequest(name="users/alice", password=SECOND)
    refused = await error_of(users(appliance).ResetPassword(request, metadata=admin))
    assert isinstance(refused, FailedPrecondition)
    assert "appliance password change" in refused.message
    assert not (
        await users(appliance).GetUser(
            user_service_pb2.GetUserRequest(name="users/alice"), metadata=admin
        )
    ).must_change_password


async def test_a_reset_factor_is_enrolled_anew(appliance: Appliance, admin: Any) -> None:
    appliance.user("bob")
    appliance.enrol("bob")
    live = appliance.session("bob")
    request = user_service_pb2.ResetFactorRequest(name="users/bob")
    assert not (await users(appliance).ResetFactor(request, metadata=admin)).totp_enrolled
    assert isinstance(await error_of(who(appliance, live)), Unauthenticated)
    with appliance.database.read() as state:
        codes = state.all(tables.recovery_code.select().where(tables.recovery_code.c.user == "bob"))
    assert codes == []


@pytest.mark.attack
async def test_nobody_resets_somebody_who_holds_more(
    appliance: Appliance, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    appliance.user("helper", ("administrator", "/platform"), ("administrator", "*"))
    appliance.project("demo")
    appliance.user("olga", ("owner", "demo"))
    policies = appliance.control.base.policies
    allowed = type(policies.current()).allowed

    def lesser(policy: Any, principal: Any, project: Any, permission: str) -> bool:
        # A role that may reset and no more: the built-in ones have none such.
        if principal.id == "helper":
            return permission.startswith("users.reset")
        return allowed(policy, principal, project, permission)

    monkeypatch.setattr(type(policies.current()), "allowed", lesser)
    helper = bearer(appliance.session("helper"))
    for name in ("alice", "olga"):
        full = f"users/{name}"
        for call in (
            users(appliance).ResetFactor(
                user_service_pb2.ResetFactorRequest(name=full), metadata=helper
            ),
            users(appliance).ResetPassword(
                user_service_pb2.ResetPasswordRequest(name=full, password=SECOND), metadata=helper
            ),
        ):
            error = await error_of(call)
            assert isinstance(error, Denied)
            assert "may not act for" in error.message


@pytest.mark.attack
async def test_the_last_administrator_keeps_the_second_factor(
    appliance: Appliance, admin: Any
) -> None:
    appliance.user("newcomer", ("administrator", "/platform"), ("administrator", "*"))
    for call in (
        users(appliance).ResetFactor(
            user_service_pb2.ResetFactorRequest(name="users/alice"), metadata=admin
        ),
        users(appliance).LockUser(
            user_service_pb2.LockUserRequest(name="users/alice"), metadata=admin
        ),
    ):
        error = await error_of(call)
        assert isinstance(error, FailedPrecondition)
        assert "is the last administrator on the platform who can log in" in error.message
    appliance.enrol("newcomer")
    await users(appliance).ResetFactor(
        user_service_pb2.ResetFactorRequest(name="users/alice"), metadata=admin
    )


@pytest.mark.attack
async def test_a_shut_account_still_lets_its_owner_in_and_an_administrator_opens_it(
    appliance: Appliance, alice: Person, admin: Any
) -> None:
    known = (await alice.log_in()).device_token
    shut(appliance, "user:alice")
    assert isinstance(await error_of(alice.begin()), Exhausted)
    done = await alice.log_in(device_token=known)
    assert done.device_token == ""
    unlock = user_service_pb2.UnlockUserRequest(name="users/alice")
    await users(appliance).UnlockUser(unlock, metadata=bearer(done.token))
    await alice.log_in()


@pytest.mark.attack
async def test_locking_forgets_devices(appliance: Appliance, alice: Person, admin: Any) -> None:
    known = (await alice.log_in()).device_token
    appliance.user("carol", ("administrator", "/platform"), ("administrator", "*"), enrolled=True)
    carol = bearer(appliance.session("carol"))
    lock = user_service_pb2.LockUserRequest(name="users/alice")
    await users(appliance).LockUser(lock, metadata=carol)
    unlock = user_service_pb2.UnlockUserRequest(name="users/alice")
    await users(appliance).UnlockUser(unlock, metadata=carol)
    shut(appliance, "user:alice")
    assert isinstance(await error_of(alice.begin(device_token=known)), Exhausted)


async def test_records_say_how_somebody_came_in_and_hold_no_secret(
    appliance: Appliance, alice: Person
) -> None:
    first = await alice.log_in()
    await alice.log_in(device_token=first.device_token)
    found = [
        record
        for record in appliance.records()
        if record["kind"] == "result" and record["method"].endswith(("/Login", "/VerifyTotp"))
    ]
    assert [record["details"].get("counted") for record in found[::2]] == [
        "unknown device",
        "known device",
    ]
    assert found[1]["details"]["device"] == first.device_token.split("_")[2]
    text = json.dumps(appliance.records())
    for secret in (first.token, first.device_token, first.device_token.split("_")[3], PASSWORD):
        assert secret not in text


# --- join tokens ----------------------------------------------------------------------------------


async def test_join_tokens_are_listed_and_revoked(appliance: Appliance, admin: Any) -> None:
    stub = nodes(appliance)
    made = [
        await stub.CreateJoinToken(
            node_service_pb2.CreateJoinTokenRequest(node_id=f"gpu-{number}"), metadata=admin
        )
        for number in range(3)
    ]
    page = node_service_pb2.ListJoinTokensRequest(page_size=3)
    listed = await stub.ListJoinTokens(page, metadata=admin)
    rest = await stub.ListJoinTokens(
        node_service_pb2.ListJoinTokensRequest(page_token=listed.next_page_token), metadata=admin
    )
    found = {token.id: token for token in (*listed.join_tokens, *rest.join_tokens)}
    # `init` made one for the node of its own server.
    assert found.keys() > {each.token_id for each in made}
    assert len(found) == 4
    shown = found[made[0].token_id]
    assert (shown.node, shown.creator) == ("nodes/gpu-0", "users/alice")
    assert made[0].token not in str(listed) + str(rest)
    revoke = node_service_pb2.RevokeJoinTokenRequest(token_id=made[0].token_id)
    await stub.RevokeJoinToken(revoke, metadata=admin)
    assert isinstance(await error_of(stub.RevokeJoinToken(revoke, metadata=admin)), NotFound)
    result = next(
        record
        for record in appliance.records()[::-1]
        if record["method"].endswith("/RevokeJoinToken") and record["outcome"] == "OK"
    )
    assert result["details"]["node"] == "nodes/gpu-0"


# --- floods ---------------------------------------------------------------------------------------


def waiting(appliance: Appliance, *, known: bool = False) -> int:
    return len(appliance.control.people.hasher._lines[known])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what other threads do sets no event
            await asyncio.sleep(0.01)


def remembered(appliance: Appliance, person: Person) -> str:
    """A device on which somebody has logged in."""
    key, now = appliance.control.base.keyring.token_hmac, appliance.clock()
    with appliance.database.write() as transaction:
        return devices.remember(transaction, person.name, key, now)


class Slow(argon2.PasswordHasher):
    """Verifies when it is told to; each turn lets one verification through."""

    def __init__(self) -> None:
        super().__init__(1, 8, 1)
        self.turns = threading.Semaphore(0)
        self.waiting = threading.Semaphore(0)

    def verify(self, hash: str | bytes, password: str | bytes) -> Any:  # noqa: A002
        self.waiting.release()
        assert self.turns.acquire(timeout=30)
        return super().verify(hash, password)


@pytest.fixture
async def slow(appliance: Appliance) -> AsyncIterator[Slow]:
    """The appliance's passwords, hashed cheaply and as slowly as the test likes."""
    made, passwords = Slow(), appliance.control.people.passwords
    passwords._hasher = made
    passwords._nobody = made.hash("nobody")
    appliance.user("bob")
    stored = passwords.hash(SECOND)
    with appliance.database.write() as transaction:
        transaction.run(tables.user.update().values(password_hash=stored))
    yield made
    made.turns.release(1000)


@pytest.mark.attack
async def test_a_flood_of_log_ins_refuses_no_honest_one_and_holds_no_thread(
    appliance: Appliance, alice: Person, admin: Any, slow: Slow
) -> None:
    """Twenty wait, five times as many as there are threads, all from one address."""
    known = remembered(appliance, alice)
    stub = auth(appliance)
    flood = [
        asyncio.create_task(
            error_of(stub.Login(rpc.LoginRequest(user=f"name-{number}", password="wrong")))
        )
        for number in range(20 + hasher.AT_ONCE)
    ]
    for _ in range(hasher.AT_ONCE):
        await asyncio.to_thread(slow.waiting.acquire, timeout=30)
    await until(lambda: waiting(appliance) == 20)
    # Four threads serve calls, and all of the flood waits: other calls are answered.
    assert (await who(appliance, admin[0][1].removeprefix("Bearer "))).principal == "users/alice"
    alice.password = SECOND
    honest = asyncio.create_task(alice.begin(device_token=known))
    await until(lambda: waiting(appliance, known=True) == 1)
    slow.turns.release(1000)
    assert (await honest).token
    ended = await asyncio.gather(*flood)
    assert {type(error) for error in ended} == {Unauthenticated}


@pytest.mark.attack
async def test_a_right_password_whose_turn_does_not_come_is_no_failure(
    appliance: Appliance, alice: Person, slow: Slow
) -> None:
    alice.password = SECOND
    appliance.control.people.hasher._longest_wait = 0.01
    first = [asyncio.create_task(alice.begin()) for _ in range(hasher.AT_ONCE)]
    for _ in first:
        await asyncio.to_thread(slow.waiting.acquire, timeout=30)
    for _ in range(20):
        error = await error_of(alice.begin())
        assert isinstance(error, Exhausted)
        assert "too many people log in" in error.message
    slow.turns.release(1000)
    for begun in await asyncio.gather(*first):
        assert begun.token
    with appliance.database.read() as state:
        row = state.first(tables.attempt.select().where(tables.attempt.c.account == "user:alice"))
    assert row is not None
    assert row.failures == len(first)


@pytest.mark.attack
async def test_who_leaves_while_waiting_gets_the_try_back(
    appliance: Appliance, alice: Person, slow: Slow
) -> None:
    alice.password = SECOND
    first = [asyncio.create_task(alice.begin()) for _ in range(hasher.AT_ONCE)]
    for _ in first:
        await asyncio.to_thread(slow.waiting.acquire, timeout=30)
    call = auth(appliance).Login(rpc.LoginRequest(user="alice", password=SECOND))
    leaving = asyncio.ensure_future(call)
    await until(lambda: waiting(appliance) == 1)
    leaving.cancel()
    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        await leaving
    await until(lambda: waiting(appliance) == 0)
    slow.turns.release(1000)
    await asyncio.gather(*first)

    def failures() -> int:
        with appliance.database.read() as state:
            row = state.first(tables.attempt.select())
        return int(row.failures) if row is not None else 0

    await until(lambda: failures() == len(first))
