"""Jobs from the queue to their end, over agents that live, die, lie and come back."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.control.services.fleet.leases import Share
from appliance.control.store import tables
from appliance.core.errors import (
    AuditUnavailable,
    FailedPrecondition,
)
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, PROJECT, Lab, prepared_files, write

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
    # The checkpoints stay for a while, and the output is readable under its signature.
    assert kinds(lab) == ["checkpoints", "dataset", "model"]
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
    assert [row.id for row, _ in lab.work.queue.waiting()] == ["ahead", "later"]


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


async def test_a_job_that_waited_for_its_nodes_meets_where_nobody_listens_too(lab: Lab) -> None:
    """It starts as they connect, before their first heartbeat."""
    one, two = [await lab.connected(name, devices=2) for name in ("n1", "n2")]
    one.free_ports = [29400]
    one.heartbeat()
    one.disconnect()
    lab.train("t1", mesh=job_pb2.Mesh(data=4))
    lab.look()
    one.free_ports = [29401]
    await one.connect()
    lab.look()
    await two.take()
    assert two.started[0].rendezvous == "127.0.0.1:29401"


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


async def test_cancel_ends_a_job_at_once_wherever_it_is(lab: Lab) -> None:
    node, work = await lab.started()
    lab.train("t2", mesh=job_pb2.Mesh(data=4))
    for name in ("t1", "t2"):
        request = job_service_pb2.CancelJobRequest(name=f"projects/{PROJECT}/jobs/{name}")
        job = lab.jobs.cancel(ALICE, request)
        assert (job.state, job.state_reason) == (Job.STATE_CANCELLED, "cancelled by users/alice")
        with pytest.raises(FailedPrecondition, match="has ended"):
            lab.jobs.cancel(ALICE, request)
    await node.take()
    assert node.stopped == [(work.work, 1)]
    node.report(job_ended=agent.JobEnded(work=work, succeeded=True))
    assert lab.job("t1").state == Job.STATE_CANCELLED


async def test_a_control_plane_that_starts_again_takes_up_what_runs(lab: Lab) -> None:
    node, work = await lab.started()
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


async def test_what_ranks_write_while_a_cancelled_job_ends_goes_when_they_have_ended(
    lab: Lab,
) -> None:
    node, work = await lab.started()
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
