"""Jobs that somebody pauses: wherever they are, whatever happens meanwhile, and on again."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.control.services.data.storage_tasks import MAX_WAIT
from appliance.control.services.fleet.leases import NODE_LOST_SECONDS
from appliance.control.services.work.pauses import FIRST_PAUSE, LEEWAY_SECONDS
from appliance.control.store import tables
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.waiting import pause_after
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, GIB, PROJECT, FakeAgent, Lab

Job = job_pb2.Job
JOB = f"projects/{PROJECT}/jobs/t1"
MODEL = {"model": tiny_model.files()}
GRACE = 300.0


def pause(lab: Lab, name: str = JOB, **more: Any) -> job_pb2.Job:
    return lab.jobs.pause(ALICE, job_service_pb2.PauseJobRequest(name=name, **more))


def resume(lab: Lab) -> job_pb2.Job:
    return lab.jobs.resume(ALICE, job_service_pb2.ResumeJobRequest(name=JOB))


async def save_and_end(node: FakeAgent, work: agent.WorkEpoch, step: int) -> None:
    """What an agent does that is told to: its ranks save, then end."""
    node.save_checkpoint(work, step)
    node.fail(work, "PAUSED", f"saved the checkpoint of step {step}")


async def rest(lab: Lab, *nodes: FakeAgent) -> None:
    """Let an hour pass."""
    for _ in range(4):
        lab.wait(900, *nodes)
        for node in nodes:
            await node.take()


def row_of(lab: Lab) -> Any:
    return lab.rows(tables.job)[0]


async def running(lab: Lab) -> tuple[FakeAgent, agent.WorkEpoch]:
    node, work = await lab.started()
    node.progress(work, 3, loss=2.0)
    return node, work


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_job_saves_ends_and_goes_on_from_there_when_it_is_resumed(
    lab: Lab, *, restarted: bool
) -> None:
    node, work = await running(lab)
    job = pause(lab)
    assert (job.state, job.state_reason) == (
        Job.STATE_PAUSING,
        "users/alice has paused it: it saves a checkpoint, in 300 s at most, and ends",
    )
    if restarted:
        # The row is the order: nobody had been told.
        lab.restart()
        await node.connect()
    lab.look()
    await node.take()
    assert (node.saves[0].work, node.saves[0].grace_seconds) == (work, GRACE)
    assert node.stopped == []
    node.progress(work, 4, loss=1.9)
    assert lab.job().state == Job.STATE_PAUSING
    await save_and_end(node, work, 5)
    job = lab.job()
    assert (job.state, job.state_reason, job.checkpoint_step) == (
        Job.STATE_PAUSED,
        "paused by users/alice: saved the checkpoint of step 5",
        5,
    )
    assert not job.has_logs
    logs = lab.jobs.logs(ALICE, job_service_pb2.GetJobLogsRequest(name=JOB))
    assert logs.reason == "the job is paused: output is kept when a start ends without success"
    assert lab.work.leases.capacity("n1", 4, GIB).free == [0, 1, 2, 3]

    # It goes on when somebody says so, and never by itself.
    await rest(lab, node)
    lab.restart()
    await node.connect()
    for _ in range(3):
        await rest(lab, node)
        lab.look()
        lab.work.storage.do_all()
    assert lab.job().state == Job.STATE_PAUSED
    assert resume(lab).state == Job.STATE_QUEUED
    lab.look()
    await node.take()
    second = node.started[-1].work
    assert (second.epoch, node.keys(second).resume_step) == (2, 5)
    assert (row_of(lab).failures, row_of(lab).restarts, row_of(lab).pause) == (0, 0, {})
    events = [each for each in lab.base.opened.log.newest() if each["method"] == "job.paused"]
    assert [each["outcome"] for each in events] == ["PAUSED"]


async def test_the_order_is_repeated_until_the_work_has_ended(lab: Lab) -> None:
    node, _ = await running(lab)
    pause(lab)
    for _ in range(3):
        lab.look()
        lab.forward(1)
    await node.take()
    assert [order.grace_seconds for order in node.saves] == [GRACE, GRACE - 1, GRACE - 2]
    # One that is away hears of it when it is back, with what is left of the time.
    node.disconnect()
    lab.wait(100)
    lab.look()
    await node.connect()
    lab.look()
    await node.take()
    assert node.saves[-1].grace_seconds == GRACE - 102


async def test_a_job_of_two_nodes_pauses_when_both_have_ended(lab: Lab) -> None:
    one = await lab.connected("n1", devices=1)
    two = await lab.connected("n2", devices=1)
    lab.train("t1", mesh=job_pb2.Mesh(data=2))
    lab.look()
    await one.take()
    await two.take()
    work = one.started[0].work
    one.progress(work, 3)
    pause(lab)
    lab.look()
    await one.take()
    await two.take()
    assert (len(one.saves), len(two.saves)) == (1, 1)
    # The other node is heard first: the checkpoint that the first one reports still counts.
    two.fail(work, "PAUSED", "saved the checkpoint of step 4")
    assert lab.job().state == Job.STATE_PAUSING
    assert lab.work.leases.capacity("n2", 1, GIB).free == [0]
    lab.restart()
    await one.connect()
    await two.connect()
    lab.look()
    await one.take()
    await two.take()
    assert (len(one.saves), len(two.saves), two.stopped) == (2, 1, [])
    await save_and_end(one, work, 4)
    job = lab.job()
    assert (job.state, job.checkpoint_step, job.has_logs) == (Job.STATE_PAUSED, 4, False)
    assert lab.work.leases.capacity("n1", 1, GIB).free == [0]


async def test_a_job_that_waits_for_devices_never_starts(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train()
    job = pause(lab)
    assert (job.state, job.state_reason) == (Job.STATE_PAUSED, "paused by users/alice")
    lab.look()
    await node.take()
    assert node.started == []
    resume(lab)
    lab.look()
    await node.take()
    assert [order.work.epoch for order in node.started] == [1]


async def test_a_job_that_starts_pauses_before_its_ranks_work(lab: Lab) -> None:
    node, work = await lab.started()
    assert pause(lab).state == Job.STATE_PAUSING
    lab.look()
    await node.take()
    node.fail(work, "LEASE_LOST", "it had not begun")
    job = lab.job()
    assert job.state == Job.STATE_PAUSED
    assert job.state_reason == (
        "paused by users/alice without a new checkpoint, because it had not begun; then it begins"
        " anew"
    )
    assert row_of(lab).failures == 0


async def test_a_job_that_is_done_is_not_paused(lab: Lab) -> None:
    node, work = await running(lab)
    node.storage_works = False
    node.succeed(work, MODEL)
    assert lab.job().state == Job.STATE_REGISTERING
    with pytest.raises(FailedPrecondition, match="what it made is being registered"):
        pause(lab)
    lab.work.storage.do_all()
    with pytest.raises(FailedPrecondition, match="has ended"):
        pause(lab)


async def test_a_job_that_is_done_before_it_has_paused_is_registered(lab: Lab) -> None:
    node, work = await running(lab)
    pause(lab)
    node.succeed(work, MODEL)
    assert (lab.job().state, lab.job().state_reason) == (Job.STATE_SUCCEEDED, "")


async def test_a_pause_for_a_full_store_becomes_one_by_a_person(lab: Lab) -> None:
    node, work = await running(lab)
    node.storage_works = False
    node.fail(work, "STORE_FULL", "full")
    assert pause(lab).state_reason == "paused by users/alice"
    await rest(lab, node)
    lab.work.storage.do_all()
    lab.restart()
    lab.work.storage.do_all()
    assert (lab.job().state, lab.rows(tables.storage_task)) == (Job.STATE_PAUSED, [])
    assert resume(lab).state == Job.STATE_QUEUED


async def test_a_pause_that_stands_stays_as_it_is(lab: Lab) -> None:
    node, work = await running(lab)
    pause(lab, grace_seconds=60)
    assert "in 60 s at most" in pause(lab, grace_seconds=5).state_reason
    await save_and_end(node, work, 4)
    assert pause(lab).state_reason == "paused by users/alice: saved the checkpoint of step 4"


async def test_a_job_is_not_resumed_before_it_has_paused(lab: Lab) -> None:
    await running(lab)
    pause(lab)
    with pytest.raises(FailedPrecondition, match="is pausing: resume it when it is PAUSED"):
        resume(lab)


async def test_a_job_is_cancelled_while_it_pauses(lab: Lab) -> None:
    node, work = await running(lab)
    pause(lab)
    lab.look()
    lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=JOB))
    await node.take()
    assert node.stopped == [(work.work, 1)]
    node.fail(work, "PAUSED", "saved the checkpoint of step 4")
    lab.look()
    assert lab.job().state == Job.STATE_CANCELLED


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_job_that_does_not_save_in_time_is_paused_all_the_same(
    lab: Lab, *, restarted: bool
) -> None:
    node, work = await running(lab)
    node.save_checkpoint(work, 2)
    pause(lab, grace_seconds=10)
    lab.look()
    lab.wait(5, node)
    if restarted:
        # Times are not stored: it has its whole time again, and no more.
        lab.restart()
        await node.connect()
        lab.look()
    lab.wait(10 + LEEWAY_SECONDS - 6, node)
    lab.look()
    assert lab.job().state == Job.STATE_PAUSING
    lab.wait(6, node)
    lab.look()
    await node.take()
    assert node.stopped == [(work.work, 1)]
    job = lab.job()
    assert (job.state, job.checkpoint_step) == (Job.STATE_PAUSED, 2)
    assert "because its nodes have not said within 10 s that one was saved" in job.state_reason


@pytest.mark.parametrize("how", ["evicted", "unnamed", "killed", "full", "too late", "0.1.0"])
async def test_a_job_whose_ranks_are_lost_while_it_pauses_does_not_start_again(
    lab: Lab, how: str
) -> None:
    node, work = await running(lab)
    other = await lab.connected("n2")
    node.save_checkpoint(work, 2)
    node.old = how == "0.1.0"
    pause(lab)
    lab.look()
    await node.take()
    match how:
        case "evicted":
            with lab.database.write() as transaction:
                nodes = tables.node
                transaction.run(nodes.update().where(nodes.c.id == "n1").values(state="EVICTED"))
        case "unnamed":
            node.running.clear()
            lab.wait(20, node, other)
        case "killed":
            node.fail(work, "RANK_LOST", "rank 0 was killed by SIGKILL")
        case "full":
            node.fail(work, "STORE_FULL", "No space is left")
        case "too late":
            node.fail(work, "LEASE_LOST", "none was saved within 300 s")
        case "0.1.0":
            assert node.stopped == [(work.work, 1)]
            node.fail(work, "LEASE_LOST", "the node was told to stop this work")
    for _ in range(2):
        lab.look()
        await rest(lab, node, other)
        lab.work.storage.do_all()
    await other.take()
    job = lab.job()
    assert job.state == Job.STATE_PAUSED
    assert job.state_reason.startswith("paused by users/alice without a new checkpoint, because ")
    assert (row_of(lab).failures, row_of(lab).pauses, row_of(lab).epoch) == (0, 0, 1)
    resume(lab)
    lab.look()
    await node.take()
    await other.take()
    taker = other if other.started else node
    assert taker.keys(taker.started[-1].work).resume_step == 2


async def test_a_job_that_is_lost_at_the_moment_of_the_order_does_not_wait_for_its_grace(
    lab: Lab,
) -> None:
    _, work = await running(lab)
    lab.work.leases.release(work.work, 1)
    pause(lab)
    lab.look()
    assert lab.job().state == Job.STATE_PAUSED
    assert "because its start was over already" in lab.job().state_reason


async def test_a_job_whose_node_is_silent_is_paused_without_it(lab: Lab) -> None:
    node, work = await running(lab)
    other = await lab.connected("n2")
    pause(lab, grace_seconds=86_400)
    lab.look()
    lab.wait(20, other)
    lab.look()
    said = lab.job().state_reason
    assert said.startswith("users/alice has paused it: ")
    assert "; node n1 has not been heard of since " in said
    # It starts nowhere, and nobody is told so.
    assert "elsewhere" not in said
    lab.wait(NODE_LOST_SECONDS, other)
    lab.look()
    await other.take()
    job = lab.job()
    assert (job.state, other.started) == (Job.STATE_PAUSED, [])
    assert "because node n1 has not been heard of for 300 s" in job.state_reason
    # It comes back, and hears that this is over.
    await node.connect()
    assert node.stopped[-1] == (work.work, 1)
    logs = lab.jobs.logs(ALICE, job_service_pb2.GetJobLogsRequest(name=JOB))
    assert [each.text for each in logs.nodes] == [""]


async def test_an_error_of_the_job_itself_ends_it_also_while_it_pauses(lab: Lab) -> None:
    node, work = await running(lab)
    pause(lab)
    node.fail(work, "FAILED_PRECONDITION", "The loss became NaN or infinite at step 4.")
    assert (lab.job().state, lab.job().state_reason) == (
        Job.STATE_FAILED,
        "The loss became NaN or infinite at step 4.",
    )


@pytest.mark.attack
async def test_a_node_that_pauses_what_nobody_paused_starts_it_again(lab: Lab) -> None:
    node, work = await running(lab)
    node.fail(work, "PAUSED", "saved the checkpoint of step 4")
    assert (lab.job().state, row_of(lab).failures) == (Job.STATE_QUEUED, 0)
    assert "nobody here knows of such an order" in lab.job().state_reason


@pytest.mark.parametrize("kind", ["prepare", "train"])
async def test_what_has_nothing_to_save_is_paused_at_once(lab: Lab, kind: str) -> None:
    node = await lab.connected("n1")
    spec = job_pb2.PrepareSpec(
        datasets=[lab.text()],
        output_dataset="projects/demo/datasets/clean",
        output_tokenizer="projects/demo/tokenizers/words",
    )
    if kind == "train":
        lab.train()
    else:
        lab.jobs.create(
            ALICE,
            job_service_pb2.CreateJobRequest(
                parent=f"projects/{PROJECT}", job_id="t1", job=Job(prepare=spec)
            ),
        )
    lab.look()
    await node.take()
    work = node.started[0].work
    node.progress(work, 1)
    if kind == "train":
        node.save_checkpoint(work, 10)
    job = pause(lab, grace_seconds=0) if kind == "train" else pause(lab)
    assert job.state == Job.STATE_PAUSED
    why = {
        "prepare": "users/alice: a job of kind prepare keeps no checkpoints, and begins anew",
        "train": "users/alice without a new checkpoint, because it was given no time to save one;"
        " then it goes on from step 10",
    }
    assert job.state_reason.startswith(f"paused by {why[kind]}")
    await node.take()
    assert node.stopped == [(work.work, 1)]
    node.fail(work, "LEASE_LOST", "the node was told to stop this work")
    resume(lab)
    lab.look()
    await node.take()
    assert node.started[-1].work.epoch == 2


async def test_a_grace_that_cannot_be_is_refused(lab: Lab) -> None:
    await running(lab)
    with pytest.raises(InvalidInput) as caught:
        pause(lab, grace_seconds=-1)
    assert caught.value.fields == {"grace_seconds": "must be 0 to 86,400"}
    assert lab.job().state == Job.STATE_RUNNING


async def test_a_job_that_pauses_again_and_again_for_a_full_store_waits_longer(lab: Lab) -> None:
    minutes = [
        pause_after(pauses, FIRST_PAUSE, MAX_WAIT).total_seconds() / 60
        for pauses in (1, 2, 3, 4, 5, 6, 7, 5000)
    ]
    assert minutes == [1, 2, 4, 8, 16, 30, 30, 30]
    node, work = await running(lab)
    for expected in (1, 2, 4):
        node.fail(work, "STORE_FULL", "full")
        lab.wait(60 * expected - 1, node)
        lab.work.storage.do_all()
        assert lab.job().state == Job.STATE_PAUSED
        lab.wait(1, node)
        lab.work.storage.do_all()
        lab.look()
        await node.take()
        work = node.started[-1].work
        node.progress(work, 3)
    # It has come further: the next pause is a first one.
    node.save_checkpoint(work, 5)
    assert row_of(lab).pauses == 0
    node.fail(work, "STORE_FULL", "full")
    lab.wait(60, node)
    lab.work.storage.do_all()
    assert lab.job().state == Job.STATE_QUEUED
