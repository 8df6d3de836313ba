"""What jobs made: registered however often that takes, refused when it is not what was said."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import rfc8785

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.control.audit.log import AuditLog
from appliance.control.services.data.storage_tasks import TaskKind
from appliance.control.services.fleet.leases import Share
from appliance.control.services.work import job_rows
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.core.errors import (
    Exhausted,
    LeaseLost,
    Tampered,
    Unavailable,
)
from appliance.crypto import statements
from appliance.crypto.artifacts import ArtifactReader
from appliance.crypto.folder import Folder, NewFile
from appliance.crypto.sealed_reader import SealedReader
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, GIB, PROJECT, Lab, write

Job = job_pb2.Job
JOB = f"projects/{PROJECT}/jobs/t1"
MODEL = {"model": tiny_model.files()}


def kinds(lab: Lab) -> list[str]:
    """Of the versions that there are, complete or not."""
    return sorted(row.kind for row in lab.rows(tables.artifact_version))


async def test_a_restart_between_the_last_end_and_the_registration_finishes_the_job(
    lab: Lab,
) -> None:
    node, work = await lab.started()
    node.storage_works = False
    node.succeed(work, MODEL)
    assert lab.job().state == Job.STATE_REGISTERING
    lab.restart()
    assert lab.job().state == Job.STATE_SUCCEEDED


async def test_the_same_end_heard_twice_at_once_is_one_end(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an old stream of the node and on its new one: between the row and the end of the lease."""
    node, work = await lab.started()
    node.storage_works = False
    release, take = lab.work.leases.release, lab.work.agents.take
    sent: list[Sequence[agent.ReportRequest]] = []

    def send(name: str, lot: Sequence[agent.ReportRequest]) -> None:
        sent.append(lot)
        take(name, lot)

    monkeypatch.setattr(lab.work.agents, "take", send)

    def slow(uid: str, epoch: int) -> list[Share]:
        monkeypatch.setattr(lab.work.leases, "release", release)
        again = threading.Thread(target=take, args=(node.node, sent[-1]))
        again.start()
        again.join()
        return release(uid, epoch)

    monkeypatch.setattr(lab.work.leases, "release", slow)
    node.succeed(work, MODEL)
    assert lab.job().state == Job.STATE_REGISTERING
    lab.work.storage.do_all()
    assert lab.job().state == Job.STATE_SUCCEEDED


@pytest.mark.parametrize(
    ("where", "error", "why"),
    [
        ("sign", OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        ("sign", Exhausted("the object store is full"), "the object store is full"),
        ("verify", OSError(errno.EIO, "Input/output error"), "Input/output error"),
        ("register", Unavailable("the database is locked"), "the database is locked"),
    ],
)
async def test_what_was_made_is_registered_as_soon_as_that_works(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, why: str
) -> None:
    node, work = await lab.started()
    tries: list[float] = []

    def fails(*_: object, **__: object) -> None:
        tries.append(lab.time.seconds)
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(lab.work.artifacts, where, fails)
        node.succeed(work, MODEL)
        for _ in range(300):
            lab.forward(1)
            lab.work.storage.do_all()
        assert lab.job().state == Job.STATE_REGISTERING
        assert f"to be registered as soon as that works: {why}; tried again at " in (
            lab.job().state_reason
        )
        # At once, then less and less often; its devices are free meanwhile.
        assert [later - earlier for earlier, later in itertools.pairwise(tries)][:7] == [
            *(1, 2, 4, 8, 16, 32, 60)
        ]
        assert lab.work.leases.capacity("n1", 4, GIB).free == [0, 1, 2, 3]
    lab.restart()
    lab.forward(61)
    lab.work.storage.do_all()
    job = lab.job()
    assert (job.state, job.state_reason) == (Job.STATE_SUCCEEDED, "")
    assert list(job.outputs) == ["projects/demo/models/m-t1/versions/1"]


async def test_a_job_that_cannot_be_registered_can_be_cancelled(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, work = await lab.started()

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lab.work.artifacts, "sign", fails)
    node.succeed(work, MODEL)
    lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=JOB))
    lab.forward(61)
    lab.work.storage.do_all()
    assert lab.job().state == Job.STATE_CANCELLED


