"""The same over real sockets: certificates, the gate, streams that end too early."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import pytest

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from appliance.api.data.v1 import dataset_service_pb2 as data
from appliance.api.data.v1.dataset_service_pb2_grpc import DatasetServiceStub
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.api.jobs.v1.job_service_pb2_grpc import JobServiceStub
from appliance.api.nodes.v1 import node_pb2
from appliance.api.serving.v1 import routing_service_pb2
from appliance.api.serving.v1.routing_service_pb2_grpc import RoutingServiceStub
from appliance.control.services.fleet.connected_agents import AgentSession
from appliance.control.store import tables
from appliance.control.store.objects import ObjectStore
from appliance.core.errors import LeaseLost, NotFound, Unavailable
from appliance.core.thinning import MAX_POINTS
from appliance.wire.routing import FORM
from tests.fakes.appliance import Appliance, Machine, bearer, error_of

HELLO = agent.Hello(
    devices=2, device_kind="cpu", memory_bytes=8 << 30, address="127.0.0.1", agent_version="1"
)


def developer(appliance: Appliance) -> tuple[tuple[str, str], ...]:
    appliance.project("demo")
    appliance.user("dora", ("developer", "demo"))
    return bearer(appliance.session("dora"))


async def upload(
    appliance: Appliance, metadata: tuple[tuple[str, str], ...], count: int
) -> AsyncIterator[data.UploadDatasetVersionRequest]:
    yield data.UploadDatasetVersionRequest(parent="projects/demo/datasets/raw")
    for number in range(count):
        yield data.UploadDatasetVersionRequest(documents=[data.Document(id=str(number), text="x")])


async def test_an_upload_over_the_wire_and_one_whose_sender_leaves(appliance: Appliance) -> None:
    metadata = developer(appliance)
    stub = appliance.api(DatasetServiceStub)
    create = data.CreateDatasetRequest(parent="projects/demo", dataset_id="raw")
    await stub.CreateDataset(create, metadata=metadata)
    version = await stub.UploadDatasetVersion(upload(appliance, metadata, 5), metadata=metadata)
    assert version.documents == 5

    never = asyncio.Event()
    sent = asyncio.Event()

    async def endless() -> AsyncIterator[data.UploadDatasetVersionRequest]:
        async for message in upload(appliance, metadata, 3):
            yield message
        sent.set()
        await never.wait()

    call = stub.UploadDatasetVersion(endless(), metadata=metadata)
    await sent.wait()
    await until(lambda: len(_pending(appliance)) == 1)
    call.cancel()
    await until(lambda: not _pending(appliance))
    listed = await stub.ListDatasetVersions(
        data.ListDatasetVersionsRequest(parent="projects/demo/datasets/raw"), metadata=metadata
    )
    assert [found.name for found in listed.versions] == [version.name]
    never.set()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task does, ten seconds at most."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def _pending(appliance: Appliance) -> list[object]:
    with appliance.database.read() as state:
        version = tables.artifact_version
        return state.all(version.select().where(version.c.state == "pending"))


class Stream:
    """An agent's stream over mTLS."""

    def __init__(self, appliance: Appliance, node: str, machine: Machine | None = None) -> None:
        self.machine = machine or appliance.node(node)
        self.stub = appliance.machines(AgentServiceStub, self.machine)
        self.call = self.stub.Connect()

    async def say(self, **report: object) -> None:
        await self.call.write(agent.ConnectRequest(**report))

    async def hear(self, kind: str) -> object:
        while (order := await self.call.read()) is not grpc.aio.EOF:
            if order.WhichOneof("order") == kind:
                return getattr(order, kind)
        raise AssertionError(f"the stream ended without {kind}")


