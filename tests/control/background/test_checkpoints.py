"""Checkpoints: put on record, kept by a rule, gone on from, deleted."""

from __future__ import annotations

import errno
import re
from typing import Any

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import (
    checkpoint_pb2,
    checkpoint_service_pb2,
    job_pb2,
    job_service_pb2,
)
from appliance.control.services.data.storage_tasks import TaskKind
from appliance.control.services.work.checkpoint_folders import CheckpointFolders
from appliance.control.services.work.paused_jobs import MIN_BYTES, PausedJobs
from appliance.control.store import tables
from appliance.control.store.objects import ObjectStore
from appliance.core.checkpoints import CheckpointPoint
from appliance.core.errors import (
    FailedPrecondition,
    InvalidInput,
    NotFound,
    StoreFull,
    Unavailable,
)
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, GIB, PROJECT, FakeAgent, Lab, write

Checkpoint = checkpoint_pb2.Checkpoint
Job = job_pb2.Job
JOB = f"projects/{PROJECT}/jobs/t1"
MODEL = {"model": tiny_model.files()}


def kinds(lab: Lab) -> list[str]:
    """Of the versions that there are, complete or not."""
    return sorted(row.kind for row in lab.rows(tables.artifact_version))


def points(lab: Lab) -> list[str]:
    """The ids of the checkpoints on record, newest first."""
    rows = sorted(lab.rows(tables.checkpoint), key=lambda row: (row.epoch, row.step), reverse=True)
    return [f"e{row.epoch}-step-{row.step}" for row in rows if row.state == "COMPLETE"]


def saved(
    lab: Lab, node: FakeAgent, work: agent.WorkEpoch, epoch: int, step: int
) -> agent.CheckpointComplete:
    """A checkpoint that lies there whole, and its report, which is not sent."""
    key = next(key for key in node.keys(work).outputs if key.kind == "checkpoints")
    digest = write(node.writer(key, epoch, CheckpointPoint(epoch, step).name), {"w": b"%d" % step})
    return agent.CheckpointComplete(work=work, step=step, manifest_digest=digest)


async def test_the_next_start_takes_in_what_the_last_one_finished_unheard(lab: Lab) -> None:
    node, first = await lab.started()
    node.save_checkpoint(first, 10)
    reports = [saved(lab, node, first, 1, step) for step in (20, 30, 40)]
    key = next(key for key in node.keys(first).outputs if key.kind == "checkpoints")
    # The newest was cut, and the one before does not open: what was finished before them counts.
    (lab.objects / key.folder / "e1" / "step-00000040" / "manifest.json").unlink()
    manifest = lab.objects / key.folder / "e1" / "step-00000030" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"epoch":1', b'"epoch":2'))
    node.fail(first, "RANK_LOST", "killed")
    lab.wait(60, node)
    lab.look()
    await node.take()
    second = node.started[1].work
    keys = node.keys(second)
    assert (keys.resume_epoch, keys.resume_step) == (1, 20)
    assert keys.resume_digest == reports[0].manifest_digest
    assert points(lab) == ["e1-step-20", "e1-step-10"]


async def test_an_older_epoch_that_came_further_does_not_beat_a_newer_one(lab: Lab) -> None:
    node, first = await lab.started()
    node.save_checkpoint(first, 10)
    node.fail(first, "RANK_LOST", "killed")
    lab.wait(60, node)
    lab.look()
    await node.take()
    second = node.started[1].work
    node.save_checkpoint(second, 12)
    # What the older one still saves is nobody's, and what it saved unseen is deleted.
    assert points(lab) == ["e2-step-12", "e1-step-10"]
    saved(lab, node, second, 1, 300)
    node.fail(second, "RANK_LOST", "killed")
    lab.wait(60, node)
    lab.look()
    await node.take()
    keys = node.keys(node.started[2].work)
    assert (keys.resume_epoch, keys.resume_step) == (2, 12)


