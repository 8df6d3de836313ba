"""Nodes to the end of their life: what people decide about them, and what is refused."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from appliance.api.nodes.v1 import node_pb2
from appliance.api.nodes.v1 import node_service_pb2 as rpc
from appliance.control.metrics.work_metrics import WorkMetrics
from appliance.control.services.common.caller import Caller
from appliance.control.store import tables
from appliance.core.errors import Conflict, FailedPrecondition, InvalidInput, NotFound
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes import state, tiny_model
from tests.fakes.lab import ALICE, Lab

NODE = "nodes/n1"


def delete(lab: Lab, **more: Any) -> None:
    lab.nodes.delete(ALICE, rpc.DeleteNodeRequest(name=NODE, **more))


def row(lab: Lab) -> Any:
    return next((row for row in lab.rows(tables.node) if row.id == "n1"), None)


async def test_a_node_on_which_nothing_is_is_deleted_and_cut_off(lab: Lab) -> None:
    node = await lab.connected("n1")
    delete(lab, validate_only=True)
    assert row(lab) is not None
    delete(lab)
    assert row(lab) is None
    lab.look()
    await node.take()
    assert node.cut
    assert (lab.work.fleet.connected(), lab.work.leases.nodes()) == ([], [])
    with pytest.raises(NotFound):
        delete(lab)


async def test_a_repeat_of_a_deletion_is_answered_as_the_first(lab: Lab) -> None:
    await lab.connected("n1")
    request = str(uuid4())
    delete(lab, request_id=request)
    delete(lab, request_id=request)


async def test_a_node_with_work_is_not_deleted_and_says_what_is_there(lab: Lab) -> None:
    node, work = await lab.started()
    with pytest.raises(FailedPrecondition) as caught:
        delete(lab)
    assert caught.value.message == (
        "nodes/n1 is not deleted, because there is still projects/demo/jobs/t1 (STARTING): empty it"
        " with `appliance node drain n1 --wait`; then repeat"
    )
    state.add_user(lab.database, "bob")
    bob = Caller(principal=Principal(PrincipalKind.USER, "bob"))
    with pytest.raises(FailedPrecondition, match=r"there is still work that you may not see \(1\)"):
        lab.nodes.delete(bob, rpc.DeleteNodeRequest(name=NODE))
    with lab.database.write() as transaction:
        lab.work.runs.set_aside_in(transaction, lab.rows(tables.job)[0], "put aside")
    lab.work.runs.stop(work.work, work.epoch)
    with pytest.raises(FailedPrecondition, match=r"t1 .ENDING."):
        delete(lab)  # its processes have not ended
    await node.take()
    node.heartbeat()
    delete(lab)


async def test_a_node_that_is_away_is_drained_and_then_deleted_with_what_it_never_ended(
    lab: Lab,
) -> None:
    node, work = await lab.started()
    other = await lab.connected("n2")
    node.disconnect()
    with pytest.raises(FailedPrecondition, match="let it go on elsewhere with"):
        delete(lab)
    lab.nodes.drain(ALICE, rpc.DrainNodeRequest(name=NODE, grace_seconds=0))
    lab.look()
    await other.take()
    assert other.started[0].work.epoch == 2
    delete(lab)
    other.progress(other.started[0].work, 4)
    other.succeed(other.started[0].work, {"model": tiny_model.files()})
    assert (work.epoch, row(lab)) == (1, None)


async def test_an_evicted_node_is_deleted_when_its_work_has_gone_on(lab: Lab) -> None:
    node, _ = await lab.started()
    lab.nodes.evict(ALICE, rpc.EvictNodeRequest(name=NODE))
    with pytest.raises(FailedPrecondition, match="it starts elsewhere within seconds"):
        delete(lab)
    lab.look()
    await node.take()
    delete(lab)
    assert row(lab) is None


async def test_a_deletion_holds_to_the_state_that_was_seen(lab: Lab) -> None:
    node = await lab.connected("n1")
    seen = lab.nodes.get(ALICE, NODE).etag
    node.disconnect()
    assert lab.nodes.get(ALICE, NODE).etag == seen
    lab.nodes.cordon(ALICE, rpc.CordonNodeRequest(name=NODE))
    with pytest.raises(Conflict, match="has changed since you read it"):
        delete(lab, etag=seen)
    delete(lab, etag=lab.nodes.get(ALICE, NODE).etag)


@pytest.mark.parametrize("reason", ["x" * 201, "two\nlines", "\x1b[2J"])
async def test_a_reason_that_is_no_line_of_text_is_refused(lab: Lab, reason: str) -> None:
    await lab.connected("n1")
    with pytest.raises(InvalidInput) as caught:
        lab.nodes.cordon(ALICE, rpc.CordonNodeRequest(name=NODE, reason=reason))
    assert caught.value.fields == {"reason": "is one line of at most 200 printable characters"}
    assert not row(lab).cordoned


async def test_a_grace_that_cannot_be_is_refused(lab: Lab) -> None:
    await lab.connected("n1")
    with pytest.raises(InvalidInput) as caught:
        lab.nodes.drain(ALICE, rpc.DrainNodeRequest(name=NODE, grace_seconds=-1))
    assert caught.value.fields == {"grace_seconds": "must be 0 to 86,400"}


async def test_what_nobody_has_is_not_found(lab: Lab) -> None:
    for call, request in (
        (lab.nodes.cordon, rpc.CordonNodeRequest(name=NODE)),
        (lab.nodes.uncordon, rpc.UncordonNodeRequest(name=NODE)),
        (lab.nodes.drain, rpc.DrainNodeRequest(name=NODE)),
        (lab.nodes.delete, rpc.DeleteNodeRequest(name=NODE)),
    ):
        with pytest.raises(NotFound, match="there is no nodes/n1"):
            call(ALICE, request)  # type: ignore[operator]  # each with its own request


async def test_nodes_that_are_cordoned_and_drained_are_in_the_metrics(lab: Lab) -> None:
    await lab.started()
    await lab.connected("n2")
    lab.nodes.cordon(ALICE, rpc.CordonNodeRequest(name="nodes/n2"))
    lab.nodes.drain(ALICE, rpc.DrainNodeRequest(name=NODE))
    registry = CollectorRegistry()
    registry.register(WorkMetrics(lab.database, lab.work.leases, lab.time.wall))
    said = generate_latest(registry).decode().splitlines()
    assert "appliance_nodes_cordoned 2.0" in said
    assert "appliance_nodes_draining 1.0" in said
    assert "appliance_draining_devices 1.0" in said


@pytest.mark.attack
async def test_a_node_whose_cordon_is_lifted_in_the_file_is_not_believed(lab: Lab) -> None:
    await lab.connected("n1")
    lab.nodes.cordon(ALICE, rpc.CordonNodeRequest(name=NODE))
    forge(lab, "UPDATE node SET cordoned = 0")
    with pytest.raises(NotFound):
        lab.nodes.get(ALICE, NODE)


def forge(lab: Lab, statement: str) -> None:
    """Write the state as somebody else would."""
    connection = sqlite3.connect(lab.database.path)
    with connection:
        connection.execute(statement)
    connection.close()


async def test_watchers_wake_when_the_last_process_has_ended(lab: Lab) -> None:
    node, work = await lab.started()
    lab.nodes.drain(ALICE, rpc.DrainNodeRequest(name=NODE, grace_seconds=0))
    lab.look()
    assert [each.state for each in lab.nodes.get(ALICE, NODE).work] == ["ENDING"]
    lab.look()
    await node.take()
    node.fail(work, "LEASE_LOST")
    with lab.base.events.watch(NODE) as watch:
        lab.look()
        async with asyncio.timeout(5):
            assert await watch.wait()
    assert list(lab.nodes.get(ALICE, NODE).work) == []
    assert lab.nodes.get(ALICE, NODE).state == node_pb2.Node.STATE_READY