@pytest.mark.parametrize("end", ["cancel", "stop"])
async def test_reading_back_ends_when_it_is_of_no_use(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    node, work = await lab.started()
    node.storage_works = False
    node.succeed(work, MODEL)
    open_file, opened = ArtifactReader.open, list[str]()

    def opens(reader: ArtifactReader, file: str) -> SealedReader:
        opened.append(file)
        if end == "stop":
            lab.work.stopping.set()
        elif not opened[1:]:
            lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=JOB))
        return open_file(reader, file)

    def reads(reader: ArtifactReader, going: Callable[[], None]) -> None:
        monkeypatch.setattr(ArtifactReader, "open", opens)
        read_through(reader, going)

    read_through = ArtifactReader.read_through
    monkeypatch.setattr(ArtifactReader, "read_through", reads)
    lab.work.storage.do_all()
    assert len(opened) == 1
    state = {"cancel": Job.STATE_CANCELLED, "stop": Job.STATE_REGISTERING}[end]
    assert lab.job().state == state


async def test_each_reading_notices_by_itself_that_it_is_of_no_use(lab: Lab) -> None:
    node, work = await lab.started()
    node.storage_works = False
    node.succeed(work, MODEL)
    with lab.database.read() as state:
        row = job_rows.by_uid(state, work.work)
    assert row is not None
    registration = lab.work.storage._handlers[TaskKind.REGISTER].__self__
    looks = [registration._looks(row) for _ in range(2)]
    for look in looks:
        look()
    lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=JOB))
    lab.forward(2)
    for look in looks:
        with pytest.raises(LeaseLost, match="cancelled"):
            look()


@pytest.mark.parametrize("change", ["byte", "contents", "missing", "epoch", "config"])
async def test_an_output_that_is_not_what_was_reported_fails_the_job(lab: Lab, change: str) -> None:
    node, work = await lab.started()
    key = next(key for key in node.keys(work).outputs if key.kind == "model")
    files = dict(tiny_model.files())
    if change == "config":
        files["config.json"] = files["config.json"].replace(
            b'"hidden_size"', b'"auto_map": 1, "hidden_size"'
        )
    digest = write(node.writer(key, 7 if change == "epoch" else 1), files)
    if change == "byte":
        path = lab.objects / key.folder / "manifest.json"
        path.write_bytes(path.read_bytes().replace(b'"epoch":1', b'"epoch":2'))
    if change == "contents":
        path = lab.objects / key.folder / "model.safetensors"
        sealed = bytearray(path.read_bytes())
        sealed[-1000] ^= 1
        path.write_bytes(sealed)
    if change == "missing":
        (lab.objects / key.folder / "model.safetensors").unlink()
    outputs = [agent.OutputComplete(slot="model", manifest_digest=digest)]
    node.report(job_ended=agent.JobEnded(work=work, succeeded=True, outputs=outputs))
    job = lab.job()
    assert job.state == Job.STATE_FAILED
    assert job.state_reason.startswith("an output is refused: ")
    assert list(job.outputs) == []
    assert kinds(lab) == ["checkpoints", "dataset"]


class Killed(BaseException):
    """The control plane is gone, in the middle of what it does."""


