"""The door: order, exactly one note for each call, errors mapped, nothing past it."""

import asyncio
import contextlib
import gc
import gzip
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Self

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry

from appliance.api.data.v1 import (
    dataset_pb2,
    dataset_service_pb2,
    dataset_service_pb2_grpc,
)
from appliance.api.jobs.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from appliance.core import log
from appliance.core.errors import (
    ApplianceError,
    Denied,
    Exhausted,
    FailedPrecondition,
    Internal,
    InvalidInput,
    NotFound,
    Unauthenticated,
)
from appliance.core.identity import Principal, PrincipalKind
from appliance.wire import door as door_module
from appliance.wire import tls
from appliance.wire.admission import CallerLimits, StrangerLimits
from appliance.wire.budgets import IDENTIFIED_AT_ONCE, Admission
from appliance.wire.door import UNKNOWN, Call, Door
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import rules_of
from appliance.wire.server import Service
from appliance.wire.status import from_rpc_error
from tests.fakes.http2 import Raw
from tests.fakes.wire import authority, connect, failure, serving

RULES = rules_of(
    [
        dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
        job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
    ]
)

ALICE = Principal(PrincipalKind.USER, "alice")
UNREADABLE = (
    "a message of GetDataset cannot be read: send it uncompressed, as the published protos "
    "describe it, with text in UTF-8"
)
NAME = "projects/p/datasets/d"
JOB = "projects/p/jobs/j"
GET = "/appliance.api.data.v1.DatasetService/GetDataset"
WATCH = "/appliance.api.jobs.v1.JobService/WatchJob"
UPLOAD = "/appliance.api.data.v1.DatasetService/UploadDatasetVersion"


class NotingDoor(Door[str]):
    """Lets all in but those who are told off, and notes everything."""

    def __init__(self, **settings: Any) -> None:
        self.own = dict(RULES)
        super().__init__(self.own, **settings)
        self.notes: list[tuple[str, ...]] = []
        self.callers_ids: list[str] = []
        self.at_once = self.most_at_once = 0
        self.identifying = asyncio.Event()
        self.identifying.set()
        self.stranger: ApplianceError | None = None
        self.refusal: ApplianceError | None = None
        self.revoked = asyncio.Event()
        self.leave_fails: Exception | None = None
        self.left = asyncio.Event()

    async def identify(self, call: Call) -> Principal:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.identifying.wait()
        self.at_once -= 1
        if self.stranger:
            raise self.stranger
        return ALICE

    async def enter(self, call: Call) -> str:
        self.notes.append(("enter", call.rule.permission, call.resource))
        self.callers_ids.append(call.caller_request_id)
        if self.refusal:
            raise self.refusal
        return "alice"

    async def recheck(self, call: Call, entered: str) -> None:
        if self.revoked.is_set():
            raise Denied(f"{entered} lost the right")

    async def leave(self, call: Call, entered: str | None, error: ApplianceError | None) -> None:
        outcome = error.reason if error else "OK"
        self.notes.append(("leave", call.rule.method.rsplit("/", 1)[-1], entered or "?", outcome))
        self.left.set()
        if self.leave_fails:
            raise self.leave_fails


class Datasets(dataset_service_pb2_grpc.DatasetServiceServicer):
    def __init__(self, door: NotingDoor) -> None:
        self.door = door
        self.error: BaseException | None = None
        self.received: list[str] = []

    async def GetDataset(
        self, request: dataset_service_pb2.GetDatasetRequest, context: grpc.aio.ServicerContext
    ) -> dataset_pb2.Dataset:
        self.door.notes.append(("serve", log.request_id.get()))
        if self.error:
            raise self.error
        if request.name == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return dataset_pb2.Dataset(name=request.name)

    async def UploadDatasetVersion(
        self,
        request_iterator: AsyncIterator[dataset_service_pb2.UploadDatasetVersionRequest],
        context: object,
    ) -> dataset_pb2.DatasetVersion:
        async for message in request_iterator:
            self.received.append(message.parent or "more")
        return dataset_pb2.DatasetVersion(name="done")