async def test_an_agent_of_0_1_0_saves_without_folders_of_epochs(lab: Lab) -> None:
    node, first = await lab.started()
    key = next(key for key in node.keys(first).outputs if key.kind == "checkpoints")
    for step in (10, 20):
        digest = write(node.writer(key, 1, f"step-{step:08d}"), {"weights": b"w"})
        complete = agent.CheckpointComplete(work=first, step=step, manifest_digest=digest)
        node.report(checkpoint=complete)
    node.fail(first, "RANK_LOST", "killed")
    lab.wait(60, node)
    lab.look()
    await node.take()
    keys = node.keys(node.started[1].work)
    assert (keys.resume_epoch, keys.resume_step, keys.resume_digest) == (0, 20, digest)


async def test_a_checkpoint_that_is_not_what_was_reported_fails_the_job(lab: Lab) -> None:
    node, work = await lab.started()
    node.progress(work, 5)
    node.save_checkpoint(work, 5)
    key = next(key for key in node.keys(work).outputs if key.kind == "checkpoints")
    # One that is not there says nothing: its rank may have saved newer ones, or the store be away.
    node.report(checkpoint=agent.CheckpointComplete(work=work, step=8, manifest_digest="0" * 64))
    assert (lab.job().state, points(lab)) == (Job.STATE_RUNNING, ["e1-step-5"])
    write(node.writer(key, 1, "e1/step-00000010"), {"weights": b"w"})
    (lab.objects / key.folder / "e1" / "step-00000010" / "weights").unlink()
    node.report(checkpoint=agent.CheckpointComplete(work=work, step=10, manifest_digest="0" * 64))
    assert lab.job().state == Job.STATE_FAILED
    assert lab.job().state_reason.startswith("what node n1 reported is refused: ")
    assert points(lab) == ["e1-step-5"]


async def test_a_checkpoint_that_was_replaced_before_its_turn_is_passed_over(lab: Lab) -> None:
    node, work = await lab.started()
    node.progress(work, 5)
    key = next(key for key in node.keys(work).outputs if key.kind == "checkpoints")
    write(node.writer(key, 1, "e1/step-00000020"), {"weights": b"w"})
    node.report(checkpoint=agent.CheckpointComplete(work=work, step=10, manifest_digest="0" * 64))
    assert (lab.job().state, points(lab)) == (Job.STATE_RUNNING, [])
    node.save_checkpoint(work, 30)
    assert points(lab) == ["e1-step-30"]
    # What is there is checked whatever else is there.
    path = lab.objects / key.folder / "e1" / "step-00000040"
    write(node.writer(key, 1, f"e1/{path.name}"), {"weights": b"w"})
    node.report(checkpoint=agent.CheckpointComplete(work=work, step=40, manifest_digest="0" * 64))
    assert lab.job().state == Job.STATE_FAILED


def resume(lab: Lab, **more: Any) -> job_pb2.Job:
    return lab.jobs.resume(ALICE, job_service_pb2.ResumeJobRequest(name=JOB, **more))


@pytest.mark.parametrize("how", ["fails", "is cancelled", "gives up"])
async def test_a_job_that_ended_badly_is_resumed_from_its_checkpoint(lab: Lab, how: str) -> None:
    node, work = await lab.started()
    digest = node.save_checkpoint(work, 5)
    if how == "is cancelled":
        lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=JOB))
        await node.take()
        node.running.clear()
        node.heartbeat()
    elif how == "fails":
        node.fail(work, "INVALID_INPUT", "the loss is not finite: lower learning_rate")
    else:
        with lab.database.write() as transaction:
            transaction.run(tables.job.update().values(failures=2))
        node.fail(work, "RANK_LOST", "killed")
    assert lab.job().state in (Job.STATE_FAILED, Job.STATE_CANCELLED)
    assert lab.job().checkpoint_step == 5
    # It outlives the control plane, too.
    lab.restart()
    await node.connect()
    job = resume(lab)
    assert (job.state, job.state_reason) == (Job.STATE_QUEUED, "resumed by users/alice")
    assert not job.HasField("end_time")
    lab.look()
    await node.take()
    again = node.started[-1].work
    keys = node.keys(again)
    assert (again.epoch, keys.resume_epoch, keys.resume_step) == (2, 1, 5)
    assert keys.resume_digest == digest
    node.succeed(again, MODEL)
    assert lab.job().state == Job.STATE_SUCCEEDED
    # It stays for whoever begins another job with it.
    assert points(lab) == ["e1-step-5"]
    assert lab.rows(tables.job)[0].failures == 0


