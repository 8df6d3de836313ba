"""The orders that start and stop work on a node. Pure.

Called by the life of jobs and replicas, by `services.work.pauses` and `services.agent.agents`.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.jobs.v1 import job_pb2
from appliance.control.services.fleet.leases import Share
from appliance.core import names
from appliance.core.addresses import host_port

LOOPBACK = "127.0.0.1"


def start_order(
    job: job_pb2.Job, epoch: int, number: int, shares: Sequence[Share], first_address: str
) -> rpc.ConnectResponse:
    """The order to start one node's part of a job.

    Args:
        job: as it is shown; its nodes become those of the shares.
        epoch: of the start.
        number: of the share whose node gets the order.
        shares: all of them.
        first_address: of the first node, where ranks of several nodes meet; empty: not known.
    """
    share = shares[number]
    job.nodes[:] = [names.node(other.node) for other in shares]
    host = first_address if first_address and len(shares) > 1 else LOOPBACK
    return rpc.ConnectResponse(
        start_job=rpc.StartJob(
            work=rpc.WorkEpoch(work=job.uid, epoch=epoch),
            job=job,
            rank_base=share.rank_base,
            local_ranks=len(share.devices),
            world_size=sum(len(other.devices) for other in shares),
            node_count=len(shares),
            node_rank=number,
            devices=share.devices,
            rendezvous=host_port(host, shares[0].port),
            memory_bytes=share.memory_bytes,
        )
    )


def stop_order(
    work: str, epoch: int, grace_seconds: float, *, save: bool = False
) -> rpc.ConnectResponse:
    """The order to stop a piece of work; with `save`, after it has saved a checkpoint."""
    return rpc.ConnectResponse(
        stop=rpc.StopWork(
            work=rpc.WorkEpoch(work=work, epoch=epoch), grace_seconds=grace_seconds, save=save
        )
    )
