"""The door: what it lets in, what it says to whom, and what it writes down."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import threading
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance.api.access.v1 import (
    service_account_service_pb2,
    service_account_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from appliance.api.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from appliance.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from appliance.api.projects.v1 import project_service_pb2, project_service_pb2_grpc
from appliance.control.auth import tokens
from appliance.control.auth.rules import RoleLink
from appliance.control.auth.sessions import CHANGE_PASSWORD
from appliance.control.auth.tokens import TokenKind
from appliance.control.config import ControlConfig, RequestLimits
from appliance.control.main import ControlPlane
from appliance.control.rpc.pools import STRANGER_THREADS
from appliance.control.rpc.servicer import Servicer
from appliance.control.services.common.caller import Caller, set_current_caller
from appliance.control.store import tables
from appliance.core.data_directory import DataDirectory
from appliance.core.errors import (
    AuditUnavailable,
    Denied,
    Exhausted,
    FreshMfaRequired,
    Internal,
    InvalidInput,
    MfaRequired,
    NotFound,
    PasswordChangeRequired,
    Unauthenticated,
    UnknownMethod,
)
from appliance.wire.admission import CallerLimits, StrangerLimits
from appliance.wire.rules import RuleMissing
from tests.fakes.appliance import ADMINISTRATOR, Appliance, bearer, error_of, running, settings_of


def users(appliance: Appliance) -> user_service_pb2_grpc.UserServiceStub:
    return appliance.api(user_service_pb2_grpc.UserServiceStub)


def auth(appliance: Appliance) -> auth_service_pb2_grpc.AuthServiceStub:
    return appliance.api(auth_service_pb2_grpc.AuthServiceStub)


async def test_a_call_leaves_an_intent_and_a_result_with_its_caller(appliance: Appliance) -> None:
    token = appliance.session(ADMINISTRATOR)
    request = user_service_pb2.GetUserRequest(name="users/alice")
    await users(appliance).GetUser(request, metadata=bearer(token, "call-1"))
    records = appliance.records_of("call-1")
    assert [
        (record["kind"], record["principal"], record["resource"], record["outcome"])
        for record in records
    ] == [
        ("intent", "users/alice", "users/alice", ""),
        ("result", "users/alice", "users/alice", "OK"),
    ]
    assert records[0]["method"] == "/appliance.api.access.v1.UserService/GetUser"
    assert records[0]["source"].startswith("ipv4:127.0.0.1:")
    assert records[1]["details"]["intent"] == records[0]["sequence"]


async def test_a_refused_call_is_recorded_with_its_callers_name(appliance: Appliance) -> None:
    appliance.project("mine")
    appliance.user("vera", ("viewer", "mine"))
    token = appliance.session("vera")
    error = await error_of(
        appliance.api(project_service_pb2_grpc.ProjectServiceStub).CreateProject(
            project_service_pb2.CreateProjectRequest(project_id="other"),
            metadata=bearer(token, "call-1"),
        )
    )
    assert isinstance(error, Denied)
    assert error.message == (
        "users/vera may not do this: it needs projects.create on the platform "
        "(in role administrator), which an administrator on the platform can give"
    )
    assert error.metadata["permission"] == "projects.create"
    (record,) = appliance.records_of("call-1")
    assert (record["kind"], record["principal"], record["outcome"]) == (
        "denied",
        "users/vera",
        "PERMISSION_DENIED",
    )


@pytest.mark.attack
async def test_another_projects_resources_look_like_missing_ones(appliance: Appliance) -> None:
    appliance.project("mine")
    appliance.project("theirs")
    appliance.service_account("their-app", "theirs")
    appliance.user("olga", ("owner", "mine"))
    metadata = bearer(appliance.session("olga"))
    accounts = appliance.api(service_account_service_pb2_grpc.ServiceAccountServiceStub)
    projects = appliance.api(project_service_pb2_grpc.ProjectServiceStub)
    get_account = service_account_service_pb2.GetServiceAccountRequest
    get_project = project_service_pb2.GetProjectRequest
    for method, request, there, absent in (
        (accounts.GetServiceAccount, get_account, "serviceAccounts/their-app", "absent-ap"),
        (projects.GetProject, get_project, "projects/theirs", "absent"),
    ):
        foreign = await error_of(method(request(name=there), metadata=metadata))
        collection, name = there.split("/")
        missing = await error_of(method(request(name=f"{collection}/{absent}"), metadata=metadata))
        assert isinstance(foreign, NotFound)
        assert isinstance(missing, NotFound)
        assert foreign.message == missing.message.replace(absent, name)
    listed = await projects.ListProjects(
        project_service_pb2.ListProjectsRequest(), metadata=metadata
    )
    assert [project.name for project in listed.projects] == ["projects/mine"]


@pytest.mark.attack
@pytest.mark.parametrize(
    "name", ["projects/mine/../theirs", "projects/mine/", "users/role:owner", "mine", "projects/"]
)
async def test_a_crafted_name_is_never_judged_as_the_whole_appliance(
    appliance: Appliance, name: str
) -> None:
    metadata = bearer(appliance.session(ADMINISTRATOR))
    stub = appliance.api(project_service_pb2_grpc.ProjectServiceStub)
    error = await error_of(
        stub.GetProject(project_service_pb2.GetProjectRequest(name=name), metadata=metadata)
    )
    assert isinstance(error, InvalidInput)


@pytest.mark.attack
async def test_half_a_log_in_opens_nothing(appliance: Appliance) -> None:
    token = appliance.session(ADMINISTRATOR, step="VERIFY_TOTP")
    error = await error_of(
        auth(appliance).WhoAmI(auth_service_pb2.WhoAmIRequest(), metadata=bearer(token, "call-1"))
    )
    assert type(error) is MfaRequired
    (record,) = appliance.records_of("call-1")
    assert (record["kind"], record["principal"], record["outcome"]) == (
        "denied",
        "users/alice",
        "MFA_REQUIRED",
    )


async def test_dangerous_calls_need_a_second_factor_of_the_last_five_minutes(
    appliance: Appliance,
) -> None:
    appliance.user("bob")
    request = user_service_pb2.LockUserRequest(name="users/bob")
    token = appliance.session(ADMINISTRATOR, mfa_age=timedelta(minutes=4))
    await users(appliance).LockUser(request, metadata=bearer(token))
    appliance.clock.forward(minutes=2)
    error = await error_of(users(appliance).LockUser(request, metadata=bearer(token)))
    assert type(error) is FreshMfaRequired
    await users(appliance).GetUser(
        user_service_pb2.GetUserRequest(name="users/bob"), metadata=bearer(token)
    )


@pytest.mark.attack
@pytest.mark.parametrize("token", ["", "x", "sla_ses_0_0_0", "Bearer", "sla_join_x"])
async def test_what_is_no_token_identifies_nobody(appliance: Appliance, token: str) -> None:
    error = await error_of(
        auth(appliance).WhoAmI(
            auth_service_pb2.WhoAmIRequest(), metadata=(("authorization", token),)
        )
    )
    assert type(error) is Unauthenticated


async def test_an_unknown_method_is_refused_and_recorded_without_its_text(
    appliance: Appliance,
) -> None:
    token = appliance.session(ADMINISTRATOR)
    channel = appliance.channel(appliance.control.api_port)
    error = await error_of(
        channel.unary_unary("/appliance.api.access.v1.UserService/Become")(
            b"", metadata=bearer(token, "call-1")
        )
    )
    assert isinstance(error, UnknownMethod)
    (record,) = appliance.records_of("call-1")
    assert (record["kind"], record["principal"], record["method"]) == (
        "denied",
        "users/alice",
        "unknown",
    )
    assert "Become" not in str(record)


@pytest.mark.attack
async def test_the_server_says_nothing_about_itself(appliance: Appliance) -> None:
    channel = appliance.channel(appliance.control.api_port)
    for method in (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
    ):
        assert isinstance(await error_of(channel.unary_unary(method)(b"")), UnknownMethod)
    system = channel.unary_unary("/appliance.api.system.v1.SystemService/GetSystem")
    assert type(await error_of(system(b""))) is Unauthenticated


class Stage(Servicer, audit_service_pb2_grpc.AuditServiceServicer):
    """A stream that never ends, a bug, and slow work, behind the real gate."""

    def __init__(self, control: ControlPlane) -> None:
        super().__init__(control._pool, control.base.events)
        self.began = threading.Event()
        self.go_on = threading.Event()

    async def ExportRecords(
        self, request: audit_service_pb2.ExportRecordsRequest, context: object
    ) -> AsyncIterator[audit_service_pb2.ExportRecordsResponse]:
        yield audit_service_pb2.ExportRecordsResponse(lines=b"first")
        await asyncio.Event().wait()

    async def ListRecords(
        self, request: audit_service_pb2.ListRecordsRequest, context: object
    ) -> audit_service_pb2.ListRecordsResponse:
        raise KeyError("what nobody may see")

    async def GetCheckpoint(
        self, request: audit_service_pb2.GetCheckpointRequest, context: object
    ) -> audit_service_pb2.GetCheckpointResponse:
        return await self._run(self._work)

    def _work(self) -> audit_service_pb2.GetCheckpointResponse:
        self.began.set()
        self.go_on.wait(10.0)
        return audit_service_pb2.GetCheckpointResponse()


@pytest.fixture
async def staged(template: Path, tmp_path: Path) -> AsyncIterator[tuple[Appliance, Stage]]:
    made: list[Stage] = []

    def stage(control: ControlPlane) -> list[Servicer]:
        made.append(Stage(control))
        return [made[0]]

    async with running(template, tmp_path / "data", stage=stage) as started:
        yield started, made[0]


def lock(appliance: Appliance, _binding: str) -> None:
    with appliance.database.write() as transaction:
        transaction.run(tables.user.update().where(tables.user.c.id == "olga").values(locked=True))


def unbind(appliance: Appliance, binding: str) -> None:
    with appliance.database.write() as transaction:
        transaction.run(
            tables.binding.delete().where(tables.binding.c.id == binding.removeprefix("bindings/"))
        )
        appliance.control.base.policies.changed(transaction)


def log_out(appliance: Appliance, _binding: str) -> None:
    with appliance.database.write() as transaction:
        transaction.run(tables.session.delete().where(tables.session.c.user == "olga"))


@pytest.mark.attack
@pytest.mark.parametrize(
    ("revoke", "reason"),
    [(lock, "UNAUTHENTICATED"), (unbind, "PERMISSION_DENIED"), (log_out, "UNAUTHENTICATED")],
)
async def test_an_open_stream_ends_within_two_seconds_of_losing_the_right(
    staged: tuple[Appliance, Stage], revoke: Callable[[Appliance, str], None], reason: str
) -> None:
    appliance, _ = staged
    appliance.user("olga")
    binding = appliance.bind(RoleLink("user:olga", "auditor", "/platform"))
    stream = aiter(
        appliance.staged(audit_service_pb2_grpc.AuditServiceStub).ExportRecords(
            audit_service_pb2.ExportRecordsRequest(),
            metadata=bearer(appliance.session("olga"), "call-1"),
        )
    )
    assert (await anext(stream)).lines == b"first"
    revoke(appliance, binding)
    error = await asyncio.wait_for(error_of(stream), 2.0)
    assert error.reason == reason
    await settled(appliance, "call-1", 2)
    assert appliance.records()[-1]["kind"] == "result"
    assert appliance.records()[-1]["outcome"] == reason


async def settled(appliance: Appliance, asked: str, count: int) -> list[dict[str, object]]:
    """The records of a call, once there are so many."""
    while True:
        found = appliance.records_of(asked)
        if len(found) >= count:
            return found
        await asyncio.sleep(0.01)


@pytest.mark.attack
async def test_a_bug_shows_its_request_id_and_nothing_of_the_inside(
    staged: tuple[Appliance, Stage], caplog: pytest.LogCaptureFixture
) -> None:
    appliance, _ = staged
    error = await error_of(
        appliance.staged(audit_service_pb2_grpc.AuditServiceStub).ListRecords(
            audit_service_pb2.ListRecordsRequest(),
            metadata=bearer(appliance.session(ADMINISTRATOR), "call-1"),
        )
    )
    assert isinstance(error, Internal)
    assert appliance.records()[-1]["request_id"] in error.message
    assert "nobody may see" not in error.message
    assert "what nobody may see" in caplog.text
    assert appliance.records()[-1]["outcome"] == "INTERNAL"


async def test_the_record_of_a_call_whose_caller_left_says_what_happened(
    staged: tuple[Appliance, Stage],
) -> None:
    appliance, stage = staged
    call = appliance.staged(audit_service_pb2_grpc.AuditServiceStub).GetCheckpoint(
        audit_service_pb2.GetCheckpointRequest(),
        metadata=bearer(appliance.session(ADMINISTRATOR), "call-1"),
    )
    await asyncio.to_thread(stage.began.wait, 5.0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0.05)
    stage.go_on.set()
    records = await settled(appliance, "call-1", 2)
    assert [record["outcome"] for record in records] == ["", "OK"]


async def test_no_record_no_change(appliance: Appliance) -> None:
    """S38: the disk of the log fails; nothing is created, and nothing else is answered."""
    token = appliance.session(ADMINISTRATOR)
    stub = appliance.api(project_service_pb2_grpc.ProjectServiceStub)
    files = appliance.control.base.opened.log._files

    def fail(_lines: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    files.append = fail
    error = await error_of(
        stub.CreateProject(
            project_service_pb2.CreateProjectRequest(project_id="late"), metadata=bearer(token)
        )
    )
    assert isinstance(error, AuditUnavailable)
    with appliance.database.read() as state:
        assert state.all(tables.project.select()) == []


@pytest.mark.attack
async def test_an_address_that_does_not_say_who_it_is_is_slowed_down(
    template: Path, tmp_path: Path
) -> None:
    def settings(folder: Path) -> ControlConfig:
        slow = RequestLimits(anonymous_per_second=0.001, anonymous_burst=3)
        return settings_of(folder, limits=slow)

    async with running(template, tmp_path / "data", settings=settings) as appliance:
        before = len(appliance.records())
        who = auth_service_pb2.WhoAmIRequest()
        errors = [
            type(await error_of(auth(appliance).WhoAmI(who, metadata=bearer("guess"))))
            for _ in range(5)
        ]
        assert errors == [Unauthenticated] * 3 + [Exhausted] * 2
        assert len(appliance.records()) == before
        # Who shares the address may still log in, and whoever is known is not slowed down.
        login = auth_service_pb2.LoginRequest(user="alice", password="wrong")
        errors = [type(await error_of(auth(appliance).Login(login))) for _ in range(5)]
        assert errors == [Unauthenticated] * 3 + [Exhausted] * 2
        answer = await auth(appliance).WhoAmI(
            who, metadata=bearer(appliance.session(ADMINISTRATOR))
        )
        assert answer.principal == "users/alice"


async def test_a_session_that_needs_a_new_password_takes_nothing_from_its_address(
    template: Path, tmp_path: Path
) -> None:
    def settings(folder: Path) -> ControlConfig:
        few = RequestLimits(anonymous_per_second=0.001, anonymous_burst=2)
        return settings_of(folder, limits=few)

    async with running(template, tmp_path / "data", settings=settings) as appliance:
        metadata = bearer(appliance.session(ADMINISTRATOR, step=CHANGE_PASSWORD))
        request = user_service_pb2.ListUsersRequest()
        for _ in range(5):
            error = await error_of(users(appliance).ListUsers(request, metadata=metadata))
            assert isinstance(error, PasswordChangeRequired)


@pytest.mark.attack
async def test_what_strangers_cause_is_one_record(appliance: Appliance) -> None:
    """No token, a made-up one, also in a message, a message that is none, a call nobody has."""
    before = len(appliance.records())
    channel = appliance.channel(appliance.control.api_port)
    made_up = tokens.mint(TokenKind.SESSION, b"another key").text
    login, verify, who = (
        f"/appliance.api.auth.v1.AuthService/{method}"
        for method in ("Login", "VerifyTotp", "WhoAmI")
    )
    for _ in range(100):
        assert type(await error_of(channel.unary_unary(who)(b""))) is Unauthenticated
        answer = channel.unary_unary(who)(b"", metadata=bearer(made_up))
        assert type(await error_of(answer)) is Unauthenticated
        assert type(await error_of(channel.unary_unary(login)(b"\xff"))) is InvalidInput
        assert type(await error_of(channel.unary_unary("/x/y")(b"\xff"))) is UnknownMethod
        for text in ("x", made_up):
            request = auth_service_pb2.VerifyTotpRequest(token=text, code="123456")
            answer = channel.unary_unary(verify)(request.SerializeToString())
            assert type(await error_of(answer)) is Unauthenticated
    await appliance.control.record_refusals()
    (record,) = appliance.records()[before:]
    assert (record["kind"], record["principal"], record["source"], record["outcome"]) == (
        "denied",
        "",
        "127.0.0.1",
        "UNAUTHENTICATED",
    )
    assert record["details"] == {
        "count": 600,
        "reasons": {"UNAUTHENTICATED": 400, "INVALID_INPUT": 100, "UNKNOWN_METHOD": 100},
        "methods": {who: 200, login: 100, "unknown": 100, verify: 200},
    }
    await appliance.control.record_refusals()
    assert len(appliance.records()) == before + 1


async def test_a_credential_that_ended_is_recorded_with_its_owner(appliance: Appliance) -> None:
    appliance.user("olga")
    token = appliance.session("olga")
    lock(appliance, "")
    error = await error_of(
        auth(appliance).WhoAmI(auth_service_pb2.WhoAmIRequest(), metadata=bearer(token, "call-1"))
    )
    assert type(error) is Unauthenticated
    (record,) = appliance.records_of("call-1")
    assert (record["kind"], record["principal"]) == ("denied", "users/olga")


@pytest.mark.attack
async def test_a_malformed_message_of_a_known_caller_is_recorded_with_its_name(
    appliance: Appliance, caplog: pytest.LogCaptureFixture
) -> None:
    channel = appliance.channel(appliance.control.api_port)
    get = channel.unary_unary("/appliance.api.access.v1.UserService/GetUser")
    metadata = bearer(appliance.session(ADMINISTRATOR), "call-1")
    for wrong in (b"\xff", b"\x0a\x03\xed\xa0\x80"):
        assert isinstance(await error_of(get(wrong, metadata=metadata)), InvalidInput)
    records = appliance.records_of("call-1")
    assert [(r["kind"], r["principal"], r["outcome"]) for r in records] == [
        ("denied", "users/alice", "INVALID_INPUT")
    ] * 2
    assert caplog.text == ""


@pytest.mark.attack
async def test_a_known_callers_reads_and_denials_do_not_fill_the_log(
    template: Path, tmp_path: Path
) -> None:
    def settings(folder: Path) -> ControlConfig:
        slow = CallerLimits(
            reads_per_second=0.001, read_burst=10, denials_per_second=0.001, denial_burst=3
        )
        return settings_of(folder, callers=slow)

    async with running(template, tmp_path / "data", settings=settings) as appliance:
        appliance.user("vera")
        metadata = bearer(appliance.session("vera"))
        who, create = auth_service_pb2.WhoAmIRequest(), user_service_pb2.CreateUserRequest()
        before = len(appliance.records())
        for _ in range(50):
            denied = await error_of(users(appliance).CreateUser(create, metadata=metadata))
            assert isinstance(denied, Denied)
        for _ in range(10):
            await auth(appliance).WhoAmI(who, metadata=metadata)
        for _ in range(50):
            over = await error_of(auth(appliance).WhoAmI(who, metadata=metadata))
            assert isinstance(over, Exhausted)
            assert over.retry_after is not None
        await appliance.control.record_refusals()
        records = appliance.records()[before:]
        assert [record["kind"] for record in records] == (
            ["denied"] * 3 + ["intent", "result"] * 10 + ["denied"]
        )
        assert (records[-1]["principal"], records[-1]["details"]["reasons"]) == (
            "users/vera",
            {"PERMISSION_DENIED": 47, "RESOURCE_EXHAUSTED": 50},
        )
        # Somebody else reads on.
        await auth(appliance).WhoAmI(who, metadata=bearer(appliance.session(ADMINISTRATOR)))


@pytest.mark.attack
async def test_what_one_caller_adds_to_the_log_by_reading_all_day_is_bounded(
    appliance: Appliance,
) -> None:
    """The number of docs/audit.md: the bytes of a read, by the rate of the defaults."""
    folder = DataDirectory(appliance.folder).audit
    metadata = bearer(appliance.session(ADMINISTRATOR), "c" * 36)

    def size() -> int:
        return sum(path.stat().st_size for path in folder.glob("*.log"))

    stub, before = users(appliance), size()
    for _ in range(20):
        await stub.ListUsers(user_service_pb2.ListUsersRequest(), metadata=metadata)
    a_read = (size() - before) / 20
    assert a_read * CallerLimits().reads_per_second * 86_400 < 0.8e9


@pytest.mark.attack
async def test_held_log_ins_stop_nobody(template: Path, tmp_path: Path) -> None:
    def settings(folder: Path) -> ControlConfig:
        few = StrangerLimits(waiting=8, waiting_per_source=8, first_message_seconds=60)
        return settings_of(folder, strangers=few)

    async with running(template, tmp_path / "data", settings=settings) as appliance:
        channel = appliance.channel(appliance.control.api_port)
        login = channel.stream_unary("/appliance.api.auth.v1.AuthService/Login")
        held = [asyncio.create_task(error_of(login())) for _ in range(200)]
        pending = set(held)
        while len(pending) > 8:
            ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            assert {type(task.result()) for task in ended} == {Exhausted}
        # Nor anybody who logs in and says so at once, from the very same address.
        request = auth_service_pb2.LoginRequest(user="alice", password="wrong")
        assert type(await error_of(auth(appliance).Login(request))) is Unauthenticated
        answer = await auth(appliance).WhoAmI(
            auth_service_pb2.WhoAmIRequest(), metadata=bearer(appliance.session(ADMINISTRATOR))
        )
        assert answer.principal == "users/alice"
        for task in pending:
            task.cancel()


@pytest.mark.attack
async def test_log_ins_that_wait_leave_the_threads_of_known_callers_free(
    appliance: Appliance,
) -> None:
    """Every thread of strangers is taken; a known caller's work goes on."""
    go_on, begun = threading.Event(), threading.Semaphore(0)
    pool = appliance.control._pool

    def wait() -> None:
        begun.release()
        go_on.wait(20.0)

    def flood() -> None:
        set_current_caller(Caller())
        for _ in range(20):
            pool.submit(wait)

    try:
        contextvars.copy_context().run(flood)
        for _ in range(STRANGER_THREADS):
            assert await asyncio.to_thread(begun.acquire, timeout=5.0)
        answer = await auth(appliance).WhoAmI(
            auth_service_pb2.WhoAmIRequest(), metadata=bearer(appliance.session(ADMINISTRATOR))
        )
        assert answer.principal == "users/alice"
    finally:
        go_on.set()


