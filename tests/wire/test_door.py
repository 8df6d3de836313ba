"""The door: order, exactly one note for each call, errors mapped, nothing past it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from appliance.api.data.v1 import (
    dataset_pb2,
    dataset_service_pb2,
    dataset_service_pb2_grpc,
)
from appliance.api.jobs.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc
from appliance.core import log
from appliance.core.errors import ApplianceError, Denied, FailedPrecondition, Internal, NotFound
from appliance.wire import door as door_module
from appliance.wire.door import Call, Door
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import rules_of
from appliance.wire.server import Service
from appliance.wire.status import from_rpc_error
from tests.fakes.wire import connect, failure, serving

RULES = rules_of(
    [
        dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"],
        job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
    ]
)


class NotingDoor(Door[str]):
    """Lets all in but those who are told off, and notes everything."""

    def __init__(self, **settings: Any) -> None:
        self.own = dict(RULES)
        super().__init__(self.own, **settings)
        self.notes: list[tuple[str, ...]] = []
        self.refusal: ApplianceError | None = None
        self.revoked = asyncio.Event()
        self.leave_fails: Exception | None = None
        self.left = asyncio.Event()

    async def enter(self, call: Call) -> str:
        self.notes.append(("enter", call.rule.permission, call.resource))
        if self.refusal:
            raise self.refusal
        return "alice"

    async def recheck(self, call: Call, entered: str) -> None:
        if self.revoked.is_set():
            raise Denied(f"{entered} lost the right")

    async def leave(self, call: Call, entered: str | None, error: ApplianceError | None) -> None:
        outcome = error.reason if error else "OK"
        self.notes.append(("leave", call.rule.method.rsplit("/", 1)[1], entered or "?", outcome))
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
    """A running server with the noting door, and stubs to call it."""

    def __init__(self, **settings: Any) -> None:
        self.door = NotingDoor(**settings)
        self.datasets = Datasets(self.door)
        self.jobs = Jobs()

    async def __aenter__(self) -> Self:
        self._serving = serving(
            [self.door], services(self.datasets, self.jobs), RULES, require_client=False
        )
        running = await self._serving.__aenter__()
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
        answer = await house.get(x_request_id="req-7")
        assert answer.name == "projects/p/datasets/d"
        assert house.door.notes == [
            ("enter", "datasets.get", "projects/p/datasets/d"),
            ("serve", "req-7"),
            ("leave", "GetDataset", "alice", "OK"),
        ]


@pytest.mark.attack
@pytest.mark.parametrize("wrong", ["", "a b", "x" * 65, "a{}"])
async def test_a_request_id_from_outside_is_checked(wrong: str) -> None:
    async with House() as house:
        await house.get(x_request_id=wrong)
        (served,) = [note[1] for note in house.door.notes if note[0] == "serve"]
        assert len(served) == 32


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
        error = from_rpc_error(await failure(lambda: house.get(x_request_id="r-1")))
        assert (type(error), str(error)) == (NotFound, "no dataset d")
        assert error.metadata["request_id"] == "r-1"
        assert house.door.notes[-1] == ("leave", "GetDataset", "alice", "RESOURCE_NOT_FOUND")


@pytest.mark.attack
async def test_a_bug_says_nothing_but_its_request_id(caplog: pytest.LogCaptureFixture) -> None:
    async with House() as house:
        house.datasets.error = KeyError("the secret")
        with caplog.at_level(logging.ERROR, "appliance.wire.door"):
            error = from_rpc_error(await failure(lambda: house.get(x_request_id="r-2")))
        assert type(error) is Internal
        assert "secret" not in str(error)
        assert "r-2" in str(error)
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

        async def requests() -> AsyncIterator[bytes]:
            yield b""

        async def invoke() -> None:
            sent = requests() if kind.startswith("stream") else b""
            answer = call(sent, timeout=10)
            await (answer if kind == "unary_unary" else answer.read())

        error = await failure(invoke)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert house.door.notes == [("leave", "ServerReflectionInfo", "?", "UNKNOWN_METHOD")]


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
async def test_a_caller_that_never_says_what_its_stream_is_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door_module, "FIRST_MESSAGE_SECONDS", 0.05)
    async with House() as house:
        call = house.data.UploadDatasetVersion(timeout=10)
        error = from_rpc_error(await failure(lambda: call))
        assert str(error) == "the first message of the stream did not come in time"
        assert house.door.notes == [("leave", "UploadDatasetVersion", "?", "INVALID_INPUT")]


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
