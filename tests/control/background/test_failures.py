"""Starts of jobs that fail, are lost or are silent: what counts, what starts again, and when."""

from __future__ import annotations

import re
import threading
from datetime import timedelta
from typing import Any

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.control.metrics.work_metrics import WorkMetrics
from appliance.control.services.fleet.certificates import evict_in
from appliance.control.services.fleet.leases import NODE_LOST_SECONDS, UNNAMED_SECONDS
from appliance.control.services.work import job_rows
from appliance.control.store import tables
from appliance.core.errors import (
    LeaseLost,
)
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.jobs import JobState
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, GIB, PROJECT, Lab, train_request

Job = job_pb2.Job
JOB = f"projects/{PROJECT}/jobs/t1"
MODEL = {"model": tiny_model.files()}


def kinds(lab: Lab) -> list[str]:
    """Of the versions that there are, complete or not."""
    return sorted(row.kind for row in lab.rows(tables.artifact_version))


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


async def test_heartbeats_keep_a_lease_and_answer_with_it(lab: Lab) -> None:
    node, _ = await lab.started()
    for _ in range(10):
        lab.forward(5)
        node.heartbeat()
        lab.look()
    await node.take()
    assert lab.job().epoch == 1
    last = node.leases[-1]
    assert [(work.work, work.epoch) for work in last.work] == sorted(node.running)
    assert (last.seconds, last.sequence) == (NODE_LOST_SECONDS, 7)


def gauges(lab: Lab) -> dict[str, float]:
    """What the metrics of work say: name, and state where there is one."""
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in WorkMetrics(lab.database, lab.work.leases, lab.time.wall).collect()
        for sample in family.samples
    }


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
            assert gauges(lab)["appliance_jobs_failing"] == 1
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
    assert gauges(lab)["appliance_jobs_failing"] == 0
    assert kinds(lab) == ["checkpoints", "dataset"]
    assert {path.name for path in (lab.objects / PROJECT).iterdir()} <= {
        row.uid for row in lab.rows(tables.artifact_version)
    }


async def test_a_job_that_somebody_has_paused_wakes_nobody(lab: Lab) -> None:
    node, work = await lab.started()
    node.fail(work, "RANK_LOST", "a rank was killed")
    assert gauges(lab)["appliance_jobs_failing"] == 1
    lab.jobs.pause(ALICE, job_service_pb2.PauseJobRequest(name=JOB))
    said = gauges(lab)
    assert (said["appliance_jobs PAUSED"], said["appliance_jobs_failing"]) == (1, 0)
    assert said["appliance_jobs_without_space"] == 0


async def test_a_job_without_space_and_a_node_that_stays_away_are_counted(lab: Lab) -> None:
    node, work = await lab.started()
    node.fail(work, "STORE_FULL", "full")
    lab.wait(20, node)
    lab.look()
    said = gauges(lab)
    assert (said["appliance_jobs_without_space"], said["appliance_nodes_silent"]) == (1, 0)
    lab.wait(60)
    assert gauges(lab)["appliance_nodes_silent"] == 1
    # Also by a control plane that has not heard it itself.
    lab.restart()
    lab.wait(600)
    assert gauges(lab)["appliance_nodes_silent"] == 1
    lab.forward(86_400, served=False)
    assert gauges(lab)["appliance_nodes_silent"] == 0


async def test_a_heartbeat_waits_for_no_write(lab: Lab) -> None:
    node = await lab.connected("n1")
    seen = lab.rows(tables.node)[0].seen_time
    lab.forward(60)
    with lab.database.write():
        beat = threading.Thread(target=node.heartbeat)
        beat.start()
        beat.join(10)
        assert not beat.is_alive()
    lab.look()
    assert lab.rows(tables.node)[0].seen_time - seen >= timedelta(seconds=60)


async def test_a_job_that_waits_less_is_told_that_most_nodes_are_silent_too(lab: Lab) -> None:
    node = await lab.connected("n1")
    await lab.connected("n2")
    request = train_request("t1", lab.tokens("d"))
    request.job.on_lost.replace_after_seconds = 60
    lab.jobs.create(ALICE, request)
    lab.look()
    await node.take()
    assert node.started
    lab.wait(100)
    lab.look()
    assert lab.job().state_reason.endswith(
        "; more than half of the nodes are silent, so nothing starts elsewhere"
    )


