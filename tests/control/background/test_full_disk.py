"""The state database cannot be written or read for a moment: nothing that was under way is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.control.services.fleet.leases import NODE_LOST_SECONDS
from appliance.control.services.work import job_rows
from appliance.control.store import tables
from appliance.core.errors import Exhausted, Unavailable
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, PROJECT, FakeAgent, Lab
from tests.fakes.state import full

Job = job_pb2.Job
Report = Callable[[FakeAgent, agent.WorkEpoch], object]

MODEL = {"model": tiny_model.files()}


@pytest.mark.parametrize(
    ("report", "state", "failures"),
    [
        (lambda node, work: node.fail(work, "RANK_LOST"), Job.STATE_QUEUED, 1),
        (lambda node, work: node.fail(work, "LEASE_LOST"), Job.STATE_QUEUED, 0),
        (lambda node, work: node.fail(work, "STORE_FULL"), Job.STATE_PAUSED, 0),
        (lambda node, work: node.fail(work, "INVALID_INPUT"), Job.STATE_FAILED, 0),
        (lambda node, work: node.succeed(work, MODEL), Job.STATE_SUCCEEDED, 0),
    ],
)
async def test_an_end_that_could_not_be_written_counts_when_it_is_said_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, report: Report, state: int, failures: int
) -> None:
    node, work = await lab.started()
    node.progress(work, 1)
    node.keys(work)
    node.storage_works = False
    for _ in range(3):
        with full(monkeypatch), pytest.raises(Exhausted):
            report(node, work)
        assert lab.job().state == Job.STATE_RUNNING
        assert lab.work.leases.holds(work.work)
    node.storage_works = True
    report(node, work)
    assert (lab.job().state, lab.rows(tables.job)[0].failures) == (state, failures)
    assert not lab.work.leases.holds(work.work)


async def test_a_job_of_a_node_that_is_lost_starts_elsewhere_when_there_is_space(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, work = await lab.started()
    others = [await lab.connected(name) for name in ("n2", "n3")]
    lab.wait(NODE_LOST_SECONDS + 1, *others)
    with full(monkeypatch):
        for _ in range(3):
            with pytest.raises(Exhausted):
                lab.look()
    assert (lab.job().state, lab.job().epoch) == (Job.STATE_STARTING, 1)
    lab.look()
    lab.look()
    assert (lab.job().state, lab.job().epoch) == (Job.STATE_STARTING, 2)
    assert list(lab.job().nodes) != [f"nodes/{work.work}"]


async def test_a_job_that_could_not_be_started_starts_when_there_is_space(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await lab.connected("n1")
    lab.train("t1")
    with full(monkeypatch), pytest.raises(Exhausted):
        lab.look()
    assert lab.job().state == Job.STATE_QUEUED
    lab.look()
    await node.take()
    assert (lab.job().state, len(node.started)) == (Job.STATE_STARTING, 1)


async def test_a_job_that_cannot_be_read_now_is_not_ended(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.connected("n1")
    lab.train("t1")
    lab.train("t2")
    read = job_rows.inputs_of

    def busy(state: object, row: object) -> object:
        if row.id == "t1":  # type: ignore[attr-defined]
            raise Unavailable("the control plane is busy: repeat the call in a moment")
        return read(state, row)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(job_rows, "inputs_of", busy)
        lab.look()
    # It holds up no other either.
    assert (lab.job("t1").state, lab.job("t2").state) == (Job.STATE_QUEUED, Job.STATE_STARTING)
    lab.jobs.cancel(ALICE, job_service_pb2.CancelJobRequest(name=f"projects/{PROJECT}/jobs/t2"))
    lab.wait(1)
    lab.look()
    assert lab.job("t1").state in (Job.STATE_QUEUED, Job.STATE_STARTING)


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["progress", "checkpoint"])
async def test_a_node_ends_no_work_of_another_by_a_report_that_makes_no_sense(
    lab: Lab, kind: str
) -> None:
    _, work = await lab.started()
    other = await lab.connected("n2")
    if kind == "progress":
        metrics = {f"m{number}": 1.0 for number in range(101)}
        other.progress(work, 1, **metrics)
    else:
        other.report(checkpoint=agent.CheckpointComplete(work=work, step=1, manifest_digest="x"))
    assert lab.job().state == Job.STATE_STARTING
    await other.take()
    assert other.stopped == [(work.work, work.epoch)]
