"""Who waits while the object store hangs?

A real control plane, whose every call below `objects/` waits while a file is there (`hang.c`), is
given more work for that store than it has threads for: keys of work, uploads, outputs to register.
Meanwhile a person lists and logs in, and a node sends heartbeats. The same is measured without the
hang, in turn.

The bars: lists and heartbeats stay below `MAX_MILLISECONDS` at the 99th percentile, and log-ins
within `MAX_TIMES` of their own without the hang, in the median round.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from appliance.api.access.v1 import user_service_pb2 as users
from appliance.api.access.v1 import user_service_pb2_grpc as users_grpc
from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.agent.v1 import agent_service_pb2_grpc as agent_grpc
from appliance.api.agent.v1 import enrolment_service_pb2 as enrolment
from appliance.api.agent.v1 import enrolment_service_pb2_grpc as enrolment_grpc
from appliance.api.auth.v1 import auth_service_pb2 as auth
from appliance.api.auth.v1 import auth_service_pb2_grpc as auth_grpc
from appliance.api.data.v1 import dataset_service_pb2 as datasets
from appliance.api.data.v1 import dataset_service_pb2_grpc as datasets_grpc
from appliance.api.jobs.v1 import job_pb2
from appliance.api.jobs.v1 import job_service_pb2 as jobs
from appliance.api.jobs.v1 import job_service_pb2_grpc as jobs_grpc
from appliance.api.nodes.v1 import node_service_pb2 as nodes
from appliance.api.nodes.v1 import node_service_pb2_grpc as nodes_grpc
from appliance.core.identity import PrincipalKind
from appliance.crypto.certs import make_csr, new_private_key
from appliance.wire.tls import channel
from bench.flood.stage import PROJECT, Stage, stage
from bench.measure import AT_MOST, Bar, Outcome, run

NAME = "hung_store"
MAX_MILLISECONDS = 100.0
MAX_TIMES = 1.2
ROUNDS = 5
MAX_SECONDS = 60.0
LISTS = 100
BEATS = 100
LOG_INS = 25
LOG_INS_EACH = 5
"""So often somebody may log in without the second step before it is slowed down."""
JOBS = 6
"""Jobs whose outputs are to be registered while the store hangs: more than there are threads."""
KEYS = 24
"""Calls for keys at a time: more than there are threads for calls that need the store."""
PARENT = f"projects/{PROJECT}"
DATASET = f"{PARENT}/datasets/text"
SETTINGS = "[limits]\nanonymous_per_second = 100.0\nanonymous_burst = 1000\n"
"""Log-ins are timed one after the other, from one address."""
CONTROL = PrincipalKind.CONTROL.server_name


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """Latencies with and without the hang, in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "hang.so"
        source = Path(__file__).with_name("hang.c")
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True
        )
        flag = folder / "hangs"
        surroundings = {
            "LD_PRELOAD": str(library),
            "HANG_FLAG": str(flag),
            "HANG_BELOW": str(folder / "data" / "objects"),
        }
        with stage(folder, surroundings, SETTINGS) as running:
            rows = asyncio.run(_rounds(running, flag))
    return _judged(rows)


def _judged(rows: Sequence[dict[str, float]]) -> Outcome:
    print(f"\n{NAME} (99th percentiles, milliseconds)")
    names = list(rows[0])
    print("  " + "".join(f"{name:>18}" for name in names))
    for row in rows:
        print("  " + "".join(f"{row[name]:>18.1f}" for name in names), flush=True)
    ratio = statistics.median(row["log_in_hung"] / row["log_in_quiet"] for row in rows)
    bars = [
        Bar(f"{what}, 99th percentile while it hangs", value, "ms", AT_MOST, limit, len(rows))
        for what, value, limit in (
            ("lists", statistics.median(row["list_hung"] for row in rows), MAX_MILLISECONDS),
            ("heartbeats", statistics.median(row["beat_hung"] for row in rows), MAX_MILLISECONDS),
        )
    ]
    bars.append(Bar("log-ins, while it hangs / not", ratio, "times", AT_MOST, MAX_TIMES, len(rows)))
    return Outcome(bars, {"rounds": list(rows)})


