"""Control plane and nodes in one process, without sockets: time stands still until a test moves it.

The control plane is the real one (state, keys, policies, scheduler) on a copy of a real data
directory; agents are stand-ins that speak to its services as the stream does.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.api.nodes.v1 import node_pb2
from appliance.control.bootstrap.foundation import Foundation, People
from appliance.control.bootstrap.opening import open_data
from appliance.control.bootstrap.parts import enrolment, projects
from appliance.control.bootstrap.work_parts import WorkParts
from appliance.control.services.agent.release import Release
from appliance.control.services.common.caller import Caller
from appliance.control.services.data import artifact_rows
from appliance.control.services.data.artifacts import Provenance
from appliance.control.services.data.datasets import Datasets
from appliance.control.services.data.downloads import Downloads
from appliance.control.services.data.models import Models
from appliance.control.services.fleet.connected_agents import AgentSession
from appliance.control.services.fleet.served_clock import MAX_STEP
from appliance.control.services.serving.endpoints import Endpoints
from appliance.control.services.serving.routing import Routing
from appliance.control.services.work.checkpoints import Checkpoints
from appliance.control.services.work.job_edits import JobEdits
from appliance.control.services.work.jobs import Jobs
from appliance.control.services.work.live_logs import LiveLogs
from appliance.control.store import tables
from appliance.core.checkpoints import CheckpointPoint
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.names import Name
from appliance.crypto.artifacts import ArtifactReader, ArtifactWriter, manifest_digest
from tests.fakes import tiny_model
from tests.fakes.appliance import settings_of

GIB = 1 << 30
PROJECT = "demo"
ALICE = Caller(principal=Principal(PrincipalKind.USER, "alice"), request_id="r-1", source="test")


class Time:
    """Wall clock and monotonic clock, moved together by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = datetime.now(UTC)

    def wall(self) -> datetime:
        return self._start + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return 1000.0 + self.seconds


