"""Jobs from the queue to their end, over agents that live, die, lie and come back."""

from __future__ import annotations

import errno
import itertools
import re
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.control.services.leases import NODE_LOST_SECONDS, UNNAMED_SECONDS, Share
from appliance.control.store import tables
from appliance.core.checkpoints import CheckpointPoint
from appliance.core.errors import (
    AuditUnavailable,
    Exhausted,
    FailedPrecondition,
    InvalidInput,
    LeaseLost,
    Unavailable,
)
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, GIB, PROJECT, FakeAgent, Lab, prepared_files, write

Job = job_pb2.Job
JOB = f"projects/{PROJECT}/jobs/t1"
MODEL = {"model": tiny_model.files()}


def kinds(lab: Lab) -> list[str]:
    """Of the versions that there are, complete or not."""
    return sorted(row.kind for row in lab.rows(tables.artifact_version))


async def test_a_job_goes_from_the_queue_to_a_registered_signed_output(lab: Lab) -> None:
    node = await lab.connected("n1")
    dataset = lab.tokens()
    lab.train("t1", dataset)
    assert lab.job().state == Job.STATE_QUEUED
    lab.look()
    await node.take()
    order = node.started[0]
    assert (order.world_size, order.local_ranks, list(order.devices)) == (1, 1, [0])
    assert (order.rendezvous, order.job.train.dataset) == ("127.0.0.1:0", dataset)
    assert (lab.job().state, list(lab.job().nodes)) == (Job.STATE_STARTING, ["nodes/n1"])

    keys = node.keys(order.work)
    assert [key.name for key in keys.inputs] == [dataset]
    assert node.reader(keys.inputs[0]).read_bytes("index.json") == b"{}"
    assert {key.kind: key.name for key in keys.outputs}[
        "model"
    ] == "projects/demo/models/m-t1/versions/1"

    node.progress(order.work, 5, loss=2.5)
    assert (lab.job().state, lab.job().progress.metrics["loss"]) == (Job.STATE_RUNNING, 2.5)
    node.succeed(order.work, MODEL)

    job = lab.job()
    assert (job.state, job.state_reason) == (Job.STATE_SUCCEEDED, "")
    assert list(job.outputs) == ["projects/demo/models/m-t1/versions/1"]
    assert dict(job.result.values) == {"loss_last": 1.5}
    model = lab.models.get_version(ALICE, job.outputs[0])
    assert (model.parameters, model.format, model.job) == (
        tiny_model.PARAMETERS,
        "bfloat16",
        "projects/demo/jobs/t1",
    )
    assert list(model.inputs) == [dataset]
    # The series of checkpoints is no longer needed, and the output is readable under its signature.
    assert [row.kind for row in lab.rows(tables.artifact_version)] == ["dataset", "model"]
    assert lab.work.leases.of_node("n1") == []


async def test_the_audit_log_says_what_a_job_made_and_why_one_failed(lab: Lab) -> None:
    node = await lab.connected("n1")
    dataset = lab.tokens()
    for name in ("t1", "t2"):
        lab.train(name, dataset)
        lab.look()
        await node.take()
    good, bad = (order.work for order in node.started)
    node.succeed(good, MODEL)
    node.fail(bad, "INVALID_INPUT")
    events = [each for each in lab.base.opened.log.newest() if each["kind"] == "event"][::-1]
    assert [(each["method"], each["resource"], each["outcome"]) for each in events] == [
        ("job.succeeded", "projects/demo/jobs/t1", "OK"),
        ("job.failed", "projects/demo/jobs/t2", "INVALID_INPUT"),
    ]
    assert {each["principal"] for each in events} == {"control"}
    outputs = events[0]["details"]["made"]["outputs"]
    assert list(outputs) == ["projects/demo/models/m-t1/versions/1"]
    assert len(next(iter(outputs.values()))) == 64