async def test_what_is_at_work_or_has_succeeded_is_not_resumed(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    with pytest.raises(FailedPrecondition, match="the job is queued"):
        resume(lab)
    lab.look()
    await node.take()
    work = node.started[0].work
    node.save_checkpoint(work, 20)
    node.succeed(work, MODEL)
    with pytest.raises(FailedPrecondition) as raised:
        resume(lab)
    assert raised.value.message == (
        "the job has succeeded: there is nothing to resume. To go on, create another job with"
        f" `appliance job train --from-checkpoint {JOB}/checkpoints/e1-step-20`"
    )


async def test_a_job_is_resumed_on_another_mesh(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1", mesh=job_pb2.Mesh(pipeline=2), microbatches=8)
    lab.look()
    await node.take()
    work = node.started[0].work
    node.save_checkpoint(work, 5)
    node.fail(work, "RESOURCE_EXHAUSTED", "rank 0 ran out of memory")
    with pytest.raises(InvalidInput):
        resume(lab, mesh=job_pb2.Mesh(data=3))
    assert lab.job().state == Job.STATE_FAILED
    job = resume(lab, mesh=job_pb2.Mesh(data=2, tensor=2))
    assert (job.train.mesh.data, job.train.mesh.tensor, job.train.mesh.pipeline) == (2, 2, 1)
    assert (job.train.microbatches, job.train.pipeline_schedule) == (1, "")
    lab.look()
    await node.take()
    assert (node.started[-1].world_size, node.keys(node.started[-1].work).resume_step) == (4, 5)


@pytest.mark.parametrize("how", ["failed", "succeeded", "cancelled"])
async def test_checkpoints_of_a_job_that_ended_are_kept_for_two_weeks(lab: Lab, how: str) -> None:
    node, work = await lab.started()
    node.save_checkpoint(work, 5)
    key = next(key for key in node.keys(work).outputs if key.kind == "checkpoints")
    if how == "failed":
        node.fail(work, "INVALID_INPUT", "wrong")
    elif how == "succeeded":
        node.succeed(work, MODEL)
    else:
        lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=JOB))
    for days, kept in ((13.9, True), (0.2, False)):
        lab.forward(days * 86_400, served=False)
        lab.look()
        lab.work.storage.do_all()
        assert ((lab.objects / key.folder).exists(), "checkpoints" in kinds(lab)) == (kept, kept)
        assert lab.job().checkpoint_step == (5 if kept else 0)
    if how == "succeeded":
        return
    # It can still be resumed, from the beginning.
    await node.connect()
    resume(lab)
    lab.look()
    await node.take()
    assert node.keys(node.started[-1].work).resume_step == 0


async def test_the_rule_of_a_job_keeps_the_newest_and_each_hundredth(lab: Lab) -> None:
    node, work = await lab.started(keep_last=2, keep_every=100, steps=1000)
    for step in range(50, 400, 50):
        node.save_checkpoint(work, step)
    assert points(lab) == ["e1-step-350", "e1-step-300", "e1-step-200", "e1-step-100"]
    series = lab.objects / checkpoints_of(lab).folder
    folders = sorted(str(path.relative_to(series)) for path in series.glob("*/*"))
    assert folders == [f"e1/step-{step:08d}" for step in (100, 200, 300, 350)]
    # What is on record is signed; by that ranks know what they may not delete any more.
    assert all((series / folder / "manifest.sig").exists() for folder in folders)


def checkpoints_of(lab: Lab) -> Any:
    return next(row for row in lab.rows(tables.artifact_version) if row.kind == "checkpoints")


async def test_reports_of_checkpoints_are_heard_while_the_store_is_not_there(lab: Lab) -> None:
    node, work = await lab.started()
    node.storage_works = False
    for step in (5, 10):
        digest = node.save_checkpoint(work, step)
        # Said again on a new stream: nothing is done twice.
        await node.connect()
        said = agent.CheckpointComplete(work=work, step=step, manifest_digest=digest)
        node.report(checkpoint=said)
    assert points(lab) == []
    assert [row.kind for row in lab.rows(tables.storage_task)] == ["check_checkpoint"] * 2
    # What was saved and nobody has looked at yet is progress.
    with lab.database.write() as transaction:
        transaction.run(tables.job.update().values(failures=2))
    node.fail(work, "RANK_LOST", "killed")
    assert (lab.job().state, lab.rows(tables.job)[0].failures) == (Job.STATE_QUEUED, 1)
    lab.restart()
    assert points(lab) == ["e1-step-10", "e1-step-5"]