@pytest.mark.parametrize(
    ("reason", "state"),
    [("RANK_LOST", Job.STATE_QUEUED), ("INVALID_INPUT", Job.STATE_FAILED)],
)
async def test_a_start_that_fails_while_another_node_says_how_far_it_is_is_over(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, reason: str, state: int
) -> None:
    """The one is writing that it runs while the other says that it has failed."""
    one, two = await lab.connected("n1", devices=1), await lab.connected("n2", devices=1)
    lab.train("t1", mesh=job_pb2.Mesh(data=2))
    lab.look()
    await one.take()
    work = one.started[0].work
    inside, go = threading.Event(), threading.Event()
    move = job_rows.move
    progress = threading.Thread(target=one.progress, args=(work, 1))

    def slow(*arguments: Any, **values: Any) -> None:
        if JobState.RUNNING in arguments:
            inside.set()
            assert go.wait(10)
        move(*arguments, **values)

    monkeypatch.setattr(job_rows, "move", slow)
    progress.start()
    assert inside.wait(10)
    threading.Timer(0.5, go.set).start()
    two.fail(work, reason, "killed")
    progress.join()
    failures = int(reason == "RANK_LOST")
    assert (lab.job().state, lab.rows(tables.job)[0].failures) == (state, failures)
    assert not lab.work.leases.holds(work.work)


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
            await node.take()
            node.heartbeat()
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
    said = gauges(lab)
    assert (said["appliance_nodes_cut_off"], said["appliance_nodes_silent"]) == (1, 2)
    assert (said["appliance_jobs STARTING"], said["appliance_jobs PAUSED"]) == (1, 0)
    work = holder.started[0].work
    holder.heartbeat()
    lab.look()
    assert lab.job().state_reason == ""
    assert gauges(lab)["appliance_nodes_cut_off"] == 0
    holder.succeed(work, MODEL)
    assert lab.job().state == Job.STATE_SUCCEEDED


async def test_an_error_of_the_job_is_final_and_keeps_its_sentence(lab: Lab) -> None:
    node, work = await lab.started()
    node.fail(work, "INVALID_INPUT", "the loss is not finite: lower learning_rate")
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


async def test_an_evicted_node_loses_its_stream_its_keys_and_its_job_at_once(lab: Lab) -> None:
    one = await lab.connected("n1")
    lab.train("t1")
    lab.look()
    await one.take()
    with lab.database.write() as transaction:
        machine = Principal(PrincipalKind.NODE, "n1")
        evict_in(transaction, lab.base.policies, lab.base.events, machine)
    two = await lab.connected("n2")
    lab.look()
    lab.look()
    await one.take()
    await two.take()
    assert one.cut
    assert len(two.started) == 1
    with pytest.raises(LeaseLost):
        one.keys(one.started[0].work)


@pytest.mark.parametrize(
    ("on_lost", "epochs", "said"),
    [
        (job_pb2.OnLost(replace_after_seconds=60), [2, 2], "it starts elsewhere after 60 s"),
        (job_pb2.OnLost(wait=True), [1, 1], "it waits for that, as its on_lost says"),
        (None, [1, 2], "it starts elsewhere after 300 s"),
    ],
)
async def test_a_job_waits_for_a_silent_node_for_as_long_as_it_says(
    lab: Lab, on_lost: job_pb2.OnLost | None, epochs: list[int], said: str
) -> None:
    one = await lab.connected("n1")
    request = train_request("t1", lab.tokens())
    if on_lost is not None:
        request.job.on_lost.CopyFrom(on_lost)
    shown = lab.jobs.create(ALICE, request)
    assert shown.HasField("on_lost") is (on_lost is not None)
    assert on_lost is None or shown.on_lost == on_lost
    lab.look()
    await one.take()
    work = one.started[0].work
    one.progress(work, 3)
    two = await lab.connected("n2")
    three = await lab.connected("n3")
    # It is in the row, which outlives the control plane.
    lab.restart()
    await two.connect()
    await three.connect()
    lab.wait(30, two, three)
    lab.look()
    assert lab.job().state_reason.endswith(said)
    lab.wait(40, two, three)
    lab.look()
    found = [lab.job().epoch]
    if found == [1]:
        lab.wait(NODE_LOST_SECONDS, two, three)
        lab.look()
        lab.look()
    found.append(lab.job().epoch)
    assert found == epochs
    if on_lost is not None and on_lost.wait:
        # It is waited for, and what it says still counts.
        await one.connect()
        one.heartbeat()
        one.progress(work, 4)
        lab.look()
        assert (lab.job().epoch, lab.job().progress.step, lab.job().state_reason) == (1, 4, "")


async def test_the_job_of_the_only_node_says_that_it_waits_for_it(lab: Lab) -> None:
    await lab.started()
    lab.wait(20)
    lab.look()
    assert lab.job().state_reason.endswith(" UTC; it waits for that: there is no other node")


async def test_a_node_that_is_lost_was_seen_when_it_was_heard_last(lab: Lab) -> None:
    node = await lab.connected("n1")
    heard = lab.time.wall()
    lab.wait(15)
    node.disconnect()
    (row,) = lab.rows(tables.node)
    assert (row.state, row.seen_time) == ("LOST", heard)


async def test_what_is_said_of_silence_is_taken_back_and_nothing_else(lab: Lab) -> None:
    node, work = await lab.started()
    node.report(job_progress=agent.JobProgress(work=work, event="rank 3 was killed", restarts=1))
    lab.restart()
    await node.connect()
    lab.wait(1, node)
    lab.look()
    assert lab.job().state_reason == "rank 3 was killed"
    lab.wait(60)
    lab.look()
    assert "has not been heard of since" in lab.job().state_reason
    lab.restart()
    await node.connect()
    lab.wait(1, node)
    lab.look()
    assert lab.job().state_reason == ""