class Lab:
    """One control plane; `restart` ends it as kill -9 does and starts another on the same state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.time = Time()
        self._open()

    def _open(self) -> None:
        settings = settings_of(self.folder)
        self.base = Foundation(open_data(settings, self.time.wall), settings, self.time.wall)
        people = self.people = People(self.base)
        self.work = WorkParts(self.base, people, self.time.monotonic)
        self.work.scheduler.recover()
        self.work.storage.do_all()
        self.work.erasures.do_all()
        base, work = self.base, self.work
        self.database = base.database
        self.datasets = Datasets(
            base.database, base.changes, work.artifacts, work.deletions, base.clock
        )
        self.models = Models(
            base.database, base.changes, work.artifacts, work.deletions, base.clock
        )
        self.projects = projects(base, work)
        self.uploads = work.uploads()
        self.downloads = Downloads(base.database, work.artifacts, self.time.monotonic)
        self.jobs = Jobs(
            base.database,
            base.changes,
            base.policies,
            work.runs,
            work.pauses,
            work.logs,
            base.events,
            base.clock,
        )
        self.edits = JobEdits(
            base.database,
            base.changes,
            work.artifacts,
            work.runs,
            work.leases,
            base.events,
            base.clock,
        )
        self.live = LiveLogs(base.database, work.feeds, base.events, self.time.monotonic)
        self.checkpoints = Checkpoints(base.database, base.changes, work.tasks, base.events)
        self.endpoints = Endpoints(
            base.database, base.changes, base.policies, work.replicas, base.events, base.clock
        )
        self.release = Release(
            base.database,
            work.artifacts,
            work.checkpoints,
            work.folders,
            work.store,
            work.leases,
            base.keyring.ca,
        )
        self.routing = Routing(
            base.database,
            base.policies,
            people.credentials,
            work.artifacts,
            base.keyring.token_hmac,
            base.clock,
        )
        self.usage = work.usage
        self.nodes = work.nodes()
        self.enrolment = enrolment(base)

    def restart(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self.base.opened.close()

    def look(self) -> None:
        self.work.scheduler.run_pass()

    def forward(self, seconds: float, *, served: bool = True) -> None:
        """Let time pass; the control plane serves meanwhile, or stands still as one that hangs."""
        end = self.time.seconds + seconds
        while served and end - self.time.seconds > MAX_STEP:
            self.time.seconds += MAX_STEP
            self.work.served.tick()
        self.time.seconds = end

    def wait(self, seconds: float, *alive: FakeAgent) -> None:
        """Let time pass in which these nodes are heard."""
        end = self.time.seconds + seconds
        while self.time.seconds < end:
            self.forward(min(MAX_STEP, end - self.time.seconds))
            self.work.served.tick()
            for node in alive:
                node.heartbeat()

    @property
    def objects(self) -> Path:
        return self.folder / "objects"

    def project(self, name: str = PROJECT) -> None:
        with self.database.write() as transaction:
            transaction.run(
                tables.project.insert().values(
                    id=name, description="", create_time=self.time.wall()
                )
            )
            self.base.keys.create_project_key(transaction, name, self.time.wall())

    def allow_downloads(self, *, allow: bool = True) -> None:
        with self.database.write() as transaction:
            transaction.run(tables.project.update().values(allow_downloads=allow))

    def version(self, kind: str, name: str, files: Mapping[str, bytes], facts: Any) -> str:
        """A complete, signed version made outside of any job; its resource name."""
        artifacts = self.work.artifacts
        with self.database.write() as transaction:
            version = artifacts.allocate(
                transaction, PROJECT, kind, name, Provenance("users/alice")
            )
        digest = write(artifacts.writer(version), files)
        reader = artifacts.verify(version, digest)
        artifacts.sign(version, digest)
        with self.database.write() as transaction:
            origin = {"kind": "upload", "inputs": []}
            artifacts.register(transaction, version, reader, facts, origin)
        return version.name

    def tokens(self, name: str = "clean", vocabulary: int = 512, tokenizer: str = "") -> str:
        facts = {"kind": "tokens", "documents": 3, "tokens": 9, "vocabulary_size": vocabulary}
        facts["tokenizer"] = tokenizer
        return self.version("dataset", name, {"index.json": b"{}"}, facts)

    def text(self, name: str = "raw") -> str:
        facts = {"kind": "text", "documents": 1, "tokens": 0}
        return self.version("dataset", name, {"part-00000.jsonl": b"{}\n"}, facts)

    def model(self, name: str = "base", **facts: Any) -> str:
        known = {
            "architecture": "LlamaForCausalLM",
            "parameters": tiny_model.PARAMETERS,
            "format": "bfloat16",
            "context_length": 128,
            "attention_heads": 4,
            "key_value_heads": 2,
            "intermediate_size": 32,
            "vocabulary_size": 64,
            "largest_tensor": 1024,
            "weight_bytes": 8192,
        }
        return self.version("model", name, tiny_model.files(), known | facts)

    def train(self, name: str = "t1", dataset: str = "", **changes: Any) -> job_pb2.Job:
        """A small train job, queued."""
        return self.jobs.create(
            ALICE, train_request(name, dataset or self.tokens(f"d-{name}"), **changes)
        )

    def job(self, name: str = "t1") -> job_pb2.Job:
        return self.jobs.get(ALICE, f"projects/{PROJECT}/jobs/{name}")

    def version_row(self, name: str) -> Any:
        """The row of a complete version."""
        with self.database.read() as state:
            return artifact_rows.version_row(state, Name.parse(name))

    def rows(self, table: Any) -> list[Any]:
        with self.database.read() as state:
            return state.all(select(table))

    def node(self, name: str, **offers: Any) -> FakeAgent:
        """A node that has joined; its agent is not connected yet."""
        with self.database.write() as transaction:
            transaction.run(
                tables.node.insert().values(
                    id=name, state="LOST", certificate_serial=name, create_time=self.time.wall()
                )
            )
            self.base.policies.changed(transaction)
        return FakeAgent(self, name, **offers)

    async def started(self, **changes: Any) -> tuple[FakeAgent, agent.WorkEpoch]:
        """A node on which the small train job `t1` starts, and that start."""
        node = self.node("n1")
        node.say_lacks({"train": ""})
        await node.connect()
        self.train(**changes)
        self.look()
        await node.take()
        return node, node.started[0].work

    async def connected(self, name: str, **offers: Any) -> FakeAgent:
        made = self.node(name, **offers)
        await made.connect()
        return made


def train_request(name: str, dataset: str, **changes: Any) -> job_service_pb2.CreateJobRequest:
    spec = job_pb2.TrainSpec(
        dataset=dataset,
        output_model=f"projects/{PROJECT}/models/m-{name}",
        architecture=job_pb2.Architecture(
            layers=4,
            hidden_size=64,
            intermediate_size=128,
            attention_heads=4,
            key_value_heads=2,
            context_length=128,
            tie_embeddings=True,
        ),
        steps=20,
        batch_size=8,
        sequence_length=64,
    )
    spec.MergeFrom(job_pb2.TrainSpec(**changes))
    return job_service_pb2.CreateJobRequest(
        parent=f"projects/{PROJECT}", job_id=name, job=job_pb2.Job(train=spec)
    )


def write(writer: ArtifactWriter, files: Mapping[str, bytes]) -> str:
    """Write an artifact; the digest of its manifest."""
    for file, data in files.items():
        with writer.create(file) as sealed:
            sealed.write(data)
    return manifest_digest(writer.finish())


class FakeAgent:
    """A node's agent: takes orders when told to, reports what a test says."""

    def __init__(
        self,
        lab: Lab,
        node: str,
        devices: int = 4,
        memory: int = 8 * GIB,
        lacks: Mapping[str, str] | None = None,
    ) -> None:
        self.lab = lab
        self.node = node
        self.caller = Caller(principal=Principal(PrincipalKind.NODE, node))
        self.hello = agent.Hello(
            devices=devices,
            device_kind="cpu",
            memory_bytes=memory,
            address="127.0.0.1",
            agent_version="1",
            sends_logs=True,
        )
        self.say_lacks(lacks or {})
        self.running: set[tuple[str, int]] = set()
        self.started: list[agent.StartJob | agent.StartReplica] = []
        self.stopped: list[tuple[str, int]] = []
        self.grace: list[float] = []
        """Seconds of each order to stop."""
        self.saves: list[agent.StopWork] = []
        self.old = False
        """Whether this is an agent of 0.1.0, which knows no order to save."""
        self.leases: list[agent.Leases] = []
        self.reads: list[agent.ReadLog] = []
        self.free_ports: list[int] = []
        self.session: AgentSession | None = None
        self.cut = False
        self.storage_works = True

    def say_lacks(self, lacks: Mapping[str, str]) -> None:
        """What the next hello says: kind of work -> what is missing for it, "" for nothing."""
        del self.hello.capabilities[:]
        self.hello.capabilities.extend(
            node_pb2.Capability(kind=kind, available=not reason, reason=reason)
            for kind, reason in lacks.items()
        )

    async def connect(self) -> None:
        """Open a stream to the control plane that runs now, and announce what runs here."""
        self.hello.ClearField("running")
        self.hello.running.extend(_works(self.running))
        self.hello.ClearField("free_ports")
        self.hello.free_ports.extend(self.free_ports)
        agents = self.lab.work.agents
        self.session = AgentSession(
            agents.facts_of(self.caller, agent.ConnectRequest(hello=self.hello))
        )
        agents.connect(self.caller, self.hello, self.session)
        await self.take()

    def disconnect(self) -> None:
        assert self.session is not None
        self.lab.work.agents.leave(self.session)

    async def take(self) -> None:
        """Carry out the orders that have come."""
        assert self.session is not None
        for _ in range(3):
            await asyncio.sleep(0)
        while not self.session._orders.empty():
            order = await self.session.next()
            if order is None:
                self.cut = True
                return
            kind = order.WhichOneof("order")
            if kind == "start_job":
                self.started.append(order.start_job)
                self.running.add((order.start_job.work.work, order.start_job.work.epoch))
            elif kind == "start_replica":
                self.started.append(order.start_replica)
                self.running.add((order.start_replica.work.work, order.start_replica.work.epoch))
            elif kind == "stop" and order.stop.save and not self.old:
                self.saves.append(order.stop)
            elif kind == "stop":
                work = (order.stop.work.work, order.stop.work.epoch)
                self.stopped.append(work)
                self.grace.append(order.stop.grace_seconds)
                self.running.discard(work)
            elif kind == "read_log":
                self.reads.append(order.read_log)
            else:
                self.leases.append(order.leases)

    def report(self, **report: Any) -> None:
        self.lab.work.agents.take(self.node, [agent.ReportRequest(**report)])
        if self.storage_works and report.keys() & {"job_ended", "checkpoint"}:
            self.lab.work.storage.do_all()

    def heartbeat(self) -> None:
        running = _works(self.running)
        beat = agent.AgentHeartbeat(running=running, sequence=7, free_ports=self.free_ports)
        self.lab.work.agents.heartbeat(self.node, beat)

    def progress(self, work: agent.WorkEpoch, step: int, **metrics: float) -> None:
        progress = job_pb2.Progress(step=step, total=20, metrics=metrics)
        self.report(job_progress=agent.JobProgress(work=work, progress=progress))

    def keys(self, work: agent.WorkEpoch, csr: str = "") -> agent.ReleaseKeysResponse:
        request = agent.ReleaseKeysRequest(work=work, certificate_request=csr)
        return self.lab.release.keys(self.caller, request)

    def writer(self, key: agent.ArtifactKey, epoch: int, part: str = "") -> ArtifactWriter:
        store = self.lab.work.artifacts.store
        end = f"/{part}" if part else ""
        return ArtifactWriter(
            store.filesystem,
            store.path(key.folder) + end,
            key.key,
            key.project,
            key.object + end,
            epoch=epoch,
        )

    def reader(self, key: agent.ArtifactKey) -> ArtifactReader:
        store = self.lab.work.artifacts.store
        return ArtifactReader(
            store.filesystem,
            store.path(key.folder),
            key.key,
            key.project,
            key.object,
            digest=key.manifest_digest,
        )

    def save_checkpoint(self, work: agent.WorkEpoch, step: int) -> str:
        key = next(key for key in self.keys(work).outputs if key.kind == "checkpoints")
        part = CheckpointPoint(work.epoch, step).name
        digest = write(self.writer(key, work.epoch, part), {"weights": b"w" * 50})
        self.report(
            checkpoint=agent.CheckpointComplete(work=work, step=step, manifest_digest=digest)
        )
        return digest

    def succeed(
        self, work: agent.WorkEpoch, files: Mapping[str, Mapping[str, bytes]] | None = None
    ) -> None:
        """Write every output and end well; on other nodes than the first just end well."""
        outputs = [
            agent.OutputComplete(
                slot=key.slot,
                manifest_digest=write(self.writer(key, work.epoch), (files or {})[key.slot]),
            )
            for key in self.keys(work).outputs
            if key.slot in (files or {})
        ]
        result = job_pb2.JobResult(values={"loss_last": 1.5})
        self.running.discard((work.work, work.epoch))
        self.report(
            job_ended=agent.JobEnded(work=work, succeeded=True, outputs=outputs, result=result)
        )

    def fail(
        self, work: agent.WorkEpoch, reason: str, message: str = "it broke", log: str = ""
    ) -> None:
        self.running.discard((work.work, work.epoch))
        self.report(job_ended=agent.JobEnded(work=work, reason=reason, message=message, log=log))

    def ready(self, work: agent.WorkEpoch, address: str = "127.0.0.1:5000") -> None:
        self.report(replica_changed=agent.ReplicaChanged(work=work, ready=True, address=address))

    def gone(self, work: agent.WorkEpoch, message: str = "killed") -> None:
        self.running.discard((work.work, work.epoch))
        self.report(replica_changed=agent.ReplicaChanged(work=work, ended=True, message=message))


def _works(running: set[tuple[str, int]]) -> list[agent.WorkEpoch]:
    return [agent.WorkEpoch(work=work, epoch=epoch) for work, epoch in sorted(running)]


def prepared_files(vocabulary: int = 3) -> dict[str, dict[str, bytes]]:
    """What a prepare job makes, by slot."""
    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = json.dumps({"model": {"vocab": words}, "added_tokens": []}).encode()
    index = {"vocabulary_size": vocabulary, "tokens": {"train": 100, "validation": 7}}
    report = {"documents": "5", "kept": "4", "steps": [{"name": "exact", "dropped": {"same": "1"}}]}
    return {
        "dataset": {
            "index.json": json.dumps(index).encode(),
            "report.json": json.dumps(report).encode(),
            "tokenizer.json": tokenizer,
        },
        "tokenizer": {"tokenizer.json": tokenizer, "tokenizer_config.json": b"{}"},
    }


@contextmanager
def new_lab(template: Path, folder: Path) -> Iterator[Lab]:
    shutil.copytree(template, folder)
    folder.chmod(0o700)
    lab = Lab(folder)
    lab.project()
    try:
        yield lab
    finally:
        lab.close()