async def test_checkpoints_are_seen_listed_and_deleted(lab: Lab) -> None:
    node, work = await lab.started(keep_last=10)
    digests = [node.save_checkpoint(work, step) for step in (5, 10, 15)]
    request = checkpoint_service_pb2.ListCheckpointsRequest(parent=JOB, page_size=2)
    page = lab.checkpoints.list(ALICE, request)
    assert [each.name for each in page.checkpoints] == [
        f"{JOB}/checkpoints/e1-step-{step}" for step in (15, 10)
    ]
    request.page_token = page.next_page_token
    rest = lab.checkpoints.list(ALICE, request)
    assert ([each.step for each in rest.checkpoints], rest.next_page_token) == ([5], "")
    first = lab.checkpoints.get(ALICE, f"{JOB}/checkpoints/e1-step-5")
    assert (first.step, first.epoch, first.size_bytes) == (5, 1, 50)
    assert (first.state, first.manifest_digest) == (Checkpoint.STATE_COMPLETE, digests[0])
    for name in ("e1-step-7", "e2-step-5", "latest"):
        with pytest.raises(NotFound):
            lab.checkpoints.get(ALICE, f"{JOB}/checkpoints/{name}")

    with pytest.raises(FailedPrecondition, match="jobs/t1 would go on from it"):
        delete(lab, "e1-step-15")
    assert delete(lab, "e1-step-5").state == Checkpoint.STATE_DELETING
    assert delete(lab, "e1-step-5").state == Checkpoint.STATE_DELETING
    folder = lab.objects / checkpoints_of(lab).folder / "e1" / "step-00000005"
    assert folder.exists()
    # Killed in between: it is deleted by who comes next.
    lab.restart()
    assert not folder.exists()
    assert points(lab) == ["e1-step-15", "e1-step-10"]
    with pytest.raises(NotFound):
        delete(lab, "e1-step-5")


async def test_a_deleted_checkpoint_is_not_taken_in_again(lab: Lab) -> None:
    node, work = await lab.started()
    for step in (5, 10):
        node.save_checkpoint(work, step)
    node.fail(work, "INVALID_INPUT", "wrong")
    delete(lab, "e1-step-10")
    # Its files are still there when the next start asks.
    resume(lab)
    lab.look()
    await node.take()
    assert node.keys(node.started[-1].work).resume_step == 5
    lab.work.storage.do_all()
    assert points(lab) == ["e1-step-5"]


def delete(lab: Lab, identifier: str) -> checkpoint_pb2.Checkpoint:
    return lab.checkpoints.delete(
        ALICE,
        checkpoint_service_pb2.DeleteCheckpointRequest(name=f"{JOB}/checkpoints/{identifier}"),
    )


async def test_a_job_begins_with_the_checkpoint_of_another(lab: Lab) -> None:
    node, work = await lab.started()
    digest = node.save_checkpoint(work, 15)
    node.save_checkpoint(work, 20)
    node.succeed(work, MODEL)
    name = f"{JOB}/checkpoints/e1-step-15"
    job = lab.train("t2", architecture=None, from_checkpoint=name, steps=40)
    assert job.train.architecture == lab.job().train.architecture
    # While it has not ended it is not taken from it: not by hand, not with time.
    with pytest.raises(FailedPrecondition, match="jobs/t2 begins with it"):
        delete(lab, "e1-step-15")
    lab.forward(15 * 86_400, served=False)
    lab.work.checkpoints.sweep()
    assert points(lab) == ["e1-step-20", "e1-step-15"]
    await node.connect()
    lab.look()
    await node.take()
    keys = node.keys(node.started[-1].work)
    key = next(key for key in keys.inputs if key.name == name)
    assert (keys.resume_step, key.manifest_digest) == (0, digest)
    assert node.reader(key).read_bytes("weights") == b"w" * 50
    node.fail(node.started[-1].work, "INVALID_INPUT", "wrong")
    # It may be resumed, and would begin with it again.
    lab.forward(13 * 86_400, served=False)
    lab.look()
    assert points(lab) == ["e1-step-20", "e1-step-15"]
    lab.forward(2 * 86_400, served=False)
    lab.look()
    lab.work.storage.do_all()
    assert points(lab) == []