class Jobs(job_service_pb2_grpc.JobServiceServicer):
    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def WatchJob(
        self, request: job_service_pb2.WatchJobRequest, context: object
    ) -> AsyncIterator[job_pb2.Job]:
        try:
            yield job_pb2.Job(name=request.name)
            await asyncio.Event().wait()
        finally:
            self.ended.set()


def services(datasets: Datasets, jobs: Jobs) -> list[Service]:
    return [
        Service(datasets, dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server),
        Service(jobs, job_service_pb2_grpc.add_JobServiceServicer_to_server),
    ]


class House:
    """A running server with the noting door, and stubs to call it.

    `anonymous`: a method that needs no identity here.
    """

    def __init__(self, *, anonymous: str = "", **settings: Any) -> None:
        self.door = NotingDoor(**settings)
        if anonymous:
            self.door.own[anonymous] = replace(self.door.own[anonymous], anonymous=True)
        self.datasets = Datasets(self.door)
        self.jobs = Jobs()

    async def __aenter__(self) -> Self:
        self._serving = serving(
            [self.door], services(self.datasets, self.jobs), RULES, require_client=False
        )
        running = await self._serving.__aenter__()
        self.port = running.port
        self.channel = connect(running.port)
        self.data = dataset_service_pb2_grpc.DatasetServiceStub(self.channel)
        self.job = job_service_pb2_grpc.JobServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self._serving.__aexit__(None, None, None)

    async def get(self, name: str = "projects/p/datasets/d", **metadata: str) -> Any:
        pairs = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
        return await self.data.GetDataset(
            dataset_service_pb2.GetDatasetRequest(name=name), metadata=pairs, timeout=10
        )


async def test_order_of_a_call() -> None:
    async with House() as house:
        answer = await house.get()
        assert answer.name == NAME
        served = house.door.notes[1][1]
        assert re.fullmatch(r"[0-9a-f]{32}", served)
        assert house.door.notes == [
            ("enter", "datasets.get", NAME),
            ("serve", served),
            ("leave", "GetDataset", "alice", "OK"),
        ]


@pytest.mark.attack
@pytest.mark.parametrize(
    ("asked", "kept"),
    [("req-7", "req-7"), ("", ""), ("a b", ""), ("x" * 65, ""), ("a{}", "")],
)
async def test_a_caller_does_not_choose_the_request_id(asked: str, kept: str) -> None:
    async with House() as house:
        await house.get(x_request_id=asked)
        await house.get(x_request_id=asked)
        first, second = (note[1] for note in house.door.notes if note[0] == "serve")
        assert len({first, second, asked}) == 3
        assert house.door.callers_ids == [kept, kept]


async def test_a_refused_call_never_reaches_the_service() -> None:
    async with House() as house:
        house.door.refusal = Denied("alice may not")
        error = from_rpc_error(await failure(house.get))
        assert (type(error), str(error)) == (Denied, "alice may not")
        assert house.door.notes == [
            ("enter", "datasets.get", "projects/p/datasets/d"),
            ("leave", "GetDataset", "?", "PERMISSION_DENIED"),
        ]


async def test_an_error_of_ours_reaches_the_caller() -> None:
    async with House() as house:
        house.datasets.error = NotFound("no dataset d")
        failed = await failure(house.get)
        error = from_rpc_error(failed)
        assert (type(error), str(error)) == (NotFound, "no dataset d")
        served = house.door.notes[1][1]
        assert error.metadata["request_id"] == served
        assert dict(failed.trailing_metadata())["x-request-id"] == served
        assert house.door.notes[-1] == ("leave", "GetDataset", "alice", "RESOURCE_NOT_FOUND")


@pytest.mark.attack
async def test_a_bug_says_nothing_but_its_request_id(caplog: pytest.LogCaptureFixture) -> None:
    async with House() as house:
        house.datasets.error = KeyError("the secret")
        with caplog.at_level(logging.ERROR, "appliance.wire.door"):
            error = from_rpc_error(await failure(house.get))
        assert type(error) is Internal
        assert "secret" not in str(error)
        assert house.door.notes[1][1] in str(error)
        assert house.door.notes[-1] == ("leave", "GetDataset", "alice", "INTERNAL")
    assert "KeyError" in caplog.text


