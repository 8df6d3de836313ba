"""What is kept of what the steps of a job measured."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.control.services.work.metric_rows import keep
from appliance.control.store import tables
from appliance.core.thinning import MAX_POINTS
from tests.fakes.lab import ALICE, FakeAgent, Lab

NAME = "projects/demo/jobs/t0"


async def started(lab: Lab) -> tuple[FakeAgent, agent.WorkEpoch]:
    node = await lab.connected("n1")
    lab.train("t0", lab.tokens())
    lab.look()
    await node.take()
    return node, node.started[-1].work


def measure(lab: Lab, work: agent.WorkEpoch, steps: Iterable[int], loss: float = 1.0) -> None:
    with lab.database.write() as transaction:
        keep(transaction, work.work, work.epoch, {step: {"loss": loss} for step in steps})


def kept(lab: Lab) -> list[tuple[int, int]]:
    return sorted((row.step, row.epoch) for row in lab.rows(tables.job_metric))


async def test_a_job_of_a_million_steps_keeps_some_of_them_evenly(lab: Lab) -> None:
    _, work = await started(lab)
    for first in range(1, 1_000_000, 2500):
        measure(lab, work, range(first, first + 2500))
        if first % 100_000 == 1:
            assert len(kept(lab)) <= MAX_POINTS + 1
    steps = [step for step, _ in kept(lab)]
    assert steps == [1, *range(512, 1_000_000, 512), 1_000_000]


async def test_many_restarts_keep_no_more_and_of_a_step_done_twice_the_later(lab: Lab) -> None:
    _, work = await started(lab)
    for epoch in range(1, 40):
        again = agent.WorkEpoch(work=work.work, epoch=epoch)
        measure(lab, again, range(epoch, epoch + 2000), loss=float(epoch))
        assert len(kept(lab)) <= MAX_POINTS + 1
    steps = [step for step, _ in kept(lab)]
    assert len(set(steps)) == len(steps)
    (first, *_, last) = kept(lab)
    assert (first, last) == ((1, 1), (39 + 1999, 39))


async def test_a_start_that_goes_on_from_a_checkpoint_takes_the_place_of_what_it_does_again(
    lab: Lab,
) -> None:
    _, work = await started(lab)
    measure(lab, work, range(1, 9))
    again = agent.WorkEpoch(work=work.work, epoch=2)
    measure(lab, again, [5])
    # Steps that a thinned report leaves out count as passed.
    measure(lab, again, [7])
    assert kept(lab) == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (7, 2), (8, 1)]


async def test_steps_that_come_together_are_one_transaction(lab: Lab) -> None:
    node, work = await started(lab)
    other = agent.WorkEpoch(work="0" * 32, epoch=1)
    said = [
        agent.JobProgress(work=other, progress=job_pb2.Progress(step=1)),
        *(
            agent.JobProgress(
                work=work,
                progress=job_pb2.Progress(step=step, total=5000),
                measured=[job_pb2.JobMetric(step=step, values={"loss": 1.0 / step})],
            )
            for step in range(1, 1001)
        ),
    ]
    before = lab.database.generation
    lab.work.agents.take("n1", [agent.ReportRequest(job_progress=each) for each in said])
    assert lab.database.generation == before + 1
    assert lab.job("t0").progress.step == 1000
    request = job_service_pb2.ListJobMetricsRequest(name=NAME, page_size=1000)
    measured = lab.jobs.metrics(ALICE, request).metrics
    assert [each.step for each in measured] == list(range(1, 1001))
    assert measured[1].values["loss"] == 0.5
    await node.take()
    assert node.stopped == [(other.work, 1)]


async def test_what_is_too_much_fails_its_own_job(lab: Lab) -> None:
    node, work = await started(lab)
    steps = [job_pb2.JobMetric(step=step, values={"loss": 1.0}) for step in range(257)]
    node.report(job_progress=agent.JobProgress(work=work, measured=steps))
    assert lab.job("t0").state == job_pb2.Job.STATE_FAILED
    assert kept(lab) == []


async def test_a_job_that_measures_seldom_keeps_all_until_there_are_too_many(lab: Lab) -> None:
    _, work = await started(lab)
    for first in range(1000, 1_000_000, 50_000):
        measure(lab, work, range(first, first + 50_000, 1000))
    assert [step for step, _ in kept(lab)] == list(range(1000, 1_000_001, 1000))
    for first in range(1_001_000, 5_000_001, 100_000):
        measure(lab, work, range(first, first + 100_000, 1000))
        assert MAX_POINTS // 2 <= len(kept(lab)) <= MAX_POINTS + 1


async def test_ranks_that_began_again_leave_nothing_of_before_between_their_steps(
    lab: Lab,
) -> None:
    _, work = await started(lab)
    measure(lab, work, range(1, 11))
    # The node was cut off, and has thinned what it did again.
    measure(lab, work, [4, 8, 12], loss=2.0)
    assert [step for step, _ in kept(lab)] == [1, 2, 3, 4, 8, 12]
    losses = {row.step: row._mapping["values"]["loss"] for row in lab.rows(tables.job_metric)}
    assert {step for step, loss in losses.items() if loss == 2.0} == {4, 8, 12}


@pytest.mark.attack
@pytest.mark.parametrize("step", [-1, -(2**63)])
async def test_a_step_below_zero_fails_its_own_job_and_stops_nothing_else(
    lab: Lab, step: int
) -> None:
    node, work = await started(lab)
    metric = job_pb2.JobMetric(step=step, values={"loss": 1.0})
    progress = job_pb2.Progress(step=step, total=1, metrics={"loss": 1.0})
    for bad in (
        agent.JobProgress(work=work, measured=[metric]),
        agent.JobProgress(work=work, progress=progress),
    ):
        node.report(job_progress=bad)
        assert lab.job("t0").state == job_pb2.Job.STATE_FAILED
    assert kept(lab) == []


async def test_the_largest_step_that_fits_is_kept(lab: Lab) -> None:
    _, work = await started(lab)
    measure(lab, work, [0, 2**63 - 1])
    assert [step for step, _ in kept(lab)] == [0, 2**63 - 1]


@pytest.mark.attack
async def test_progress_between_other_reports_is_one_transaction_and_comes_first(lab: Lab) -> None:
    node, work = await started(lab)
    lot: list[agent.ReportRequest] = []
    for step in range(1, 21):
        progress = job_pb2.Progress(step=step, total=20, metrics={"loss": 1.0})
        checkpoint = agent.CheckpointComplete(work=work, step=step, manifest_digest="0" * 64)
        lot.append(
            agent.ReportRequest(job_progress=agent.JobProgress(work=work, progress=progress))
        )
        lot.append(agent.ReportRequest(checkpoint=checkpoint))
    before = lab.database.generation
    lab.work.agents.take("n1", lot)
    assert lab.database.generation - before == 1 + 20
    assert lab.job("t0").progress.step == 20
    ended = agent.JobEnded(work=work, reason="INTERNAL", message="so it is")
    last = agent.JobProgress(work=work, progress=job_pb2.Progress(step=21, total=21))
    late = agent.JobProgress(work=work, progress=job_pb2.Progress(step=22, total=22))
    said = [
        agent.ReportRequest(job_progress=last),
        agent.ReportRequest(job_ended=ended),
        agent.ReportRequest(job_progress=late),
    ]
    lab.work.agents.take("n1", said)
    assert lab.job("t0").state == job_pb2.Job.STATE_FAILED
    assert lab.job("t0").progress.step == 21
    await node.take()
    assert set(node.stopped) == {(work.work, work.epoch)}