async def test_a_job_that_has_a_checkpoint_needs_not_the_one_that_it_began_with(lab: Lab) -> None:
    node, work = await lab.started()
    node.save_checkpoint(work, 20)
    node.succeed(work, MODEL)
    beginning = f"{JOB}/checkpoints/e1-step-20"
    job = lab.train("t2", architecture=None, from_checkpoint=beginning, steps=40)
    lab.look()
    await node.take()
    node.save_checkpoint(node.started[-1].work, 30)
    node.fail(node.started[-1].work, "INVALID_INPUT", "wrong")
    delete(lab, "e1-step-20")
    lab.work.storage.do_all()
    lab.jobs.resume(ALICE, job_service_pb2.ResumeJobRequest(name=job.name))
    lab.look()
    await node.take()
    keys = node.keys(node.started[-1].work)
    assert keys.resume_step == 30
    assert [key.name for key in keys.inputs] == [job.train.dataset]
    node.succeed(node.started[-1].work, MODEL)
    assert lab.job("t2").state == Job.STATE_SUCCEEDED


async def test_an_old_agent_gets_no_job_whose_beginning_it_would_leave_out(lab: Lab) -> None:
    node, work = await lab.started()
    node.save_checkpoint(work, 20)
    node.succeed(work, MODEL)
    lab.train("t2", architecture=None, from_checkpoint=f"{JOB}/checkpoints/e1-step-20", steps=40)
    old = await lab.connected("n2")
    old.hello.ClearField("capabilities")
    for each in (node, old):
        each.disconnect()
    await old.connect()
    lab.look()
    assert lab.job("t2").state == Job.STATE_QUEUED
    assert "its agent is too old for this job: update it" in lab.job("t2").state_reason


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        ({"steps": 20}, "steps", "is 20, and the checkpoint has done 20 of them"),
        ({"architecture": {"layers": 8}}, "architecture", "is another than that of the checkpoint"),
        ({"vocabulary": 1024}, "dataset", "has a vocabulary of 1024, the checkpoint one of 512"),
        (
            {"from_checkpoint": "e1-step-5"},
            "from_checkpoint",
            "appliance checkpoint list t1 --project demo",
        ),
        ({"from_checkpoint": "elsewhere"}, "from_checkpoint", "is in project other"),
        ({"from_checkpoint": "running"}, "from_checkpoint", "is of a job that has not ended"),
        ({"tokenizer": "words"}, "dataset", "was made with another tokenizer"),
    ],
)
async def test_a_beginning_that_does_not_fit_is_refused(
    lab: Lab, changes: dict[str, Any], field: str, why: str
) -> None:
    node, work = await lab.started()
    node.save_checkpoint(work, 20)
    if changes.get("from_checkpoint") != "running":
        node.succeed(work, MODEL)
    shape = job_pb2.Architecture()
    shape.CopyFrom(lab.job().train.architecture)
    for key, value in changes.get("architecture", {}).items():
        setattr(shape, key, value)
    name = f"{JOB}/checkpoints/{changes.get('from_checkpoint', 'e1-step-20')}"
    if name.endswith("running"):
        name = f"{JOB}/checkpoints/e1-step-20"
    if name.endswith("elsewhere"):
        name = "projects/other/jobs/t1/checkpoints/e1-step-20"
    with pytest.raises(InvalidInput) as raised:
        lab.train(
            "t2",
            lab.tokens("more", changes.get("vocabulary", 512), changes.get("tokenizer", "")),
            architecture=shape,
            from_checkpoint=name,
            steps=changes.get("steps", 40),
        )
    assert why in raised.value.fields[f"job.train.{field}"]
    if "from_checkpoint" in changes:
        # Nothing else is said: of a shape that was left out, too.
        assert list(raised.value.fields) == ["job.train.from_checkpoint"]


