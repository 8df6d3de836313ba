"""The order of a toy job, with a lease and keys at the fake control plane."""

from __future__ import annotations

import base64
from pathlib import Path

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.jobs.v1 import job_pb2
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.job_context import FakeJob


def toy_order(control: FakeControlPlane, folder: Path, what: int, epoch: int = 1) -> rpc.StartJob:
    """A toy job whose outputs the fake control plane has keys for, under a lease."""
    job = FakeJob(folder, "prepare", {"seed": what}, world_size=2)
    job.add_output("dataset")
    job.add_output("checkpoints")
    uid = "0a" * 16
    control.keys[uid] = rpc.ReleaseKeysResponse(
        outputs=[
            rpc.ArtifactKey(
                name=place["name"],
                kind=slot,
                folder=place["folder"],
                object=place["object"],
                project="p",
                key=base64.b64decode(place["key"]),
            )
            for slot, place in job.orders["outputs"].items()
        ]
    )
    control.leases.add((uid, epoch))
    return rpc.StartJob(
        work=rpc.WorkEpoch(work=uid, epoch=epoch),
        job=job_pb2.Job(name="projects/p/jobs/count", prepare=job_pb2.PrepareSpec(seed=what)),
        local_ranks=2,
        world_size=2,
        node_count=1,
        devices=[0, 1],
        rendezvous="127.0.0.1:0",
    )