async def submitted(appliance: Appliance, metadata: tuple[tuple[str, str], ...]) -> str:
    """A prepare job, queued; the name of the text that it reads."""
    datasets = appliance.api(DatasetServiceStub)
    create = data.CreateDatasetRequest(parent="projects/demo", dataset_id="raw")
    await datasets.CreateDataset(create, metadata=metadata)
    raw = await datasets.UploadDatasetVersion(upload(appliance, metadata, 2), metadata=metadata)
    jobs = appliance.api(JobServiceStub)
    spec = job_pb2.PrepareSpec(
        datasets=[raw.name],
        output_dataset="projects/demo/datasets/clean",
        output_tokenizer="projects/demo/tokenizers/words",
    )
    await jobs.CreateJob(
        job_service_pb2.CreateJobRequest(
            parent="projects/demo", job_id="p1", job=job_pb2.Job(prepare=spec)
        ),
        metadata=metadata,
    )
    return str(raw.name)


async def test_calls_for_keys_that_hang_are_one_and_hold_nobody_up(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = developer(appliance)
    stream = Stream(appliance, "n1")
    await stream.say(hello=HELLO)
    await stream.hear("leases")
    await submitted(appliance, metadata)
    appliance.control.work.scheduler.run_pass()
    order = await stream.hear("start_job")
    hung, asked = threading.Event(), []
    there = appliance.control.work.store.check_mounted

    def hangs(_: object) -> None:
        asked.append(1)
        hung.wait(60)
        there()

    monkeypatch.setattr(ObjectStore, "check_mounted", hangs)
    request = agent.ReleaseKeysRequest(work=order.work)
    for _ in range(20):
        error = await error_of(stream.stub.ReleaseKeys(request, timeout=0.1))
        assert isinstance(error, Unavailable)
    # Each repeat has joined the first; the calls that nobody waits for are over.
    assert len(asked) == 1
    await stream.say(heartbeat=agent.AgentHeartbeat(sequence=5))
    assert (await stream.hear("leases")).sequence == 5
    waiting = asyncio.ensure_future(stream.stub.ReleaseKeys(request))
    await asyncio.sleep(0.1)
    hung.set()
    assert [key.kind for key in (await waiting).inputs] == ["dataset"]
    assert len(asked) == 1
    await stream.stub.ReleaseKeys(request)
    assert len(asked) == 2


async def test_a_job_over_the_stream_of_an_agent_of_0_1_0(appliance: Appliance) -> None:
    metadata = developer(appliance)
    stream = Stream(appliance, "n1")
    await stream.say(hello=HELLO)
    assert (await stream.hear("leases")).seconds == 300.0
    raw = await submitted(appliance, metadata)
    jobs = appliance.api(JobServiceStub)
    watch = jobs.WatchJob(
        job_service_pb2.WatchJobRequest(name="projects/demo/jobs/p1"), metadata=metadata
    )
    assert (await watch.read()).state == job_pb2.Job.STATE_QUEUED
    appliance.control.work.scheduler.run_pass()
    order = await stream.hear("start_job")
    keys = await stream.stub.ReleaseKeys(agent.ReleaseKeysRequest(work=order.work))
    assert [key.name for key in keys.inputs] == [raw]
    await stream.say(heartbeat=agent.AgentHeartbeat(running=[order.work], sequence=4))
    assert (await stream.hear("leases")).sequence == 4
    await stream.say(
        job_ended=agent.JobEnded(work=order.work, reason="INVALID_INPUT", message="too little text")
    )
    last = await watch.read()
    while (job := await watch.read()) is not grpc.aio.EOF:
        last = job
    assert (last.state, last.state_reason) == (job_pb2.Job.STATE_FAILED, "too little text")
    error = await error_of(stream.stub.ReleaseKeys(agent.ReleaseKeysRequest(work=order.work)))
    assert isinstance(error, LeaseLost)
    await stream.call.done_writing()
    while await stream.call.read() is not grpc.aio.EOF:
        pass
    assert await stream.call.code() == grpc.StatusCode.OK


async def test_heartbeats_wait_for_no_report(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = developer(appliance)
    stream = Stream(appliance, "n1")
    early = stream.stub.Report()
    await early.write(agent.ReportRequest(number=1, job_ended=agent.JobEnded()))
    error = await error_of(early)
    assert isinstance(error, Unavailable)
    assert "says hello first" in str(error)
    await stream.say(hello=HELLO)
    await stream.hear("leases")
    await submitted(appliance, metadata)
    appliance.control.work.scheduler.run_pass()
    order = await stream.hear("start_job")
    hung, waiting = threading.Event(), []
    reports = appliance.control.work.reports
    there = reports.progress

    def hangs(node: str, said: Sequence[agent.JobProgress]) -> Any:
        waiting.append(1)
        hung.wait(60)
        return there(node, said)

    monkeypatch.setattr(reports, "progress", hangs)
    progress = job_pb2.Progress(step=3, total=20)
    call = stream.stub.Report()
    for number in range(1, 30):
        report = agent.JobProgress(work=order.work, progress=progress)
        await call.write(agent.ReportRequest(number=number, job_progress=report))
    for sequence in range(1, 20):
        beat = agent.AgentHeartbeat(running=[order.work], sequence=sequence)
        await stream.say(heartbeat=beat)
        assert (await stream.hear("leases")).sequence == sequence
    # However many streams a node has: it holds one thread of those for reports.
    others = [stream.stub.Report() for _ in range(12)]
    for other in others:
        report = agent.JobProgress(work=order.work, progress=progress)
        await other.write(agent.ReportRequest(number=1, job_progress=report))
    ended = agent.JobEnded(work=order.work, reason="INVALID_INPUT", message="too little text")
    await call.write(agent.ReportRequest(number=30, job_ended=ended))
    await asyncio.sleep(0.5)
    assert waiting == [1]
    hung.set()
    while (await call.read()).number != 30:
        pass
    jobs = appliance.api(JobServiceStub)
    get = job_service_pb2.GetJobRequest(name="projects/demo/jobs/p1")
    found = await jobs.GetJob(get, metadata=metadata)
    assert (found.state, found.progress.step) == (job_pb2.Job.STATE_FAILED, 3)


@pytest.mark.attack
@pytest.mark.parametrize("old", [False, True])
async def test_ten_thousand_steps_are_few_transactions_and_heartbeats_go_on(
    appliance: Appliance, *, old: bool
) -> None:
    """A node was away, has a report of each step, and says them as fast as it can."""
    metadata = developer(appliance)
    stream = Stream(appliance, "n1")
    await stream.say(hello=HELLO)
    await stream.hear("leases")
    await submitted(appliance, metadata)
    appliance.control.work.scheduler.run_pass()
    order = await stream.hear("start_job")
    call = stream.call if old else stream.stub.Report()
    request = agent.ConnectRequest if old else agent.ReportRequest
    before, began = appliance.database.generation, time.monotonic()

    async def backlog() -> None:
        for step in range(1, 10_001):
            progress = job_pb2.Progress(step=step, total=10_000, metrics={"loss": 1.0})
            report = agent.JobProgress(work=order.work, progress=progress)
            await call.write(request(job_progress=report))

    saying = asyncio.create_task(backlog())
    sequence = 0
    while _progress(appliance) < 10_000:
        if not (old and not saying.done()):
            sequence += 1
            beat = agent.AgentHeartbeat(running=[order.work], sequence=sequence)
            await stream.say(heartbeat=beat)
            assert (await stream.hear("leases")).sequence == sequence
        await asyncio.sleep(0.05)
    await saying
    # One for each second that it took, and the scheduler's own.
    assert appliance.database.generation - before <= 2 * (time.monotonic() - began) + 2
    with appliance.database.read() as state:
        steps = [row.step for row in state.all(tables.job_metric.select())]
    assert len(steps) <= MAX_POINTS + 1
    assert {1, 10_000} <= set(steps)


def _progress(appliance: Appliance) -> int:
    with appliance.database.read() as state:
        found = state.value(tables.job.select().with_only_columns(tables.job.c.progress))
    return int(found.get("step", 0))


async def test_a_node_is_lost_when_its_stream_ends_and_ready_when_it_is_back(
    appliance: Appliance,
) -> None:
    stream = Stream(appliance, "n1")
    await stream.say(hello=HELLO)
    await stream.hear("leases")
    assert _state(appliance) == "READY"
    stream.call.cancel()
    await until(lambda: _state(appliance) == "LOST")
    again = Stream(appliance, "n1", stream.machine)
    await again.say(hello=HELLO)
    await again.hear("leases")
    assert _state(appliance) == "READY"


async def test_the_end_of_a_stream_that_is_heard_late_makes_no_node_lost(
    appliance: Appliance,
) -> None:
    """A node connects anew, and the end of the stream before waits for the write lock meanwhile."""
    agents, begun, go = appliance.control.work.agents, threading.Event(), threading.Event()
    leave = agents._fleet.leave

    def late(session: AgentSession) -> bool:
        left = leave(session)
        begun.set()
        assert go.wait(10)
        return left

    stream = Stream(appliance, "n1")
    await stream.say(hello=HELLO)
    await stream.hear("leases")
    agents._fleet.leave = late  # type: ignore[method-assign]
    stream.call.cancel()
    await until(begun.is_set)
    again = Stream(appliance, "n1", stream.machine)
    await again.say(hello=HELLO)
    await again.hear("leases")
    go.set()
    await asyncio.sleep(0.3)
    assert _state(appliance) == "READY"


def _state(appliance: Appliance) -> str:
    with appliance.database.read() as state:
        return str(state.value(tables.node.select().with_only_columns(tables.node.c.state)))


def _able_to(*said: node_pb2.Capability) -> agent.Hello:
    hello = agent.Hello(capabilities=said)
    hello.MergeFrom(HELLO)
    return hello


@pytest.mark.parametrize(
    "first",
    [
        agent.ConnectRequest(),
        agent.ConnectRequest(heartbeat=agent.AgentHeartbeat()),
        agent.ConnectRequest(hello=agent.Hello()),
        agent.ConnectRequest(
            hello=agent.Hello(devices=1, device_kind="cpu", memory_bytes=1, address="a b")
        ),
        *(
            agent.ConnectRequest(hello=_able_to(*said))
            for said in (
                [node_pb2.Capability(kind="train", reason="\x1b[2J")],
                [node_pb2.Capability(kind="train", reason="x" * 501)],
                [node_pb2.Capability(kind="Train jobs", available=True)],
                [node_pb2.Capability(kind=f"k{number}") for number in range(65)],
            )
        ),
    ],
)
async def test_a_stream_that_does_not_begin_with_a_sensible_hello_ends(
    appliance: Appliance, first: agent.ConnectRequest
) -> None:
    stream = Stream(appliance, "n1")
    await stream.call.write(first)
    assert await stream.call.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_gateway_hears_the_view_and_then_that_it_still_holds(appliance: Appliance) -> None:
    stub = appliance.machines(RoutingServiceStub, appliance.gateway())
    call = stub.WatchRouting(routing_service_pb2.WatchRoutingRequest(form=FORM))
    first = await call.read()
    second = await call.read()
    assert (first.unchanged, second.unchanged) == (False, True)
    assert second.version == first.version
    call.cancel()
    missing = routing_service_pb2.GetServedTokenizerRequest(endpoint="projects/p/endpoints/e")
    assert isinstance(await error_of(stub.GetServedTokenizer(missing)), NotFound)


async def test_a_gateway_of_0_1_0_is_told_that_it_cannot_read_the_view(
    appliance: Appliance,
) -> None:
    stub = appliance.machines(RoutingServiceStub, appliance.gateway())
    call = stub.WatchRouting(routing_service_pb2.WatchRoutingRequest())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "this gateway is older than the control plane" in refused.value.details()