@pytest.mark.attack
async def test_passwords_codes_and_tokens_are_in_no_record(appliance: Appliance) -> None:
    secret = "a canary in a password"
    await error_of(
        auth(appliance).Login(auth_service_pb2.LoginRequest(user="alice", password=secret))
    )
    await error_of(
        auth(appliance).Login(auth_service_pb2.LoginRequest(user=secret, password=secret))
    )
    token = appliance.session(ADMINISTRATOR)
    await error_of(
        auth(appliance).VerifyTotp(auth_service_pb2.VerifyTotpRequest(token=token, code="918273"))
    )
    text = (appliance.folder / "audit" / "000000000000.log").read_text()
    assert [part for part in (secret, "918273", token.split("_")[3]) if part in text] == []
    outcomes = [
        (record["principal"], record["outcome"])
        for record in appliance.records()
        if record["kind"] == "result"
    ]
    assert outcomes[1:] == [
        ("users/alice", "UNAUTHENTICATED"),
        ("", "UNAUTHENTICATED"),
        ("users/alice", "UNAUTHENTICATED"),
    ]


async def test_the_server_does_not_start_with_an_rpc_that_has_no_rule(
    appliance: Appliance,
) -> None:
    class Stranger(Servicer, health_pb2_grpc.HealthServicer):
        pass

    control = appliance.control
    with pytest.raises(RuleMissing) as refused:
        control._listener(
            "api",
            control._identities()[0],
            [Stranger(control._pool, control.base.events)],
        )
    assert "/grpc.health.v1.Health/Check: no rule" in refused.value.message


async def test_health_answers_without_an_identity_and_without_a_record(
    appliance: Appliance,
) -> None:
    before = len(appliance.records())
    health = appliance.api(health_pb2_grpc.HealthStub)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert len(appliance.records()) == before