@dataclass
class Person:
    """Alice, who is logged in."""

    channel: grpc.aio.Channel
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    password: str = field(repr=False)
    log_ins: Iterator[int] = field(default_factory=itertools.count, repr=False)

    async def invite(self, count: int) -> None:
        """Make so many people, who have the same password."""
        stub = users_grpc.UserServiceStub(self.channel)
        for number in range(count):
            request = users.CreateUserRequest(
                user_id=f"user-{number}", password=self.password, request_id=_id()
            )
            await stub.CreateUser(request, metadata=self.metadata)

    async def list(self) -> None:
        """One list."""
        stub = jobs_grpc.JobServiceStub(self.channel)
        await stub.ListJobs(jobs.ListJobsRequest(parent=PARENT), metadata=self.metadata)

    async def registering(self) -> int:
        """Jobs that are to be registered."""
        stub = jobs_grpc.JobServiceStub(self.channel)
        request = jobs.ListJobsRequest(parent=PARENT, page_size=1000)
        found = await stub.ListJobs(request, metadata=self.metadata)
        return sum(job.state == job_pb2.Job.STATE_REGISTERING for job in found.jobs)

    async def log_in(self) -> None:
        """The first step of a log-in, of one of many people: the password."""
        user = f"user-{next(self.log_ins) // LOG_INS_EACH}"
        request = auth.LoginRequest(user=user, password=self.password)
        await auth_grpc.AuthServiceStub(self.channel).Login(request)

    async def upload(self, dataset: str) -> None:
        """One small version of text."""

        async def messages() -> AsyncIterator[datasets.UploadDatasetVersionRequest]:
            document = datasets.Document(id="one", text="some text")
            yield datasets.UploadDatasetVersionRequest(parent=dataset, request_id=_id())
            yield datasets.UploadDatasetVersionRequest(documents=[document])

        stub = datasets_grpc.DatasetServiceStub(self.channel)
        await stub.UploadDatasetVersion(messages(), metadata=self.metadata)

    async def prepare(self, job: str) -> None:
        """Submit a job."""
        spec = job_pb2.PrepareSpec(
            datasets=[f"{DATASET}/versions/1"],
            output_dataset=f"{PARENT}/datasets/{job}",
            output_tokenizer=f"{PARENT}/tokenizers/{job}",
        )
        request = jobs.CreateJobRequest(
            parent=PARENT, job_id=job, job=job_pb2.Job(prepare=spec), request_id=_id()
        )
        await jobs_grpc.JobServiceStub(self.channel).CreateJob(request, metadata=self.metadata)

    async def join(self) -> tuple[bytes, bytes]:
        """Let a server in; its key and certificate, PEM."""
        request = nodes.CreateJoinTokenRequest(node_id="n1")
        stub = nodes_grpc.NodeServiceStub(self.channel)
        token = (await stub.CreateJoinToken(request, metadata=self.metadata)).token
        key = new_private_key()
        joined = await enrolment_grpc.EnrolmentServiceStub(self.channel).Join(
            enrolment.JoinRequest(token=token, certificate_request=make_csr(key).decode())
        )
        return key, joined.certificate.encode()