async def test_a_full_store_pauses_a_job_until_it_has_space(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, work = await lab.started()
    node.save_checkpoint(work, 5)
    full = True

    def probe(*_: object) -> None:
        if full:
            raise StoreFull("No space is left for probe in the object store.")

    monkeypatch.setattr(PausedJobs, "_probe", probe)
    node.fail(work, "STORE_FULL", "No space is left for rank-00000.safetensors.")
    job = lab.job()
    assert (job.state, lab.rows(tables.job)[0].failures) == (Job.STATE_PAUSED, 0)
    assert job.state_reason == (
        "paused until the object store has space, then it goes on by itself: No space is left for"
        " rank-00000.safetensors."
    )
    assert lab.work.leases.capacity("n1", 4, GIB).free == [0, 1, 2, 3]
    lab.restart()
    lab.forward(120)
    lab.work.storage.do_all()
    assert lab.job().state == Job.STATE_PAUSED
    full = False
    lab.forward(61)
    lab.work.storage.do_all()
    job = lab.job()
    assert (job.state, job.state_reason) == (
        Job.STATE_QUEUED,
        "goes on: the object store has space again",
    )
    await node.connect()
    lab.look()
    await node.take()
    assert node.keys(node.started[-1].work).resume_step == 5


async def test_a_paused_job_is_resumed_by_hand_or_cancelled(lab: Lab) -> None:
    node, work = await lab.started()
    node.storage_works = False
    node.fail(work, "STORE_FULL", "full")
    assert resume(lab).state == Job.STATE_QUEUED
    lab.look()
    await node.take()
    node.fail(node.started[-1].work, "STORE_FULL", "full")
    lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=JOB))
    lab.work.storage.do_all()
    assert lab.job().state == Job.STATE_CANCELLED
    assert not list(lab.objects.glob("demo/probe-*"))


async def test_what_an_older_start_saved_unheard_is_deleted_when_a_newer_one_has_saved(
    lab: Lab,
) -> None:
    node, work = await lab.started()
    node.save_checkpoint(work, 5)
    node.fail(work, "RANK_LOST", "killed")
    lab.wait(60, node)
    lab.look()
    await node.take()
    second = node.started[-1].work
    key = next(key for key in node.keys(second).outputs if key.kind == "checkpoints")
    series = lab.objects / key.folder
    # The node of the first start was cut off, and went on.
    write(node.writer(key, 1, "e1/step-00000050"), {"w": b"w"})
    (series / "e1" / "step-00000060").mkdir()
    digest = write(node.writer(key, 2, "e2/step-00000010"), {"w": b"w"})
    said = agent.CheckpointComplete(work=second, step=10, manifest_digest=digest)
    node.report(checkpoint=said)
    folders = sorted(str(path.relative_to(series)) for path in series.glob("*/*"))
    assert folders == ["e1/step-00000005", "e2/step-00000010"]


async def test_a_store_that_is_not_mounted_costs_nothing(lab: Lab) -> None:
    node, work = await lab.started()
    node.save_checkpoint(work, 5)
    away = lab.objects.with_name("away")
    lab.objects.rename(away)
    lab.objects.mkdir(mode=0o700)
    with pytest.raises(Unavailable, match="the object store is not there"):
        node.keys(work)
    node.storage_works = False
    node.running.clear()
    node.report(
        job_ended=agent.JobEnded(
            work=work,
            succeeded=True,
            outputs=[agent.OutputComplete(slot="model", manifest_digest="0" * 64)],
        )
    )
    lab.restart()
    for _ in range(3):
        lab.forward(61)
        lab.work.storage.do_all()
    assert lab.job().state == Job.STATE_REGISTERING
    assert re.match(r"the object store is not there: .*; tried again at ", lab.job().state_reason)
    assert lab.objects.is_dir()
    assert list(lab.objects.iterdir()) == []
    lab.objects.rmdir()
    away.rename(lab.objects)
    lab.forward(61)
    lab.work.storage.do_all()
    # Now it is judged: there was no such output.
    assert lab.job().state == Job.STATE_FAILED
    assert points(lab) == ["e1-step-5"]