async def test_an_abort_by_the_service_is_noted() -> None:
    async with House() as house:
        error = await failure(lambda: house.get("abort"))
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "gone")
        async with asyncio.timeout(5):
            await house.door.left.wait()
        assert house.door.notes[-1] == ("leave", "GetDataset", "alice", "INTERNAL")


@pytest.mark.attack
async def test_when_the_outcome_cannot_be_noted_the_caller_hears_of_it() -> None:
    async with House() as house:
        house.door.leave_fails = FailedPrecondition("the audit disk is full")
        error = from_rpc_error(await failure(house.get))
        assert str(error) == "the audit disk is full"


@pytest.mark.attack
@pytest.mark.parametrize("method", ["/x/y", "/appliance.api.data.v1.DatasetService/GetDataset"])
async def test_a_bug_of_the_door_itself_says_nothing(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with House() as house:
        house.door.leave_fails = KeyError("the secret")
        with caplog.at_level(logging.ERROR, "appliance.wire.door"):
            call = house.channel.unary_unary(method)
            error = from_rpc_error(await failure(lambda: call(b"", timeout=10)))
    assert type(error) is Internal
    assert "secret" not in str(error) + str(error.metadata)
    assert "KeyError" in caplog.text


@pytest.mark.attack
async def test_a_method_without_a_rule_is_closed() -> None:
    async with House() as house:
        del house.door.own["/appliance.api.data.v1.DatasetService/GetDataset"]
        error = from_rpc_error(await failure(house.get))
        assert type(error) is Denied
        assert house.door.notes == [("leave", "GetDataset", "?", "PERMISSION_DENIED")]


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_stream"])
async def test_an_unknown_method_is_noted(kind: str) -> None:
    async with House() as house:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        call = getattr(house.channel, kind)(method)

        async def invoke() -> None:
            # Of a stream no message: one that cannot be sent any more hides the status.
            answer = call(*(() if kind.startswith("stream") else (b"",)), timeout=10)
            await (answer if kind == "unary_unary" else answer.read())

        error = await failure(invoke)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert house.door.notes == [("leave", UNKNOWN, "?", "UNKNOWN_METHOD")]


async def test_the_resource_of_a_stream_is_in_its_first_message() -> None:
    async with House() as house:

        async def requests() -> AsyncIterator[dataset_service_pb2.UploadDatasetVersionRequest]:
            yield dataset_service_pb2.UploadDatasetVersionRequest(parent="projects/p/datasets/d")
            yield dataset_service_pb2.UploadDatasetVersionRequest()

        answer = await house.data.UploadDatasetVersion(requests(), timeout=10)
        assert answer.name == "done"
        assert house.datasets.received == ["projects/p/datasets/d", "more"]
        assert house.door.notes[0] == ("enter", "datasets.upload", "projects/p/datasets/d")


async def test_a_stream_without_a_message_has_no_resource() -> None:
    async with House() as house:

        async def nothing() -> AsyncIterator[dataset_service_pb2.UploadDatasetVersionRequest]:
            return
            yield

        await house.data.UploadDatasetVersion(nothing(), timeout=10)
        assert house.datasets.received == []
        assert house.door.notes[0] == ("enter", "datasets.upload", "")


@pytest.mark.attack
@pytest.mark.parametrize("method", [GET, UPLOAD])
async def test_a_call_that_is_held_ends_whatever_it_is(method: str) -> None:
    admission = Admission(StrangerLimits(first_message_seconds=0.05))
    async with House(admission=admission) as house:
        call = house.channel.stream_unary(method)(timeout=10)
        error = from_rpc_error(await failure(lambda: call))
        name = method.rpartition("/")[2]
        assert str(error) == f"the first message of {name} did not come within 1 second"
        assert house.door.notes == [("leave", name, "?", "INVALID_INPUT")]


async def test_a_call_without_its_message_is_refused() -> None:
    async with House() as house:
        call = house.channel.stream_unary(GET)(timeout=10)
        await call.done_writing()
        error = from_rpc_error(await failure(lambda: call))
        assert (type(error), str(error)) == (
            InvalidInput,
            "GetDataset came without its message: send it",
        )


@pytest.mark.attack
@pytest.mark.parametrize(
    "wrong",
    [
        b"\xff",  # no field ends here
        b"\x0a\x7f",  # longer than what follows
        b"\x0a\x03\xed\xa0\x80",  # a lone surrogate
        b"\x0a\x01\xff",  # no UTF-8
        gzip.compress(b"\x0a\x01d"),
    ],
)
async def test_a_message_that_cannot_be_read_is_refused_by_the_door(
    wrong: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with House() as house:
        error = from_rpc_error(
            await failure(lambda: house.channel.unary_unary(GET)(wrong, timeout=10))
        )
        assert (type(error), str(error)) == (
            InvalidInput,
            UNREADABLE,
        )
        assert house.door.notes == [("leave", "GetDataset", "?", "INVALID_INPUT")]
    assert caplog.text == ""


@pytest.mark.attack
async def test_a_later_message_that_cannot_be_read_ends_the_stream() -> None:
    async with House() as house:

        async def requests() -> AsyncIterator[bytes]:
            yield dataset_service_pb2.UploadDatasetVersionRequest(parent=NAME).SerializeToString()
            yield b"\xff"

        call = house.channel.stream_unary(UPLOAD)(requests(), timeout=10)
        error = from_rpc_error(await failure(lambda: call))
        assert type(error) is InvalidInput
        assert house.door.notes[-1] == ("leave", "UploadDatasetVersion", "alice", "INVALID_INPUT")


def unbounded(port: int, **options: int) -> grpc.aio.Channel:
    """A channel of a client that keeps to no limits."""
    known = {**dict(tls.CHANNEL_OPTIONS), "grpc.max_send_message_length": -1, **options}
    name = ("grpc.ssl_target_name_override", PrincipalKind.CONTROL.server_name)
    credentials = grpc.ssl_channel_credentials(authority().certificate_pem)
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=[*known.items(), name])


@pytest.mark.attack
@pytest.mark.parametrize("size", [10_000, 50 << 20])
async def test_a_compressed_message_is_not_inflated(size: int) -> None:
    gzipped = {"grpc.default_compression_algorithm": 2}
    async with House() as house, unbounded(house.port, **gzipped) as channel:
        error = await failure(lambda: channel.unary_unary(GET)(bytes(size), timeout=20))
        assert "send it uncompressed" in str(error.details())
        assert house.door.notes == [("leave", "GetDataset", "?", "INVALID_INPUT")]


@pytest.mark.attack
async def test_an_oversize_message_is_refused_and_leaves_no_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with House() as house, unbounded(house.port) as channel:
        message = bytes(4 * (1 << 20) + 1)
        error = await failure(lambda: channel.unary_unary(GET)(message, timeout=10))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with asyncio.timeout(5):
            await house.door.left.wait()
        assert len(house.door.notes) == 1
        assert (await house.get()).name == NAME
    assert caplog.text == ""


@pytest.mark.attack
async def test_calls_that_are_held_stop_neither_the_same_source_nor_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """500 calls say nothing; a caller with an identity comes in beside them."""
    admission = Admission(StrangerLimits(waiting_per_source=8, first_message_seconds=60))
    async with House(admission=admission, anonymous=GET) as house:
        before = len(asyncio.all_tasks())
        pending = {
            asyncio.create_task(ended(house.channel.stream_unary(GET)())) for _ in range(500)
        }
        refused: list[ApplianceError] = []
        while len(pending) > 8:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            refused += [task.result() for task in done]
        # Who waits longest goes for who comes; some streams are refused by HTTP/2 itself.
        told = [error.retry_after for error in refused if type(error) is Exhausted]
        assert len(told) > 400
        assert set(told) == {1.0}
        # The same source: a call that needs an identity does not ask for those places.
        job = house.job.WatchJob(job_service_pb2.WatchJobRequest(name="projects/p/jobs/j"))
        assert (await job.read()).name == "projects/p/jobs/j"
        job.cancel()
        # Another source has its own share.
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(door_module, "source_of", lambda _: "10.0.0.2")
            assert (await house.get()).name == NAME
        for task in pending:
            task.cancel()
        await asyncio.wait(pending)
        async with asyncio.timeout(5):
            await until(lambda: len(admission.anonymous) == 0)
            await until(lambda: len(asyncio.all_tasks()) <= before)


async def until(true: Callable[[], bool]) -> None:
    """Let everything else run until something is true."""
    while not true():  # noqa: ASYNC110 - gRPC says nothing when it has forgotten a call
        await asyncio.sleep(0)


async def ended(call: Any) -> ApplianceError:
    """The error a call ends with; cancelling this cancels the call."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call went well")


@pytest.mark.attack
async def test_a_source_that_floods_with_credentials_waits_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two at a time: others are identified beside it, and of its own calls none is refused."""
    async with House() as house:
        house.door.identifying = asyncio.Event()
        flood = [asyncio.create_task(house.get()) for _ in range(60)]
        async with asyncio.timeout(5):
            await until(lambda: house.door.most_at_once == IDENTIFIED_AT_ONCE)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(door_module, "source_of", lambda _: "10.0.0.2")
            mine = asyncio.create_task(house.get())
            async with asyncio.timeout(5):
                await until(lambda: house.door.most_at_once == IDENTIFIED_AT_ONCE + 1)
        house.door.identifying.set()
        assert (await mine).name == NAME
        assert len(await asyncio.gather(*flood)) == 60
        assert house.door._admission.identifying._gates == {}


@pytest.mark.attack
async def test_who_needs_an_identity_and_has_none_holds_nothing() -> None:
    """The call is refused before a message of it is read."""
    async with House() as house:
        house.door.stranger = Unauthenticated("log in first")
        for _ in range(200):
            error = from_rpc_error(await failure(house.channel.stream_unary(GET)))
            assert str(error) == "log in first"
        assert house.door.notes == [("leave", "GetDataset", "?", "UNAUTHENTICATED")] * 200


@pytest.mark.attack
async def test_one_known_caller_holds_its_seats_and_no_more() -> None:
    admission = Admission(callers=CallerLimits(calls=3))
    async with House(admission=admission) as house:
        request = job_service_pb2.WatchJobRequest(name="projects/p/jobs/j")
        watches = [house.job.WatchJob(request) for _ in range(3)]
        for watch in watches:
            await watch.read()
        error = from_rpc_error(await failure(lambda: house.job.WatchJob(request).read()))
        assert str(error) == (
            "you have as many watch calls in work as one caller may: wait 1 second, then repeat"
        )
        # Of another kind it may make more.
        assert (await house.get()).name == NAME
        for watch in watches:
            watch.cancel()


@pytest.mark.attack
async def test_reads_over_the_budget_are_refused() -> None:
    admission = Admission(callers=CallerLimits(reads_per_second=0.1, read_burst=2))
    async with House(admission=admission) as house:
        await house.get()
        await house.get()
        error = from_rpc_error(await failure(house.get))
        assert type(error) is Exhausted
        assert str(error).startswith("you make more read calls than one caller may: wait ")
        assert error.retry_after is not None
        assert 9 < error.retry_after <= 10


@pytest.mark.attack
async def test_a_right_taken_away_ends_an_open_stream() -> None:
    async with House(recheck_seconds=0.05) as house:
        stream = house.job.WatchJob(job_service_pb2.WatchJobRequest(name="projects/p/jobs/j"))
        assert (await stream.read()).name == "projects/p/jobs/j"
        house.door.revoked.set()
        error = from_rpc_error(await failure(stream.read))
        assert str(error) == "alice lost the right"
        assert house.jobs.ended.is_set()
        assert house.door.notes[-1] == ("leave", "WatchJob", "alice", "PERMISSION_DENIED")


async def test_a_caller_who_leaves_ends_the_work_at_once() -> None:
    async with House() as house:
        stream = house.job.WatchJob(job_service_pb2.WatchJobRequest(name="projects/p/jobs/j"))
        await stream.read()
        stream.cancel()
        async with asyncio.timeout(5):
            await house.jobs.ended.wait()
            await house.door.left.wait()
        assert house.door.notes[-1] == ("leave", "WatchJob", "alice", "CANCELLED")


async def test_metrics_count_known_methods_only() -> None:
    registry = CollectorRegistry()
    async with House(metrics=CallMetrics(registry)) as house:
        await house.get()
        house.datasets.error = NotFound("no")
        await failure(house.get)
        await failure(lambda: house.channel.unary_unary("/x/" + "y" * 500)(b"", timeout=10))
    method = "/appliance.api.data.v1.DatasetService/GetDataset"

    def count(method: str, code: str, reason: str) -> float | None:
        labels = {"method": method, "code": code, "reason": reason}
        return registry.get_sample_value("appliance_rpc_total", labels)

    assert count(method, "OK", "") == 1
    assert count(method, "NOT_FOUND", "RESOURCE_NOT_FOUND") == 1
    assert count("unknown", "UNIMPLEMENTED", "UNKNOWN_METHOD") == 1
    assert registry.get_sample_value("appliance_rpc_active", {"method": method}) == 0
    assert registry.get_sample_value("appliance_rpc_seconds_count", {"method": method}) == 2


@pytest.mark.attack
async def test_nothing_asks_grpc_about_a_call_once_it_is_read() -> None:
    """A context of a call that has ended, asked by a thread, ended the process."""

    class Context:
        asked = 0

        def invocation_metadata(self) -> list[tuple[str, str]]:
            return []

        def peer(self) -> str:
            self.asked += 1
            return "ipv6:%5Bfd00::7%5D:5312"

        def auth_context(self) -> dict[str, list[bytes]]:
            self.asked += 1
            return {"x509_pem_cert": [b"PEM"]}

    context = Context()
    call = door_module._call(next(iter(RULES.values())), context)  # type: ignore[arg-type]
    asked = context.asked
    seen = await asyncio.to_thread(lambda: (call.peer, call.source, call.certificate))
    assert seen == ("ipv6:[fd00::7]:5312", "fd00::/64", b"PEM")
    assert context.asked == asked


@pytest.mark.attack
@pytest.mark.parametrize("method", [GET, WATCH, "/x/y", "/grpc.health.v1.Health/Check"])
@pytest.mark.parametrize(
    "message",
    [b"", b"\xff" * 16, health_pb2.HealthCheckRequest(service="none").SerializeToString()],
    ids=["empty", "unreadable", "unknown service"],
)
async def test_a_call_goes_without_a_search_for_circles(method: str, message: bytes) -> None:
    """Searches of all memory stopped everything for 200 ms at a time under a flood."""

    def kept() -> int:
        return sum(type(found).__name__ == "RPCState" for found in gc.get_objects())

    async def ask(house: House) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in house.channel.unary_stream(method)(message, timeout=10):
                pass

    async with House(recheck_seconds=0.01) as house:
        house.door.revoked.set()  # A stream ends at once.
        await ask(house)
        gc.collect()
        before = kept()
        gc.disable()
        try:
            for _ in range(20):
                await ask(house)
            await asyncio.sleep(0.1)
            # One or another that gRPC waits for calls with.
            assert kept() - before <= 3
        finally:
            gc.enable()


@pytest.mark.attack
async def test_a_refused_call_ends_though_its_caller_takes_no_bytes() -> None:
    """A window of nothing lets no message through; a status alone needs none."""
    async with House() as house, Raw.connect(house.port, window=0) as raw:
        house.door.stranger = Unauthenticated("who are you")
        raw.request(GET, stream=1)
        async with asyncio.timeout(5):
            await raw.end_of(1)


@pytest.mark.attack
async def test_why_a_stream_was_ended_is_noted_though_its_caller_leaves_meanwhile() -> None:
    async with House(recheck_seconds=0.05) as house, Raw.connect(house.port, window=0) as raw:
        judged = asyncio.Event()

        async def recheck(call: Call, entered: str) -> None:
            judged.set()
            raise Denied(f"{entered} lost the right")

        house.door.recheck = recheck  # type: ignore[method-assign]
        raw.request(WATCH, 1)
        raw.message(1, job_service_pb2.WatchJobRequest(name=JOB).SerializeToString())
        async with asyncio.timeout(5):
            await judged.wait()
            raw.reset(1)
            await house.door.left.wait()
        assert house.door.notes[-1] == ("leave", "WatchJob", "alice", "PERMISSION_DENIED")
