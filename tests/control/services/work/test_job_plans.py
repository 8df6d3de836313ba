"""What a job would need and where it would run: checked as if it were made, nothing written."""

from __future__ import annotations

import pytest

from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.api.jobs.v1.job_pb2 import Mesh
from appliance.control.store import tables
from appliance.core.errors import AlreadyExists, FailedPrecondition, InvalidInput
from appliance.core.placement import Demand, NodeCapacity, why_none
from appliance.kinds import kind_of
from appliance.kinds.kind import TORCH_PROCESS
from tests.fakes.lab import ALICE, GIB, Lab, train_request


def planned(lab: Lab, name: str = "p1", **changes: object) -> job_service_pb2.JobPlan:
    request = train_request(name, lab.tokens(f"d-{name}"), **changes)
    return lab.jobs.plan(
        ALICE,
        job_service_pb2.PlanJobRequest(parent=request.parent, job_id=name, job=request.job),
    )


async def test_a_plan_says_what_a_job_needs_and_where_it_would_run(lab: Lab) -> None:
    await lab.connected("n1", devices=2)
    await lab.connected("n2", devices=4)
    await lab.connected("n3", devices=4, lacks={"train": "torch is not installed"})
    plan = planned(lab, mesh=Mesh(data=4))
    assert (plan.ranks, plan.waits_for) == (4, "")
    assert plan.host_memory_bytes - plan.device_memory_bytes == TORCH_PROCESS
    assert set(plan.modules) == kind_of("train").modules
    assert {node.node: (node.ranks, node.reason) for node in plan.nodes} == {
        "nodes/n1": (0, "the others have room for all ranks"),
        "nodes/n2": (4, ""),
        "nodes/n3": (0, "torch is not installed"),
    }
    # As it would be accepted, with every default.
    assert (plan.job.name, plan.job.train.learning_rate) == ("projects/demo/jobs/p1", 0.001)
    assert lab.rows(tables.job) == []


async def test_a_plan_says_what_a_job_would_wait_for(lab: Lab) -> None:
    await lab.connected("n1", devices=4)
    await lab.connected("n2", devices=2)
    lab.train("t1", mesh=Mesh(data=4))
    lab.look()
    plan = planned(lab, mesh=Mesh(data=4))
    assert plan.waits_for.startswith("waiting for 4 ranks with ")
    assert {node.node: node.reason for node in plan.nodes} == {
        "nodes/n1": "all of its 4 devices are taken",
        "nodes/n2": "it has room for 2 of the 4 ranks",
    }


async def test_a_plan_is_checked_as_a_job_is(lab: Lab) -> None:
    with pytest.raises(FailedPrecondition, match="there is no node"):
        planned(lab, "a1")
    await lab.connected("n1", memory=8 * GIB)
    with pytest.raises(InvalidInput, match=r"job\.train\.mesh\.tensor is 3, .*; .*batch_size"):
        planned(lab, "a2", mesh=Mesh(tensor=3, data=3))
    with pytest.raises(InvalidInput, match="must hold one of prepare, train"):
        lab.jobs.plan(
            ALICE,
            job_service_pb2.PlanJobRequest(
                parent="projects/demo", job_id="a3", job=job_pb2.Job(name="x")
            ),
        )
    lab.train("a4")
    with pytest.raises(AlreadyExists):
        planned(lab, "a4")


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (NodeCapacity("n", 1, 4 * GIB), ""),
        (NodeCapacity("n", 1, 4 * GIB, frozenset({0})), "all of its 1 devices are taken"),
        (
            NodeCapacity("n", 2, 4 * GIB, frozenset({0}), 2 * GIB),
            "a rank needs 3.0 GiB, and of its 4.0 GiB 2.0 GiB are free",
        ),
        (NodeCapacity("n", 2, 4 * GIB, lacks={"train": "no torch"}), "no torch"),
    ],
)
def test_why_a_node_runs_no_rank(node: NodeCapacity, sentence: str) -> None:
    assert why_none(Demand(1, memory_per_rank=3 * GIB, kind="train"), node) == sentence