async def test_jobs_that_waited_when_there_was_no_queue_are_taken_up(lab: Lab) -> None:
    node, work = await lab.started()
    node.storage_works = False
    node.succeed(work, MODEL)
    with lab.database.write() as transaction:
        transaction.run(tables.storage_task.delete())
    lab.restart()
    assert lab.job().state == Job.STATE_SUCCEEDED


async def test_a_checkpoint_says_why_it_is_still_being_deleted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, work = await lab.started()
    for step in (5, 10, 15):
        node.save_checkpoint(work, step)
    request = checkpoint_service_pb2.ListCheckpointsRequest(parent=JOB)

    def reasons() -> dict[int, str]:
        return {
            each.step: each.state_reason
            for each in lab.checkpoints.list(ALICE, request).checkpoints
        }

    delete(lab, "e1-step-10")
    assert reasons() == {15: "", 10: ""}
    monkeypatch.setattr(
        CheckpointFolders, "delete", lambda *_: _raise(OSError(errno.EIO, "Input/output error"))
    )
    lab.work.storage.do_all()
    found = reasons()
    assert found[15] == ""
    assert re.fullmatch(r"Input/output error; tried again at \d\d:\d\d:\d\d UTC", found[10])
    monkeypatch.undo()
    lab.forward(61)
    lab.work.storage.do_all()
    assert list(reasons()) == [15]


def _raise(error: Exception) -> None:
    raise error


async def test_what_somebody_waits_for_comes_before_deletions(lab: Lab) -> None:
    tasks = lab.work.tasks
    with lab.database.write() as transaction:
        for number in range(3):
            tasks.add(transaction, TaskKind.DELETE_FOLDER, f"demo/{number}")
        tasks.add(transaction, TaskKind.REGISTER, "one")
        for step in (2, 3):
            tasks.add(transaction, TaskKind.CHECK_CHECKPOINT, "two", epoch=1, step=step)
    taken = [tasks.take(TaskKind) for _ in range(6)]
    # Of one subject one at a time.
    assert [task and task.subject for task in taken] == [
        "one",
        "two",
        "demo/0",
        "demo/1",
        "demo/2",
        None,
    ]
    first = taken[0]
    assert first is not None
    tasks.failed(first, "it hangs")
    assert tasks.take(TaskKind) is None
    lab.forward(1)
    again = tasks.take(TaskKind)
    assert again is not None
    assert (again.subject, again.attempts) == ("one", 1)
    # A thread of ours still has it, however long ago it took it.
    lab.forward(2 * 3600, served=False)
    assert tasks.take(TaskKind) is None


async def test_a_paused_job_needs_room_for_a_checkpoint_and_leaves_no_half_ones(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, work = await lab.started()
    node.save_checkpoint(work, 5)
    key = next(key for key in node.keys(work).outputs if key.kind == "checkpoints")
    half = lab.objects / key.folder / "e1" / "step-00000010"
    half.mkdir()
    (half / "rank-00000.safetensors").write_bytes(b"x")
    node.fail(work, "STORE_FULL", "full")
    monkeypatch.setattr(ObjectStore, "free_bytes", lambda _: MIN_BYTES - 1)
    lab.forward(61)
    lab.work.storage.do_all()
    assert (lab.job().state, half.exists(), points(lab)) == (Job.STATE_PAUSED, False, ["e1-step-5"])
    # What it waits for is said where people look.
    said = lab.job().state_reason
    assert said.startswith(
        "paused until the object store has space, then it goes on by itself: full; "
    )
    assert "bytes left, the job needs 67,108,864; tried again at " in said
    monkeypatch.setattr(ObjectStore, "free_bytes", lambda _: MIN_BYTES)
    lab.forward(61)
    lab.work.storage.do_all()
    assert lab.job().state == Job.STATE_QUEUED
    assert not list((lab.objects / "demo").glob("probe-*"))


async def test_nothing_is_taken_in_where_the_store_is_not_mounted(lab: Lab) -> None:
    (lab.objects / "store.txt").unlink()
    with pytest.raises(Unavailable, match="Mount its file system"):
        lab.text()
    # Once it is known again, by what is in it.
    lab.restart()
    assert lab.text()
