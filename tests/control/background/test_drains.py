"""Nodes that are cordoned and drained: nothing new comes, what runs goes on elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.api.nodes.v1 import node_pb2
from appliance.api.nodes.v1 import node_service_pb2 as rpc
from appliance.api.serving.v1 import endpoint_pb2, endpoint_service_pb2
from appliance.control.services.common.caller import Caller
from appliance.control.services.work.pauses import LEEWAY_SECONDS
from appliance.control.store import tables
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.placement import place
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, GIB, PROJECT, FakeAgent, Lab

Job = job_pb2.Job
JOB = f"projects/{PROJECT}/jobs/t1"
MODEL = {"model": tiny_model.files()}
GRACE = 300


def cordon(lab: Lab, node: str = "n1", reason: str = "") -> node_pb2.Node:
    return lab.nodes.cordon(ALICE, rpc.CordonNodeRequest(name=f"nodes/{node}", reason=reason))


def uncordon(lab: Lab, node: str = "n1") -> node_pb2.Node:
    return lab.nodes.uncordon(ALICE, rpc.UncordonNodeRequest(name=f"nodes/{node}"))


def drain(lab: Lab, node: str = "n1", **more: Any) -> node_pb2.Node:
    return lab.nodes.drain(ALICE, rpc.DrainNodeRequest(name=f"nodes/{node}", **more))


def on(lab: Lab, node: str = "n1") -> list[tuple[str, str]]:
    """State and note of what is on a node."""
    return [(each.state, each.note) for each in lab.nodes.get(ALICE, f"nodes/{node}").work]


async def save_and_end(node: FakeAgent, work: agent.WorkEpoch, step: int) -> None:
    node.save_checkpoint(work, step)
    node.fail(work, "PAUSED", f"saved the checkpoint of step {step}")


async def take(*nodes: FakeAgent) -> None:
    for node in nodes:
        await node.take()


async def running(lab: Lab) -> tuple[FakeAgent, agent.WorkEpoch]:
    node, work = await lab.started()
    node.progress(work, 3, loss=2.0)
    return node, work


def row_of(lab: Lab) -> Any:
    return lab.rows(tables.job)[0]


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_cordoned_node_takes_nothing_new_and_what_runs_goes_on(
    lab: Lab, *, restarted: bool
) -> None:
    node, work = await running(lab)
    shown = cordon(lab, reason="new disk")
    assert (shown.state, shown.cordoned, shown.draining) == (node_pb2.Node.STATE_READY, True, False)
    assert (shown.cordoned_by, shown.cordon_reason) == ("users/alice", "new disk")
    if restarted:
        lab.restart()
        await node.connect()
    lab.train("t2")
    for _ in range(3):
        lab.look()
        await node.take()
    assert len(node.started) == 1
    assert lab.job("t2").state_reason == (
        "waiting for a node that can run train jobs; node n1: it is cordoned (new disk)"
    )
    node.succeed(work, MODEL)
    assert lab.job().state == Job.STATE_SUCCEEDED
    uncordon(lab)
    lab.look()
    await node.take()
    assert len(node.started) == 2
    assert not lab.nodes.get(ALICE, "nodes/n1").cordoned


async def test_a_plan_says_that_a_node_is_cordoned(lab: Lab) -> None:
    await lab.connected("n1")
    await lab.connected("n2")
    cordon(lab)
    request = job_service_pb2.PlanJobRequest(
        parent=f"projects/{PROJECT}",
        job_id="t1",
        job=job_pb2.Job(
            evaluate=job_pb2.EvaluateSpec(model=lab.model(), dataset=lab.tokens(vocabulary=64))
        ),
    )
    plan = lab.jobs.plan(ALICE, request)
    assert [(each.node, each.ranks, each.reason) for each in plan.nodes] == [
        ("nodes/n1", 0, "it is cordoned"),
        ("nodes/n2", 1, ""),
    ]
    cordon(lab, "n2", "moves to another room")
    waits = lab.jobs.plan(ALICE, request).waits_for
    assert "node n2: it is cordoned (moves to another room)" in waits


@pytest.mark.attack
async def test_a_job_that_was_placed_before_the_cordon_does_not_start_after_it(lab: Lab) -> None:
    node = await lab.connected("n1")
    lab.train()
    [(row, demand)] = lab.work.queue.waiting()
    capacities = lab.work.runs.capacities()
    cordon(lab)
    assert not lab.work.runs.start(row, demand, place(demand, capacities))
    await node.take()
    assert (node.started, lab.job().state, row_of(lab).epoch) == ([], Job.STATE_QUEUED, 0)
    node.heartbeat()
    assert lab.work.leases.capacity("n1", 4, GIB).free == [0, 1, 2, 3]


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_job_saves_a_checkpoint_and_goes_on_on_another_node(
    lab: Lab, *, restarted: bool
) -> None:
    node, work = await running(lab)
    other = await lab.connected("n2")
    shown = drain(lab, reason="new disk")
    assert (shown.cordoned, shown.draining, shown.drain_grace_seconds) == (True, True, GRACE)
    assert on(lab) == [("RUNNING", "it is told to save a checkpoint, in 300 s at most")]
    if restarted:
        # The row of the node is the order: nobody had been told.
        lab.restart()
        await take(node)
        await node.connect()
        await other.connect()
    lab.look()
    await node.take()
    assert (node.saves[0].work, node.saves[0].grace_seconds) == (work, GRACE)
    assert (node.stopped, lab.job().state) == ([], Job.STATE_PAUSING)
    said = "nodes/n1 is drained: it saves a checkpoint, in 300 s at most, and is queued again"
    assert lab.job().state_reason == said
    assert on(lab) == [("PAUSING", said)]
    await save_and_end(node, work, 5)
    assert lab.job().state == Job.STATE_QUEUED
    assert lab.job().state_reason == "nodes/n1 is drained: saved the checkpoint of step 5"
    assert on(lab) == []
    lab.look()
    await take(node, other)
    second = other.started[-1].work
    assert (second.epoch, other.keys(second).resume_step, len(node.started)) == (2, 5, 1)
    row = row_of(lab)
    assert (row.failures, row.pause) == (0, {})
    # Nothing comes back by itself, and after the drain what is new does.
    uncordon(lab)
    lab.look()
    await node.take()
    assert len(node.started) == 1
    events = [each for each in lab.base.opened.log.newest() if each["method"] == "job.restarts"]
    assert [each["outcome"] for each in events] == ["NODE_DRAINED"]


async def test_a_job_that_fits_nowhere_else_waits_and_says_why(lab: Lab) -> None:
    node, work = await running(lab)
    drain(lab, reason="new disk")
    assert on(lab) == [
        (
            "RUNNING",
            (
                "it is told to save a checkpoint, in 300 s at most; no other node that takes work"
                " could hold it: it will wait until one is added, or until"
                " `appliance node uncordon n1`"
            ),
        )
    ]
    lab.look()
    await save_and_end(node, work, 5)
    lab.look()
    job = lab.job()
    assert job.state == Job.STATE_QUEUED
    assert job.state_reason.endswith("node n1: it is drained (new disk)")
    uncordon(lab)
    lab.look()
    await node.take()
    assert node.keys(node.started[-1].work).resume_step == 5


async def test_a_drain_that_is_asked_for_again_is_the_same_with_another_time(lab: Lab) -> None:
    node, work = await running(lab)
    drain(lab)
    lab.look()
    drain(lab)
    lab.look()
    await node.take()
    assert [order.grace_seconds for order in node.saves] == [GRACE, GRACE]
    drain(lab, grace_seconds=10)
    lab.look()
    await node.take()
    assert node.saves[-1].grace_seconds == 10
    # A cordon ends no drain.
    assert cordon(lab, reason="x").draining
    drain(lab, grace_seconds=0)
    lab.look()
    await node.take()
    assert (node.stopped, lab.job().state) == ([(work.work, 1)], Job.STATE_QUEUED)


async def test_a_job_of_two_nodes_leaves_both(lab: Lab) -> None:
    one = await lab.connected("n1", devices=1)
    two = await lab.connected("n2", devices=1)
    lab.train("t1", mesh=job_pb2.Mesh(data=2))
    lab.look()
    await take(one, two)
    work = one.started[0].work
    one.progress(work, 3)
    drain(lab, "n2")
    lab.look()
    await take(one, two)
    assert (len(one.saves), len(two.saves)) == (1, 1)
    two.fail(work, "PAUSED", "saved the checkpoint of step 4")
    assert lab.job().state == Job.STATE_PAUSING
    await save_and_end(one, work, 4)
    assert (lab.job().state, lab.job().checkpoint_step) == (Job.STATE_QUEUED, 4)
    three = await lab.connected("n3", devices=1)
    lab.look()
    await take(one, two, three)
    assert (len(one.started), len(two.started), len(three.started)) == (2, 1, 1)


async def test_a_job_that_keeps_no_checkpoints_may_end_within_the_grace(lab: Lab) -> None:
    node = await lab.connected("n1")
    spec = job_pb2.PrepareSpec(
        datasets=[lab.text()],
        output_dataset="projects/demo/datasets/clean",
        output_tokenizer="projects/demo/tokenizers/words",
    )
    request = job_service_pb2.CreateJobRequest(
        parent=f"projects/{PROJECT}", job_id="t1", job=Job(prepare=spec)
    )
    lab.jobs.create(ALICE, request)
    lab.look()
    await node.take()
    other = await lab.connected("n2")
    work = node.started[0].work
    node.progress(work, 1)
    drain(lab, grace_seconds=100)
    lab.look()
    assert on(lab) == [
        (
            "RUNNING",
            (
                "a job of kind prepare keeps no checkpoints: it may end within 100 s, and else"
                " begins anew"
            ),
        )
    ]
    lab.wait(99, node, other)
    lab.look()
    assert lab.job().state == Job.STATE_RUNNING
    lab.wait(1, node, other)
    lab.look()
    await take(node, other)
    assert node.stopped == [(work.work, 1)]
    assert other.started[-1].work.epoch == 2
    # Its processes have not ended: the node is not empty yet.
    node.running.add((work.work, 1))
    node.heartbeat()
    assert on(lab) == [("ENDING", "it is over here, and its processes have not ended yet")]
    node.fail(work, "LEASE_LOST", "the node was told to stop this work")
    assert on(lab) == []


@pytest.mark.parametrize("how", ["too late", "killed", "unnamed", "silent", "0.1.0"])
async def test_a_job_that_saves_nothing_goes_on_from_the_checkpoint_before(
    lab: Lab, how: str
) -> None:
    node, work = await running(lab)
    other = await lab.connected("n2")
    node.save_checkpoint(work, 2)
    node.old = how == "0.1.0"
    drain(lab, grace_seconds=10)
    lab.look()
    await node.take()
    match how:
        case "too late":
            node.fail(work, "LEASE_LOST", "none was saved within 10 s")
        case "killed":
            node.fail(work, "RANK_LOST", "rank 0 was killed by SIGKILL")
        case "unnamed":
            node.running.clear()
            lab.wait(20, node, other)
        case "silent":
            lab.wait(10 + LEEWAY_SECONDS, other)
        case "0.1.0":
            assert node.stopped == [(work.work, 1)]
            node.fail(work, "LEASE_LOST", "the node was told to stop this work")
    for _ in range(3):
        lab.look()
    await other.take()
    second = other.started[-1].work
    assert (second.epoch, other.keys(second).resume_step) == (2, 2)
    assert (row_of(lab).failures, row_of(lab).pause) == (0, {})


async def test_a_node_that_is_away_in_the_middle_hears_what_is_left_of_the_time(lab: Lab) -> None:
    node, work = await running(lab)
    other = await lab.connected("n2")
    node.disconnect()
    drain(lab)
    lab.look()
    lab.wait(100, other)
    lab.look()
    assert lab.job().state == Job.STATE_PAUSING
    await node.connect()
    lab.look()
    await node.take()
    assert node.saves[-1].grace_seconds == GRACE - 100
    await save_and_end(node, work, 5)
    lab.look()
    await take(node, other)
    assert (other.keys(other.started[-1].work).resume_step, len(node.started)) == (5, 1)


async def test_a_node_that_comes_back_after_its_work_has_gone_on_elsewhere_ends_it(
    lab: Lab,
) -> None:
    node, work = await running(lab)
    other = await lab.connected("n2")
    node.disconnect()
    drain(lab, grace_seconds=0)
    lab.look()
    await other.take()
    assert other.started[-1].work.epoch == 2
    # What it still runs is not known to have ended.
    assert on(lab) == [("ENDING", "it is over here, and its processes have not ended yet")]
    await node.connect()
    assert node.stopped[-1] == (work.work, 1)
    node.heartbeat()
    assert on(lab) == []


async def test_an_uncordon_ends_a_drain_in_the_middle(lab: Lab) -> None:
    node, work = await running(lab)
    drain(lab)
    lab.look()
    uncordon(lab)
    lab.look()
    # What was told to save goes on saving, and may come back at once.
    await save_and_end(node, work, 5)
    lab.look()
    await node.take()
    assert node.keys(node.started[-1].work).resume_step == 5


async def test_what_somebody_pauses_while_it_leaves_stays_paused(lab: Lab) -> None:
    node, work = await running(lab)
    other = await lab.connected("n2")
    drain(lab)
    lab.look()
    job = lab.jobs.pause(ALICE, job_service_pb2.PauseJobRequest(name=JOB))
    assert job.state_reason.startswith("users/alice has paused it")
    lab.look()
    await save_and_end(node, work, 5)
    for _ in range(3):
        lab.look()
    await other.take()
    assert (lab.job().state, other.started) == (Job.STATE_PAUSED, [])


async def test_a_job_whose_store_is_full_waits_for_space_and_then_goes_on(lab: Lab) -> None:
    node, work = await running(lab)
    other = await lab.connected("n2")
    drain(lab)
    lab.look()
    node.storage_works = False
    node.fail(work, "STORE_FULL", "No space is left")
    assert lab.job().state_reason.startswith("paused until the object store has space")
    lab.wait(60, node, other)
    lab.work.storage.do_all()
    lab.look()
    await other.take()
    assert other.started[-1].work.epoch == 2


async def test_a_job_is_cancelled_while_it_leaves(lab: Lab) -> None:
    node, work = await running(lab)
    drain(lab)
    lab.look()
    lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=JOB))
    await node.take()
    assert (node.stopped, lab.job().state) == ([(work.work, 1)], Job.STATE_CANCELLED)


async def test_an_error_of_the_job_itself_ends_it_also_while_it_leaves(lab: Lab) -> None:
    node, work = await running(lab)
    drain(lab)
    lab.look()
    node.fail(work, "FAILED_PRECONDITION", "The loss became NaN or infinite at step 4.")
    assert lab.job().state == Job.STATE_FAILED


def serve(lab: Lab) -> None:
    request = endpoint_service_pb2.CreateEndpointRequest(
        parent=f"projects/{PROJECT}",
        endpoint_id="chat",
        endpoint=endpoint_pb2.Endpoint(model=lab.model(), replicas=1),
    )
    lab.endpoints.create(ALICE, request)


async def test_a_replica_leaves_when_another_is_ready_and_finishes_its_answers(lab: Lab) -> None:
    node = await lab.connected("n1")
    serve(lab)
    lab.look()
    await node.take()
    work = node.started[0].work
    node.ready(work)
    other = await lab.connected("n2")
    drain(lab)
    lab.look()
    await other.take()
    name = f"projects/{PROJECT}/endpoints/chat/replicas/r0"
    # Until then it answers.
    for state in ("READY", "DRAINING"):
        [there] = lab.nodes.get(ALICE, "nodes/n1").work
        assert (there.name, there.kind, there.state) == (name, "replica", state)
        other.ready(other.started[0].work)
        lab.look()
    await node.take()
    node.gone(work)
    lab.look()
    assert on(lab) == []


async def test_names_are_shown_to_who_may_see_them_alone(lab: Lab) -> None:
    await running(lab)
    bob = Caller(principal=Principal(PrincipalKind.USER, "bob"))
    assert [each.name for each in lab.nodes.get(ALICE, "nodes/n1").work] == [JOB]
    [there] = lab.nodes.get(bob, "nodes/n1").work
    assert (there.name, there.note, there.kind, list(there.devices)) == ("", "", "train", [0])