async def test_what_cannot_be_recorded_does_not_appear(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of a job's outputs comes before they do; a failed job ends in any case."""
    node = await lab.connected("n1")
    dataset = lab.tokens()
    for name in ("t1", "t2"):
        lab.train(name, dataset)
        lab.look()
        await node.take()
    good, bad = (order.work for order in node.started)
    refused: Future[int] = Future()
    refused.set_exception(AuditUnavailable("the disk is full"))
    monkeypatch.setattr(lab.base.opened.log, "append", lambda _: refused)
    node.succeed(good, MODEL)
    assert lab.job("t1").state == Job.STATE_REGISTERING
    assert "works: the disk is full; tried again at " in lab.job("t1").state_reason
    assert list(lab.job("t1").outputs) == []
    assert not lab.rows(tables.artifact_version)[-1].complete_time
    node.fail(bad, "INVALID_INPUT")
    assert lab.job("t2").state == Job.STATE_FAILED


async def test_a_job_dated_by_a_clock_that_was_ahead_does_not_wait_for_ever(lab: Lab) -> None:
    await lab.connected("n1")
    dataset = lab.tokens()
    lab.forward(365 * 86400)
    lab.train("ahead", dataset)
    lab.forward(-365 * 86400)
    lab.train("later", dataset)
    assert [row.id for row, _ in lab.work.runs.queued()] == ["ahead", "later"]


async def test_all_ranks_of_two_nodes_or_none(lab: Lab) -> None:
    one = await lab.connected("n1", devices=2)
    lab.node("n2", devices=2)  # joined, never connected
    with pytest.raises(FailedPrecondition, match="4 ranks"):
        lab.train("t0", mesh=job_pb2.Mesh(data=2, tensor=2))
    two = await lab.connected("n3", devices=2)
    two.disconnect()
    lab.train("t1", mesh=job_pb2.Mesh(data=2, tensor=2))
    lab.look()
    await one.take()
    assert one.started == []
    assert "waiting for 4 ranks" in lab.job().state_reason
    await two.connect()
    lab.look()
    await one.take()
    await two.take()
    first, second = one.started[0], two.started[0]
    assert (first.rank_base, second.rank_base) == (0, 2)
    assert (first.node_rank, second.node_rank, first.node_count) == (0, 1, 2)
    # An agent of 0.1.0 does not say which ports are free.
    assert first.rendezvous == second.rendezvous == "127.0.0.1:29400"
    # Each node knows its name among them, for messages about its ranks.
    assert list(first.job.nodes) == list(second.job.nodes) == ["nodes/n1", "nodes/n3"]
    two.succeed(second.work)
    assert lab.job().state == Job.STATE_RUNNING
    one.succeed(first.work, MODEL)
    assert lab.job().state == Job.STATE_SUCCEEDED


async def test_a_small_job_passes_one_that_does_not_fit_now(lab: Lab) -> None:
    node = await lab.connected("n1", devices=2)
    lab.train("running", mesh=job_pb2.Mesh(data=1))
    lab.look()
    lab.train("big", mesh=job_pb2.Mesh(data=2))
    lab.train("small")
    lab.look()
    await node.take()
    assert [order.job.name.rpartition("/")[2] for order in node.started] == ["running", "small"]


async def test_a_job_that_no_node_can_run_waits_and_says_what_they_lack(lab: Lab) -> None:
    lacks = {"train": "torch is not installed: install the extra node-cpu", "prepare": ""}
    node = await lab.connected("n1", lacks=lacks)
    lab.train("t1")
    lab.look()
    await node.take()
    assert (lab.job().state, lab.job().state_reason) == (
        Job.STATE_QUEUED,
        (
            "waiting for a node that can run train jobs; node n1: torch is not installed: install"
            " the extra node-cpu"
        ),
    )
    assert node.started == []
    shown = lab.nodes.get(ALICE, "nodes/n1")
    assert [(each.kind, each.available, each.reason) for each in shown.capabilities] == [
        ("prepare", True, ""),
        ("train", False, lacks["train"]),
    ]
    # It is repaired, and its agent says hello anew.
    node.say_lacks({"train": "", "prepare": ""})
    await node.connect()
    lab.look()
    await node.take()
    assert lab.job().state == Job.STATE_STARTING
    assert [each.available for each in lab.nodes.get(ALICE, "nodes/n1").capabilities] == [True] * 2


async def test_a_job_passes_the_nodes_that_cannot_run_it_and_older_agents_can_run_all(
    lab: Lab,
) -> None:
    lame = await lab.connected("n1", lacks={"train": "no torch"})
    silent = await lab.connected("n2")
    assert list(lab.nodes.get(ALICE, "nodes/n2").capabilities) == []
    lab.train("t1", mesh=job_pb2.Mesh(data=4))
    lab.look()
    lab.train("t2", mesh=job_pb2.Mesh(data=4))
    lab.look()
    await lame.take()
    await silent.take()
    assert (len(lame.started), len(silent.started)) == (0, 1)
    assert lab.job("t2").state_reason == (
        "waiting for 4 ranks with 0.4 GiB each: 0 can start now on 1 node; node n1: no torch"
    )


async def test_a_lost_agent_gives_the_job_to_another_node_which_resumes(lab: Lab) -> None:
    one = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await one.take()
    work = one.started[0].work
    one.progress(work, 10, loss=2.0)
    digest = one.save_checkpoint(work, 10)
    two = await lab.connected("n2")
    lab.wait(NODE_LOST_SECONDS - 4, two)
    lab.look()
    assert (lab.job().epoch, lab.job().state) == (1, Job.STATE_RUNNING)
    said = lab.job().state_reason
    assert re.fullmatch(
        r"node n1 has not been heard of since \d\d:\d\d:\d\d UTC; it starts elsewhere after 300 s",
        said,
    ), said
    lab.wait(4, two)
    lab.look()
    lab.look()
    await two.take()
    job = lab.job()
    assert (job.epoch, list(job.nodes), job.state) == (2, ["nodes/n2"], Job.STATE_STARTING)
    keys = two.keys(two.started[0].work)
    assert (keys.resume_epoch, keys.resume_step, keys.resume_digest) == (1, 10, digest)
    old = {key.kind: key.folder for key in keys.outputs}

    # The node that was cut off speaks again: nothing it says counts, and it is told to stop.
    with pytest.raises(LeaseLost):
        one.keys(work)
    one.progress(work, 11, loss=9.0)
    one.report(checkpoint=agent.CheckpointComplete(work=work, step=99, manifest_digest="0" * 64))
    assert one.running == {(work.work, 1)}
    await one.connect()
    assert one.running == set()
    assert lab.job().progress.step == 10
    two.succeed(two.started[0].work, MODEL)
    assert lab.job().state == Job.STATE_SUCCEEDED
    assert len(set(old.values())) == 2


def saved(
    lab: Lab, node: FakeAgent, work: agent.WorkEpoch, epoch: int, step: int
) -> agent.CheckpointComplete:
    """A checkpoint that lies there whole, and its report, which is not sent."""
    key = next(key for key in node.keys(work).outputs if key.kind == "checkpoints")
    digest = write(node.writer(key, epoch, CheckpointPoint(epoch, step).name), {"w": b"%d" % step})
    return agent.CheckpointComplete(work=work, step=step, manifest_digest=digest)


async def test_the_next_start_takes_in_what_the_last_one_finished_unheard(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    first = node.started[0].work
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
    (row,) = lab.rows(tables.job)
    assert (row.checkpoint_epoch, row.checkpoint_step) == (1, 20)


async def test_an_older_epoch_that_came_further_does_not_beat_a_newer_one(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    first = node.started[0].work
    node.save_checkpoint(first, 10)
    node.fail(first, "RANK_LOST", "killed")
    lab.wait(60, node)
    lab.look()
    await node.take()
    second = node.started[1].work
    node.save_checkpoint(second, 12)
    key = next(key for key in node.keys(second).outputs if key.kind == "checkpoints")
    # What the older one saved is gone, and what it still saves is nobody's.
    assert not (lab.objects / key.folder / "e1").exists()
    saved(lab, node, second, 1, 300)
    node.fail(second, "RANK_LOST", "killed")
    lab.wait(60, node)
    lab.look()
    await node.take()
    keys = node.keys(node.started[2].work)
    assert (keys.resume_epoch, keys.resume_step) == (2, 12)


async def test_an_agent_of_0_1_0_saves_without_folders_of_epochs(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    first = node.started[0].work
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


async def test_heartbeats_keep_a_lease_and_answer_with_it(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    for _ in range(10):
        lab.forward(5)
        node.heartbeat()
        lab.look()
    await node.take()
    assert lab.job().epoch == 1
    last = node.leases[-1]
    assert [(work.work, work.epoch) for work in last.work] == sorted(node.running)
    assert (last.seconds, last.sequence) == (NODE_LOST_SECONDS, 7)


async def test_a_job_is_given_up_after_three_starts_without_progress(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    for epoch, pause in ((1, 60), (2, 300), (3, 0)):
        lab.look()
        await node.take()
        assert node.started[-1].work.epoch == epoch
        node.fail(node.started[-1].work, "LEADER_LOST", "its process was killed by SIGKILL")
        if pause:
            again = lab.time.wall() + timedelta(seconds=pause)
            assert lab.job().state_reason == (
                f"starts again at {again:%H:%M:%S} UTC: its process was killed by SIGKILL"
            )
            lab.wait(pause - 1, node)
            lab.look()
            assert (lab.job().state, lab.job().epoch) == (Job.STATE_QUEUED, epoch)
            lab.wait(1, node)
    job = lab.job()
    assert job.state == Job.STATE_FAILED
    assert job.state_reason == (
        "given up after 3 starts in a row without a new checkpoint; the last one ended because its"
        " process was killed by SIGKILL"
    )
    assert kinds(lab) == ["checkpoints", "dataset"]
    assert {path.name for path in (lab.objects / PROJECT).iterdir()} <= {
        row.uid for row in lab.rows(tables.artifact_version)
    }


async def test_nodes_meet_where_nobody_listens(lab: Lab) -> None:
    one = await lab.connected("n1", devices=2)
    two = await lab.connected("n2", devices=2)
    # On 29400 somebody listens who is none of ours; later on the others too.
    for name, free, port in (("t1", [29401, 29402], 29401), ("t2", [29500, 0, 70000], 29500)):
        one.free_ports = free
        one.heartbeat()
        lab.train(name, mesh=job_pb2.Mesh(data=4))
        lab.look()
        await one.take()
        await two.take()
        orders = (one.started[-1], two.started[-1])
        assert {order.rendezvous for order in orders} == {f"127.0.0.1:{port}"}
        two.succeed(orders[1].work)
        one.succeed(orders[0].work, MODEL)


async def test_a_job_waits_while_all_ports_that_are_free_are_given_out(lab: Lab) -> None:
    one = await lab.connected("n1", devices=2)
    await lab.connected("n2", devices=2)
    one.free_ports = [29401]
    one.heartbeat()
    lab.work.leases.grant("other", 0, [Share("n1", 0, (), 0, port=29401)])
    lab.train("t1", mesh=job_pb2.Mesh(data=4))
    lab.look()
    assert lab.job().state == Job.STATE_QUEUED
    assert lab.job().state_reason == "node n1 has no free port on which the nodes could meet"


async def test_a_checkpoint_on_record_begins_the_count_of_failures_anew(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    for epoch in range(1, 6):
        lab.look()
        await node.take()
        work = node.started[-1].work
        assert work.epoch == epoch
        node.save_checkpoint(work, epoch)
        node.fail(work, "RANK_LOST", "a rank was killed")
        lab.wait(60, node)
    assert lab.job().state == Job.STATE_QUEUED
    assert lab.rows(tables.job)[0].failures == 1


@pytest.mark.parametrize("how", ["down and up", "agent", "evicted", "told"])
async def test_what_others_did_never_counts_as_a_failure_of_the_job(lab: Lab, how: str) -> None:
    nodes = [await lab.connected(name) for name in ("n1", "n2", "n3")]
    lab.train("t1")
    for epoch in range(1, 6):
        lab.look()
        for node in nodes:
            await node.take()
        assert (lab.job().epoch, lab.job().state) == (epoch, Job.STATE_STARTING)
        (node,) = (node for node in nodes if node.running)
        work = node.started[-1].work
        if how == "told":
            node.fail(work, "LEASE_LOST", "the node was told to stop this work")
        elif how == "evicted":
            lab.work.leases.evict(node.node)
            await node.connect()
        else:
            node.running.clear()
            if how == "down and up":
                lab.restart()
                for each in nodes:
                    await each.connect()
            else:
                await node.connect()
            lab.wait(UNNAMED_SECONDS, *nodes)
    lab.look()
    assert lab.rows(tables.job)[0].failures == 0
    assert lab.job().state == Job.STATE_STARTING


async def test_a_control_plane_that_stood_still_takes_nobody_for_lost(lab: Lab) -> None:
    nodes = [await lab.connected(name) for name in ("n1", "n2", "n3")]
    lab.train("t1")
    lab.look()
    for node in nodes:
        await node.take()
    for _ in range(3):
        lab.forward(4 * NODE_LOST_SECONDS, served=False)
        lab.look()
        assert (lab.job().epoch, lab.job().state_reason) == (1, "")
        for node in nodes:
            node.heartbeat()


async def test_while_most_nodes_are_silent_nothing_starts_elsewhere_and_it_is_said(
    lab: Lab,
) -> None:
    nodes = [await lab.connected(name) for name in ("n1", "n2", "n3")]
    lab.train("t1")
    lab.look()
    for node in nodes:
        await node.take()
    (holder,) = (node for node in nodes if node.running)
    (other, *_) = (node for node in nodes if not node.running)
    lab.wait(NODE_LOST_SECONDS, other)
    lab.look()
    assert (lab.job().epoch, lab.job().state) == (1, Job.STATE_STARTING)
    assert lab.job().state_reason.endswith(
        " UTC; more than half of the nodes are silent, so nothing starts elsewhere"
    )
    work = holder.started[0].work
    holder.heartbeat()
    lab.look()
    assert lab.job().state_reason == ""
    holder.succeed(work, MODEL)
    assert lab.job().state == Job.STATE_SUCCEEDED


async def test_an_error_of_the_job_is_final_and_keeps_its_sentence(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    node.fail(node.started[0].work, "INVALID_INPUT", "the loss is not finite: lower learning_rate")
    job = lab.job()
    assert (job.state, job.state_reason) == (
        Job.STATE_FAILED,
        "the loss is not finite: lower learning_rate",
    )
    # Nothing stays of the model that it would have made; its checkpoints do.
    assert kinds(lab) == ["checkpoints", "dataset"]


async def test_when_one_of_two_nodes_fails_the_other_is_stopped(lab: Lab) -> None:
    one = await lab.connected("n1", devices=1)
    two = await lab.connected("n2", devices=1)
    lab.train("t1", mesh=job_pb2.Mesh(data=2))
    lab.look()
    await one.take()
    await two.take()
    two.fail(two.started[0].work, "INTERNAL", "a rank crashed")
    await one.take()
    assert one.stopped == [(one.started[0].work.work, 1)]
    assert lab.job().state == Job.STATE_FAILED
    # Devices of the stopped part stay taken until its node no longer reports it.
    assert lab.work.leases.capacity("n1", 1, GIB).free == []
    assert lab.work.leases.capacity("n2", 1, GIB).free == [0]
    one.heartbeat()
    assert lab.work.leases.capacity("n1", 1, GIB).free == [0]


async def test_cancel_ends_a_job_at_once_wherever_it_is(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    lab.train("t2", mesh=job_pb2.Mesh(data=4))
    for name in ("t1", "t2"):
        request = job_service_pb2.CancelJobRequest(name=f"projects/{PROJECT}/jobs/{name}")
        job = lab.jobs.cancel(ALICE, request)
        assert (job.state, job.state_reason) == (Job.STATE_CANCELLED, "cancelled by users/alice")
        with pytest.raises(FailedPrecondition, match="has ended"):
            lab.jobs.cancel(ALICE, request)
    await node.take()
    assert node.stopped == [(node.started[0].work.work, 1)]
    node.report(job_ended=agent.JobEnded(work=node.started[0].work, succeeded=True))
    assert lab.job("t1").state == Job.STATE_CANCELLED


async def test_a_control_plane_that_starts_again_takes_up_what_runs(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    work = node.started[0].work
    node.progress(work, 3, loss=2.0)
    lab.restart()
    assert [row.state for row in lab.rows(tables.node)] == ["LOST"]
    lab.look()
    await node.connect()
    lab.look()
    await node.take()
    assert len(node.started) == 1
    assert (lab.job().epoch, lab.job().state) == (1, Job.STATE_RUNNING)
    lab.forward(10)
    node.heartbeat()
    lab.forward(10)
    lab.look()
    node.progress(work, 4, loss=1.9)
    node.succeed(work, MODEL)
    assert lab.job().state == Job.STATE_SUCCEEDED


async def test_ends_that_were_reported_before_a_restart_are_not_forgotten(lab: Lab) -> None:
    one = await lab.connected("n1", devices=1)
    two = await lab.connected("n2", devices=1)
    lab.train("t1", mesh=job_pb2.Mesh(data=2))
    lab.look()
    await one.take()
    await two.take()
    one.succeed(one.started[0].work, MODEL)
    lab.restart()
    await one.connect()
    await two.connect()
    lab.forward(20)
    two.lab = lab
    lab.forward(-10)
    two.succeed(two.started[0].work)
    assert lab.job().state == Job.STATE_SUCCEEDED


async def test_a_restart_between_the_last_end_and_the_registration_finishes_the_job(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    monkeypatch.setattr(lab.work.registration, "run_pass", lambda: None)
    node.succeed(node.started[0].work, MODEL)
    assert lab.job().state == Job.STATE_REGISTERING
    lab.restart()
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
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    tries: list[float] = []

    def fails(*_: object, **__: object) -> None:
        tries.append(lab.time.seconds)
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(lab.work.artifacts, where, fails)
        node.succeed(node.started[0].work, MODEL)
        for _ in range(300):
            lab.forward(1)
            lab.work.registration.run_pass()
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
    lab.work.registration.run_pass()
    job = lab.job()
    assert (job.state, job.state_reason) == (Job.STATE_SUCCEEDED, "")
    assert list(job.outputs) == ["projects/demo/models/m-t1/versions/1"]


async def test_a_job_that_cannot_be_registered_can_be_cancelled(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lab.work.artifacts, "sign", fails)
    node.succeed(node.started[0].work, MODEL)
    lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=JOB))
    lab.forward(61)
    lab.work.registration.run_pass()
    assert lab.job().state == Job.STATE_CANCELLED


async def test_an_evicted_node_loses_its_stream_its_keys_and_its_job_at_once(lab: Lab) -> None:
    one = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await one.take()
    with lab.database.write() as transaction:
        lab.nodes.put_out(transaction, "n1")
    two = await lab.connected("n2")
    lab.look()
    lab.look()
    await one.take()
    await two.take()
    assert one.cut
    assert len(two.started) == 1
    with pytest.raises(LeaseLost):
        one.keys(one.started[0].work)


@pytest.mark.parametrize("change", ["byte", "missing", "epoch", "config"])
async def test_an_output_that_is_not_what_was_reported_fails_the_job(lab: Lab, change: str) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    work = node.started[0].work
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
    if change == "missing":
        (lab.objects / key.folder / "model.safetensors").unlink()
    outputs = [agent.OutputComplete(slot="model", manifest_digest=digest)]
    node.report(job_ended=agent.JobEnded(work=work, succeeded=True, outputs=outputs))
    job = lab.job()
    assert job.state == Job.STATE_FAILED
    assert job.state_reason.startswith("an output is refused: ")
    assert list(job.outputs) == []
    assert kinds(lab) == ["checkpoints", "dataset"]


async def test_a_checkpoint_that_is_not_complete_fails_the_job_and_is_not_recorded(
    lab: Lab,
) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    work = node.started[0].work
    node.progress(work, 5)
    node.save_checkpoint(work, 5)
    key = next(key for key in node.keys(work).outputs if key.kind == "checkpoints")
    (lab.objects / key.folder / "e1" / "step-00000005" / "weights").unlink()
    node.report(checkpoint=agent.CheckpointComplete(work=work, step=10, manifest_digest="0" * 64))
    assert lab.job().state == Job.STATE_FAILED
    assert lab.job().state_reason.startswith("what node n1 reported is refused: ")
    assert lab.rows(tables.job)[0].checkpoint_step == 5


async def test_a_checkpoint_that_was_replaced_before_its_turn_is_passed_over(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    work = node.started[0].work
    node.progress(work, 5)
    key = next(key for key in node.keys(work).outputs if key.kind == "checkpoints")
    write(node.writer(key, 1, "e1/step-00000020"), {"weights": b"w"})
    node.report(checkpoint=agent.CheckpointComplete(work=work, step=10, manifest_digest="0" * 64))
    assert (lab.job().state, lab.rows(tables.job)[0].checkpoint_step) == (Job.STATE_RUNNING, 0)
    node.save_checkpoint(work, 30)
    assert lab.rows(tables.job)[0].checkpoint_step == 30
    # What is there is checked whatever else is there.
    path = lab.objects / key.folder / "e1" / "step-00000040"
    write(node.writer(key, 1, f"e1/{path.name}"), {"weights": b"w"})
    node.report(checkpoint=agent.CheckpointComplete(work=work, step=40, manifest_digest="0" * 64))
    assert lab.job().state == Job.STATE_FAILED


async def test_what_ranks_write_while_a_cancelled_job_ends_goes_when_they_have_ended(
    lab: Lab,
) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    work = node.started[0].work
    node.save_checkpoint(work, 5)
    keys = {key.kind: key for key in node.keys(work).outputs}
    lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=JOB))
    model, series = (lab.objects / keys[kind].folder for kind in ("model", "checkpoints"))
    assert not model.exists()
    write(node.writer(keys["model"], 1), {"weights": b"w"})
    assert model.exists()
    node.report(job_ended=agent.JobEnded(work=work, reason="LEASE_LOST", message="told to stop"))
    assert not model.exists()
    assert series.exists()


def resume(lab: Lab, **more: Any) -> job_pb2.Job:
    return lab.jobs.resume(ALICE, job_service_pb2.ResumeJobRequest(name=JOB, **more))


@pytest.mark.parametrize("how", ["fails", "is cancelled", "gives up"])
async def test_a_job_that_ended_badly_is_resumed_from_its_checkpoint(lab: Lab, how: str) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    work = node.started[0].work
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
    # Now nobody needs it any more.
    assert "checkpoints" not in kinds(lab)
    assert (lab.job().checkpoint_step, lab.rows(tables.job)[0].failures) == (5, 0)


async def test_what_is_at_work_or_has_succeeded_is_not_resumed(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    with pytest.raises(FailedPrecondition, match="the job is queued"):
        resume(lab)
    lab.look()
    await node.take()
    node.succeed(node.started[0].work, MODEL)
    with pytest.raises(FailedPrecondition, match="the job has succeeded"):
        resume(lab)


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


async def test_checkpoints_of_a_job_that_ended_are_kept_for_two_weeks(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await node.take()
    work = node.started[0].work
    node.save_checkpoint(work, 5)
    key = next(key for key in node.keys(work).outputs if key.kind == "checkpoints")
    node.fail(work, "INVALID_INPUT", "wrong")
    for days, kept in ((13.9, True), (0.2, False)):
        lab.forward(days * 86_400, served=False)
        lab.look()
        assert ((lab.objects / key.folder).exists(), "checkpoints" in kinds(lab)) == (kept, kept)
        assert lab.job().checkpoint_step == (5 if kept else 0)
    # It can still be resumed, from the beginning.
    await node.connect()
    resume(lab)
    lab.look()
    await node.take()
    assert node.keys(node.started[-1].work).resume_step == 0


async def test_a_prepare_job_makes_a_dataset_and_a_tokenizer_with_a_report(lab: Lab) -> None:
    node = await lab.connected("n1")
    raw = lab.text()
    spec = job_pb2.PrepareSpec(
        datasets=[raw],
        output_dataset="projects/demo/datasets/clean",
        output_tokenizer="projects/demo/tokenizers/words",
    )
    lab.jobs.create(
        ALICE,
        job_service_pb2.CreateJobRequest(
            parent="projects/demo", job_id="p1", job=job_pb2.Job(prepare=spec)
        ),
    )
    lab.look()
    await node.take()
    node.succeed(node.started[0].work, prepared_files())
    job = lab.job("p1")
    assert (job.state, list(job.outputs)) == (
        Job.STATE_SUCCEEDED,
        ["projects/demo/datasets/clean/versions/1", "projects/demo/tokenizers/words"],
    )
    version = lab.datasets.get_version(ALICE, job.outputs[0])
    assert (version.documents, version.tokens, version.tokenizer) == (
        4,
        107,
        "projects/demo/tokenizers/words",
    )
    report = lab.datasets.prepare_report(ALICE, version.name)
    assert (report.kept, dict(report.steps[0].dropped)) == (4, {"same": 1})
    with pytest.raises(FailedPrecondition, match="was uploaded"):
        lab.datasets.prepare_report(ALICE, raw)