class Broken:
    """Makes the n-th write of the control plane fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException, at: int) -> None:
        self.left = at
        writes: list[tuple[Any, str]] = [
            (Folder, "create"),
            (NewFile, "write"),
            (NewFile, "commit"),
        ]
        if isinstance(error, Killed):
            writes += [(Transaction, "run"), (Database, "_count"), (AuditLog, "append")]
        for owner, name in writes:
            monkeypatch.setattr(owner, name, self._failing(getattr(owner, name), error))

    def _failing(self, write: Any, error: BaseException) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise error
            return write(*arguments, **named)

        return call


@pytest.mark.parametrize(
    "error",
    [
        Killed(),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EIO, "Input/output error"),
    ],
    ids=["killed", "ENOSPC", "EIO"],
)
async def test_whichever_write_fails_what_was_made_is_registered(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    node = await lab.connected("n1")
    tokens = lab.tokens()
    failed = 0
    while True:
        identifier = f"t{failed}"
        lab.train(identifier, tokens)
        lab.look()
        await node.take()
        work = node.started[-1].work
        key = next(key for key in node.keys(work).outputs if key.kind == "model")
        digest = write(node.writer(key, work.epoch), tiny_model.files())
        output = agent.OutputComplete(slot="model", manifest_digest=digest)
        ended = agent.JobEnded(work=work, succeeded=True, outputs=[output])
        with monkeypatch.context() as patch:
            broken = Broken(patch, error, failed + 1)
            with contextlib.suppress(type(error)):
                node.report(job_ended=ended)
        node.running.clear()
        if isinstance(error, Killed):
            lab.restart()
            await node.connect()
        if lab.job(identifier).state in (Job.STATE_STARTING, Job.STATE_RUNNING):
            node.report(job_ended=ended)  # it was not heard, so it is said again
        lab.wait(61, node)
        lab.work.storage.do_all()
        job = lab.job(identifier)
        assert (job.state, job.state_reason) == (Job.STATE_SUCCEEDED, ""), failed
        version = lab.version_row(job.outputs[0])
        assert lab.work.artifacts.open(version).digest == digest
        assert lab.rows(tables.storage_task) == []
        if broken.left > 0:
            break  # no write was left to fail
        failed += 1
    assert failed >= (12 if isinstance(error, Killed) else 3)


async def test_what_was_made_comes_with_a_signed_statement(lab: Lab) -> None:
    node, work = await lab.started()
    node.succeed(work, MODEL)
    job = lab.job()
    row, tokens = lab.version_row(job.outputs[0]), lab.version_row(job.train.dataset)
    key = lab.base.keyring.manifest_sign.verify_key
    stated = statements.verify(key, row.statement, job.outputs[0], row.manifest_digest)
    assert stated["subject"][0]["name"] == job.outputs[0]
    predicate = stated["predicate"]
    assert (predicate["kind"], predicate["nodes"]) == ("train", ["nodes/n1"])
    assert predicate["job"] == {"name": JOB, "uid": job.uid, "epoch": 1}
    assert predicate["inputs"] == [
        {
            "name": job.train.dataset,
            "uid": tokens.uid,
            "digest": {"sha256": tokens.manifest_digest},
        }
    ]
    spec = lab.rows(tables.job)[0].spec
    assert predicate["spec"]["digest"]["sha256"] == hashlib.sha256(rfc8785.dumps(spec)).hexdigest()
    # Also of what was uploaded.
    uploaded = statements.verify(key, tokens.statement, job.train.dataset, tokens.manifest_digest)
    assert uploaded["predicate"] == {"kind": "upload", "inputs": []}


@pytest.mark.attack
async def test_a_version_with_another_statement_gives_no_keys(lab: Lab) -> None:
    tokens, other = lab.tokens("tokens"), lab.tokens("other")
    with lab.database.write() as transaction:
        stolen = lab.version_row(other).statement
        version = tables.artifact_version
        uid = lab.version_row(tokens).uid
        transaction.run(version.update().where(version.c.uid == uid).values(statement=stolen))
    node = await lab.connected("n1")
    lab.train("t1", tokens)
    lab.look()
    await node.take()
    with pytest.raises(Tampered, match="about another version"):
        node.keys(node.started[0].work)