class Node:
    """A server that does no work: it says at once that its part is done, with made-up outputs."""

    def __init__(self, connection: grpc.aio.Channel) -> None:
        self._stub = agent_grpc.AgentServiceStub(connection)
        self._sent: asyncio.Queue[agent.ConnectRequest] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._running: dict[str, agent.WorkEpoch] = {}
        self.orders: asyncio.Queue[agent.StartJob] = asyncio.Queue()

    async def run(self) -> None:
        """Keep the stream until cancelled."""
        async for answer in self._stub.Connect(self._reports()):
            kind = answer.WhichOneof("order")
            if kind == "start_job":
                work = answer.start_job.work
                self._running[work.work] = work
                self.orders.put_nowait(answer.start_job)
            elif kind == "leases" and answer.leases.sequence in self._answers:
                self._answers.pop(answer.leases.sequence).set_result(None)

    async def beat(self) -> None:
        """One heartbeat, until it is answered."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        heartbeat = agent.AgentHeartbeat(sequence=number, running=self._running.values())
        self._sent.put_nowait(agent.ConnectRequest(heartbeat=heartbeat))
        async with asyncio.timeout(MAX_SECONDS):
            await self._answers[number]

    async def stay(self) -> None:
        """A heartbeat each second, so that it is not taken for lost."""
        while True:
            await self.beat()
            await asyncio.sleep(1.0)

    async def end(self, order: agent.StartJob) -> None:
        """Say that a job is done, until that is answered."""
        outputs = [
            agent.OutputComplete(slot=slot, manifest_digest="0" * 64)
            for slot in ("dataset", "tokenizer")
        ]
        ended = agent.JobEnded(work=order.work, succeeded=True, outputs=outputs)
        call = self._stub.Report()
        await call.write(agent.ReportRequest(number=1, job_ended=ended))
        async with asyncio.timeout(MAX_SECONDS):
            await call.read()
        await call.done_writing()
        del self._running[order.work.work]

    async def keys(self, order: agent.StartJob) -> None:
        """Ask for the keys of a job."""
        await self._stub.ReleaseKeys(agent.ReleaseKeysRequest(work=order.work))

    async def _reports(self) -> AsyncIterator[agent.ConnectRequest]:
        yield agent.ConnectRequest(
            hello=agent.Hello(
                devices=2 * JOBS,
                device_kind="cpu",
                memory_bytes=1 << 40,
                address="127.0.0.1",
                agent_version="bench",
            )
        )
        while True:
            yield await self._sent.get()


async def _rounds(running: Stage, flag: Path) -> list[dict[str, float]]:
    address, ca = f"127.0.0.1:{running.ports['api']}", running.ca
    metadata = (("authorization", f"Bearer {running.session}"),)
    async with contextlib.AsyncExitStack() as stack:
        connection = await stack.enter_async_context(channel(address, ca, server_name=CONTROL))
        person = Person(connection, metadata, running.password)
        stub = datasets_grpc.DatasetServiceStub(connection)
        request = datasets.CreateDatasetRequest(parent=PARENT, dataset_id="text", request_id=_id())
        await stub.CreateDataset(request, metadata=metadata)
        await person.upload(DATASET)
        key, certificate = await person.join()
        machines = f"127.0.0.1:{running.ports['machines']}"
        node = Node(
            await stack.enter_async_context(
                channel(machines, ca, key, certificate, server_name=CONTROL)
            )
        )
        tasks = [asyncio.create_task(node.run()), asyncio.create_task(node.stay())]
        await node.beat()
        await person.invite(2 * ROUNDS * LOG_INS // LOG_INS_EACH)
        rows = [await _round(person, node, flag, number) for number in range(ROUNDS)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return rows


async def _round(person: Person, node: Node, flag: Path, number: int) -> dict[str, float]:
    """99th percentiles in milliseconds, without the hang and with it."""
    names = [f"r{number}-{job}" for job in range(2 * JOBS)]
    for name in names:
        await person.prepare(name)
    async with asyncio.timeout(MAX_SECONDS):
        orders = [await node.orders.get() for _ in names]
    quiet = await _measured(person, node)
    flag.touch()  # noqa: ASYNC240  # a moment, while nothing is measured
    try:
        for order in orders[:JOBS]:
            await node.end(order)
        held = [asyncio.create_task(node.keys(orders[JOBS + each % JOBS])) for each in range(KEYS)]
        held.append(asyncio.create_task(person.upload(DATASET)))
        await asyncio.sleep(1.0)
        waiting = await person.registering()
        if waiting != JOBS:
            raise SystemExit(f"{waiting} of {JOBS} jobs wait for the store: nothing was measured")
        if any(task.done() for task in held):
            raise SystemExit("the store does not hang: nothing was measured")
        hung = await _measured(person, node)
        if any(task.done() for task in held):
            raise SystemExit("the store has stopped hanging: what was measured means nothing")
    finally:
        flag.unlink()  # noqa: ASYNC240  # as above
    await asyncio.gather(*held)
    for order in orders[JOBS:]:
        await node.end(order)
    return {f"{name}_quiet": value for name, value in quiet.items()} | {
        f"{name}_hung": value for name, value in hung.items()
    }


async def _measured(person: Person, node: Node) -> dict[str, float]:
    return {
        "list": await _percentile(person.list, LISTS),
        "beat": await _percentile(node.beat, BEATS),
        "log_in": await _percentile(person.log_in, LOG_INS),
    }


async def _percentile(call: Callable[[], Awaitable[None]], times: int) -> float:
    """The 99th percentile of so many calls, one after the other, in milliseconds."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.quantiles(taken, n=100, method="inclusive")[98]


def _id() -> str:
    return str(uuid.uuid4())
