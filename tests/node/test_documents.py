"""What a leader is told of the node it is on."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.jobs.v1 import job_pb2
from appliance.node import documents

PLACE = documents.NodeEnvironment(
    "file:///objects", "10.0.0.2", "cpu", Path("/state/gateways.json")
)


@pytest.mark.parametrize(
    ("nodes", "count", "name"),
    [
        (["nodes/a", "nodes/b"], 2, "nodes/b"),
        # A control plane of 0.1.0 names none.
        ([], 2, ""),
        (["nodes/b"], 1, ""),
    ],
)
def test_a_leader_knows_the_name_of_its_node_among_several(
    nodes: list[str], count: int, name: str
) -> None:
    job = job_pb2.Job(name="projects/p/jobs/j", train=job_pb2.TrainSpec(), nodes=nodes)
    order = rpc.StartJob(job=job, node_count=count, node_rank=count - 1)
    assert documents.job(order, rpc.ReleaseKeysResponse(), PLACE)["node"] == name


def test_outputs_are_told_apart_by_their_slots() -> None:
    order = rpc.StartJob(job=job_pb2.Job(name="projects/p/jobs/j", train=job_pb2.TrainSpec()))
    keys = rpc.ReleaseKeysResponse(
        outputs=[
            rpc.ArtifactKey(name="large", kind="model", slot="teacher"),
            rpc.ArtifactKey(name="small", kind="model", slot="student"),
            # A control plane of 0.1.0 says the kind alone, which was the slot.
            rpc.ArtifactKey(name="words", kind="tokenizer"),
        ]
    )
    outputs = documents.job(order, keys, PLACE)["outputs"]
    assert {slot: place["name"] for slot, place in outputs.items()} == {
        "teacher": "large",
        "student": "small",
        "tokenizer": "words",
    }
