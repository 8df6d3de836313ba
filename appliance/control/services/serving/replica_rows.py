"""Rows of replicas, and what a replica is called and needs.

Called by the services of serving, and by `services.agent.release`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select, update

from appliance.control.services.fleet.memory import replica_device
from appliance.control.services.serving.replica_plan import PENDING
from appliance.control.store import tables
from appliance.control.store.database import Reading, Transaction
from appliance.core import names
from appliance.core.errors import LeaseLost
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.needs import REPLICA
from appliance.core.placement import Demand

SHAPE = ("model_version", "tensor_parallel", "max_sequence_length", "cache_bytes")
"""Columns of an endpoint that a replica has too: what it was started with."""
_replica = tables.replica.c
_endpoint = tables.endpoint.c


@dataclass(frozen=True)
class Wanted:
    """A replica that waits for devices: its endpoint's row, its own, and what it needs."""

    endpoint: Row[Any]
    replica: Row[Any]
    demand: Demand


def work_of(endpoint: str, replica: str) -> str:
    """What leases call a replica."""
    return f"{endpoint}/{replica}"


def identity_of(row: Row[Any]) -> Principal:
    """Who one start of a replica is; `row` of the table `replica`."""
    return Principal(PrincipalKind.REPLICA, f"{row.endpoint}-{row.id}-{row.epoch}")


def demand(facts: Any, tensor_parallel: int, cache_bytes: int) -> Demand:  # noqa: ANN401  # a JSON column
    """What a replica needs: its devices, and the memory on each."""
    weights = int(facts.get("weight_bytes", 0))
    need = replica_device(weights, tensor_parallel, cache_bytes)
    return Demand(tensor_parallel, memory_per_rank=need, kind=REPLICA)


def of_endpoint(state: Reading, uid: str) -> list[Row[Any]]:
    """The replicas of an endpoint."""
    return state.all(select(tables.replica).where(_replica.endpoint == uid).order_by(_replica.id))


def at(state: Reading, work: str, epoch: int) -> Row[Any]:
    """The replica of a piece of work, if the epoch is still its own. Raises LeaseLost."""
    endpoint, _, replica = work.partition("/")
    row = state.first(
        select(tables.replica).where(_replica.endpoint == endpoint, _replica.id == replica)
    )
    if row is None or row.epoch != epoch:
        raise LeaseLost(f"epoch {epoch} of {work} is over; stop its processes")
    return row


def add(transaction: Transaction, endpoint: Row[Any], count: int, **values: object) -> None:
    """Replicas as their endpoint is now, under ids that none of it has had.

    A lease and the name in a certificate hold an id and an epoch: were an id used again, an older
    start could pass for the newer.
    """
    for number in range(endpoint.next_replica, endpoint.next_replica + count):
        shape = {column: getattr(endpoint, column) for column in SHAPE}
        transaction.run(
            insert(tables.replica).values(
                endpoint=endpoint.uid,
                id=f"r{number}",
                state=PENDING,
                generation=endpoint.generation,
                **shape,
                **values,
            )
        )
    if count:
        transaction.run(
            update(tables.endpoint)
            .where(_endpoint.uid == endpoint.uid)
            .values(next_replica=endpoint.next_replica + count)
        )


def adopt(transaction: Transaction, endpoint: Row[Any]) -> None:
    """What is as its endpoint is now is of its generation: who goes back keeps what he had."""
    same = [_replica[column] == getattr(endpoint, column) for column in SHAPE]
    transaction.run(
        update(tables.replica)
        .where(_replica.endpoint == endpoint.uid, *same)
        .values(generation=endpoint.generation)
    )


def version_name(state: Reading, uid: str) -> str:
    """Resource name of a model version; empty when it is gone."""
    version = tables.artifact_version.c
    found = state.first(select(tables.artifact_version).where(version.uid == uid))
    if found is None:
        return ""
    return names.model_version(found.project, found.artifact, found.number)


def way_back(state: Reading, endpoint: Row[Any], replicas: Sequence[Row[Any]]) -> str:
    """Options of `endpoint update` that make an endpoint what its older replicas are."""
    older = [row for row in replicas if row.generation != endpoint.generation and row.ready_time]
    if not older:
        return ""
    row, options = max(older, key=lambda each: each.generation), []
    if row.model_version != endpoint.model_version:
        options.append(f"--model {version_name(state, row.model_version)}")
    options += [
        f"--{column.replace('_', '-')} {getattr(row, column)}"
        for column in SHAPE[1:]
        if getattr(row, column) != getattr(endpoint, column)
    ]
    return " ".join(options)
