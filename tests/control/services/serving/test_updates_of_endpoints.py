"""Endpoints change, stop and start, while their replicas and nodes come and go."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.api.serving.v1 import endpoint_pb2, endpoint_service_pb2, routing_service_pb2
from appliance.control.services.common.caller import Caller
from appliance.control.store import tables
from appliance.core.errors import Conflict, FailedPrecondition, InvalidInput, NotFound
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import make_csr, new_private_key
from tests.fakes import state
from tests.fakes.lab import ALICE, GIB, FakeAgent, Lab

NAME = "projects/demo/endpoints/chat"
Endpoint, Replica = endpoint_pb2.Endpoint, endpoint_pb2.Replica
GATEWAY = Caller(Principal(PrincipalKind.GATEWAY, "gateway-1"), "r-2", "test")


def create(lab: Lab, model: str, **values: Any) -> Endpoint:
    return lab.endpoints.create(
        ALICE,
        endpoint_service_pb2.CreateEndpointRequest(
            parent="projects/demo",
            endpoint_id="chat",
            endpoint=Endpoint(model=model, **{"cache_bytes": 64 << 20, **values}),
        ),
    )


def update(lab: Lab, *, etag: str = "", caller: Caller = ALICE, **values: Any) -> Endpoint:
    request = endpoint_service_pb2.UpdateEndpointRequest(
        endpoint=Endpoint(name=NAME, etag=etag, **values)
    )
    request.update_mask.paths.extend(sorted(values))
    return lab.endpoints.update(caller, request)


def stop(lab: Lab) -> Endpoint:
    return lab.endpoints.stop(ALICE, endpoint_service_pb2.StopEndpointRequest(name=NAME))


def start(lab: Lab) -> Endpoint:
    return lab.endpoints.start(ALICE, endpoint_service_pb2.StartEndpointRequest(name=NAME))


def get(lab: Lab) -> Endpoint:
    return lab.endpoints.get(ALICE, NAME)


def shown(lab: Lab) -> dict[str, str]:
    """`r0` -> `READY 1`: state and generation of each replica."""
    return {
        each.id: f"{Replica.State.Name(each.state).removeprefix('STATE_')} {each.generation}"
        for each in get(lab).replica_status
    }


async def ready(lab: Lab, *nodes: FakeAgent) -> None:
    """Every replica that was ordered answers."""
    lab.look()
    for node in nodes:
        await node.take()
        for order in node.started:
            if (order.work.work, order.work.epoch) in node.running:
                node.ready(order.work)


def end_drained(lab: Lab, *nodes: FakeAgent) -> None:
    """Replicas that were told to stop have ended."""
    draining = {r.id for r in get(lab).replica_status if r.state == Replica.STATE_DRAINING}
    for node in nodes:
        for order in node.started:
            if order.work.work.partition("/")[2] in draining:
                node.gone(order.work)


async def test_more_and_fewer_replicas_start_nothing_anew(lab: Lab) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model())
    await ready(lab, node)
    made = update(lab, replicas=3)
    assert (made.replicas, made.generation) == (3, 1)
    assert shown(lab) == {"r0": "READY 1", "r1": "PENDING 1", "r2": "PENDING 1"}
    await ready(lab, node)
    assert get(lab).state == Endpoint.STATE_READY
    update(lab, replicas=1)
    assert shown(lab) == {"r0": "READY 1", "r1": "DRAINING 1", "r2": "DRAINING 1"}
    assert get(lab).state == Endpoint.STATE_READY
    await node.take()
    assert {work.partition("/")[2] for work, _ in node.stopped} == {"r1", "r2"}
    end_drained(lab, node)
    assert shown(lab) == {"r0": "READY 1"}
    # Ids never come again: a late word of the first r1 is about nobody.
    update(lab, replicas=2)
    assert set(shown(lab)) == {"r0", "r3"}


@pytest.mark.attack
async def test_an_endpoint_that_has_the_name_now_does_not_have_the_etag(lab: Lab) -> None:
    await lab.connected("n1")
    model = lab.model()
    first = create(lab, model)
    lab.endpoints.delete(ALICE, endpoint_service_pb2.DeleteEndpointRequest(name=NAME))
    create(lab, model)
    with pytest.raises(Conflict):
        update(lab, etag=first.etag, replicas=2)
    update(lab, etag=get(lab).etag, replicas=2)


@pytest.mark.attack
async def test_a_repeated_call_does_not_answer_for_a_deleted_endpoint(lab: Lab) -> None:
    await lab.connected("n1")
    request = endpoint_service_pb2.CreateEndpointRequest(
        parent="projects/demo",
        endpoint_id="chat",
        endpoint=Endpoint(model=lab.model(), cache_bytes=64 << 20),
        request_id="123e4567-e89b-42d3-a456-426614174000",
    )
    first = lab.endpoints.create(ALICE, request)
    assert lab.endpoints.create(ALICE, request) == first
    lab.endpoints.delete(ALICE, endpoint_service_pb2.DeleteEndpointRequest(name=NAME))
    with pytest.raises(NotFound):
        get(lab)
    assert lab.endpoints.create(ALICE, request).uid == get(lab).uid != first.uid


@pytest.mark.attack
async def test_what_is_only_validated_leaves_a_failing_replica_its_pause(lab: Lab) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model())
    for _ in range(4):
        lab.look()
        await node.take()
        node.gone(node.started[-1].work)
        lab.forward(0.5)
    starts = len(node.started)
    request = endpoint_service_pb2.StopEndpointRequest(name=NAME, validate_only=True)
    assert lab.endpoints.stop(ALICE, request).state == Endpoint.STATE_STOPPED
    lab.look()
    await node.take()
    assert len(node.started) == starts
    assert get(lab).replica_status[0].state == Replica.STATE_LOST


async def test_another_model_comes_one_by_one_and_as_many_answer_as_before(lab: Lab) -> None:
    one, two = await lab.connected("n1"), await lab.connected("n2")
    first, second = lab.model(), lab.model(weight_bytes=4000)
    create(lab, first, replicas=2)
    await ready(lab, one, two)
    made = update(lab, model=second)
    assert (made.state, made.generation, made.model) == (Endpoint.STATE_UPDATING, 2, second)
    assert shown(lab) == {"r0": "READY 1", "r1": "READY 1", "r2": "PENDING 2"}
    served = []
    for _ in range(4):
        states = [each.state for each in get(lab).replica_status]
        assert states.count(Replica.STATE_READY) >= 2
        await ready(lab, one, two)
        lab.look()
        end_drained(lab, one, two)
        served.append(sorted(each.model for each in get(lab).replica_status))
    assert shown(lab) == {"r2": "READY 2", "r3": "READY 2"}
    found = get(lab)
    assert (found.state, found.state_reason) == (Endpoint.STATE_READY, "")
    assert served[-1] == [second, second]


async def test_a_replica_gets_the_key_of_its_own_version_and_gateways_hear_of_both(
    lab: Lab,
) -> None:
    node = await lab.connected("n1")
    first, second = lab.model(), lab.model(weight_bytes=4000)
    create(lab, first, max_sequence_length=64)
    await ready(lab, node)
    update(lab, model=second, max_sequence_length=128)
    lab.look()
    await node.take()
    for order, model in zip(node.started, (first, second), strict=True):
        keys = node.keys(order.work, make_csr(new_private_key()).decode())
        assert [key.name for key in keys.inputs] == [model]
    assert [order.max_sequence_length for order in node.started] == [64, 128]
    node.ready(node.started[1].work)
    _, (view,) = lab.routing.messages(None)
    (route,) = view.routes
    assert (route.model, route.max_sequence_length) == (second, 128)
    assert [(r.id, r.model, r.max_sequence_length) for r in route.replicas] == [
        ("r0", first, 64),
        ("r1", second, 128),
    ]
    uids = [r.model_uid for r in route.replicas]
    assert route.model_uid == uids[1] != uids[0]
    for uid in uids:
        request = routing_service_pb2.ReadServedTokenizerRequest(endpoint=NAME, model_uid=uid)
        assert lab.routing._version(request.endpoint, request.model_uid).uid == uid
    with pytest.raises(NotFound):
        lab.routing._version(NAME, "f" * 32)


async def test_a_version_that_does_not_start_leaves_the_one_before_and_says_the_way_back(
    lab: Lab,
) -> None:
    node = await lab.connected("n1")
    first, second = lab.model(), lab.model(weight_bytes=4000)
    create(lab, first)
    await ready(lab, node)
    update(lab, model=second)
    for _ in range(5):
        lab.look()
        await node.take()
        node.gone(node.started[-1].work, "its weights cannot be read")
        for _ in range(31):
            lab.forward(1)
            node.heartbeat()
    found = get(lab)
    assert found.state == Endpoint.STATE_DEGRADED
    assert found.state_reason == (
        "the new version does not start (its weights cannot be read); the one before answers: "
        f"go back with `appliance endpoint update {NAME} --model {first}`"
    )
    assert shown(lab)["r0"] == "READY 1"
    # One that answered before is started again meanwhile.
    node.gone(node.started[0].work, "killed")
    lab.look()
    await node.take()
    again = next(order for order in reversed(node.started) if order.work.work.endswith("/r0"))
    node.ready(again.work)
    update(lab, model=first)
    assert shown(lab)["r0"] == "READY 3"
    lab.look()
    await node.take()
    end_drained(lab, node)
    assert shown(lab) == {"r0": "READY 3"}
    assert (get(lab).state, get(lab).state_reason) == (Endpoint.STATE_READY, "")


async def test_the_newest_of_two_updates_wins(lab: Lab) -> None:
    node = await lab.connected("n1")
    first, second, third = lab.model(), lab.model(weight_bytes=4000), lab.model(weight_bytes=5000)
    create(lab, first)
    await ready(lab, node)
    update(lab, model=second)
    lab.look()
    await node.take()
    update(lab, model=third)
    assert shown(lab) == {"r0": "READY 1", "r1": "DRAINING 2"}
    await node.take()
    end_drained(lab, node)
    await ready(lab, node)
    lab.look()
    assert shown(lab) == {"r0": "DRAINING 1", "r2": "READY 3"}
    end_drained(lab, node)
    assert [each.model for each in get(lab).replica_status] == [third]


async def test_a_control_plane_that_restarts_in_the_middle_goes_on(lab: Lab) -> None:
    node = await lab.connected("n1")
    first, second = lab.model(), lab.model(weight_bytes=4000)
    create(lab, first)
    await ready(lab, node)
    update(lab, model=second)
    lab.look()
    await node.take()
    lab.restart()
    await node.connect()
    node.ready(node.started[1].work)
    lab.look()
    assert shown(lab) == {"r0": "DRAINING 1", "r1": "READY 2"}
    # Before the order to stop has reached its node, there is another restart.
    node.stopped.clear()
    lab.restart()
    await node.connect()
    await node.take()
    assert [work.partition("/")[2] for work, _ in node.stopped] == ["r0"]
    end_drained(lab, node)
    lab.look()
    assert shown(lab) == {"r1": "READY 2"}
    assert len(node.started) == 2


async def test_the_node_of_the_new_replica_dies(lab: Lab) -> None:
    one, two = await lab.connected("n1", devices=1), await lab.connected("n2", devices=1)
    first, second = lab.model(), lab.model(weight_bytes=4000)
    create(lab, first)
    await ready(lab, one, two)
    (old, other) = (one, two) if one.started else (two, one)
    update(lab, model=second)
    lab.look()
    await other.take()
    other.disconnect()
    lab.wait(301, old)
    lab.look()
    assert shown(lab) == {"r0": "READY 1", "r1": "PENDING 2"}
    assert "--allow-downtime" in get(lab).state_reason
    third = await lab.connected("n3", devices=1)
    await ready(lab, third)
    lab.look()
    assert shown(lab) == {"r0": "DRAINING 1", "r1": "READY 2"}


async def test_without_room_an_older_one_goes_first_when_others_answer(lab: Lab) -> None:
    node = await lab.connected("n1", devices=2)
    first, second = lab.model(), lab.model(weight_bytes=4000)
    create(lab, first, replicas=2)
    await ready(lab, node)
    update(lab, model=second)
    lab.look()
    assert "an older one makes room after 60 s" in get(lab).state_reason
    lab.wait(61, node)
    lab.look()
    assert shown(lab) == {"r0": "READY 1", "r1": "DRAINING 1", "r2": "PENDING 2"}
    await node.take()
    end_drained(lab, node)
    lab.wait(120, node)
    lab.look()
    assert shown(lab) == {"r0": "READY 1", "r2": "STARTING 2"}


async def test_the_only_one_goes_first_if_a_downtime_is_allowed(lab: Lab) -> None:
    node = await lab.connected("n1", devices=1)
    first, second = lab.model(), lab.model(weight_bytes=4000)
    create(lab, first)
    await ready(lab, node)
    update(lab, model=second)
    lab.look()
    lab.wait(600, node)
    lab.look()
    assert shown(lab) == {"r0": "READY 1", "r1": "PENDING 2"}
    assert f"`appliance endpoint update {NAME} --allow-downtime`" in get(lab).state_reason
    assert update(lab, allow_downtime=True).generation == 2
    lab.look()
    assert shown(lab)["r0"] == "DRAINING 1"
    await node.take()
    end_drained(lab, node)
    await ready(lab, node)
    assert shown(lab) == {"r1": "READY 2"}


async def test_stopped_it_keeps_its_name_and_spec_and_holds_no_devices(lab: Lab) -> None:
    node = await lab.connected("n1")
    first, second = lab.model(), lab.model(weight_bytes=4000)
    create(lab, first, replicas=2)
    await ready(lab, node)
    made = stop(lab)
    assert (made.state, made.state_reason) == (Endpoint.STATE_STOPPING, "stopped by users/alice")
    for call in (stop, start, lambda lab: update(lab, replicas=3)):
        with pytest.raises(FailedPrecondition, match="is being stopped"):
            call(lab)
    await node.take()
    end_drained(lab, node)
    found = get(lab)
    assert (found.state, found.state_reason) == (Endpoint.STATE_STOPPED, "")
    assert (found.replicas, len(found.replica_status)) == (2, 0)
    assert lab.work.leases.capacity("n1", 4, GIB).free == [0, 1, 2, 3]
    with pytest.raises(FailedPrecondition, match="appliance endpoint start"):
        stop(lab)
    lab.look()
    _, (view,) = lab.routing.messages(None)
    assert [(r.state, len(r.replicas)) for r in view.routes] == [(Endpoint.STATE_STOPPED, 0)]
    # What is changed meanwhile is kept for the next start.
    changed = update(lab, model=second, replicas=1)
    assert (changed.state, changed.replica_status) == (Endpoint.STATE_STOPPED, [])
    lab.restart()
    await node.connect()
    assert start(lab).state == Endpoint.STATE_STARTING
    await ready(lab, node)
    assert [each.model for each in get(lab).replica_status] == [second]
    with pytest.raises(FailedPrecondition, match="was not stopped"):
        start(lab)
    # Three starts, three ids.
    assert set(shown(lab)) == {"r2"}


async def test_what_is_deleted_is_not_changed(lab: Lab) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model())
    await ready(lab, node)
    lab.endpoints.delete(ALICE, endpoint_service_pb2.DeleteEndpointRequest(name=NAME))
    for call in (stop, start, lambda lab: update(lab, replicas=3)):
        with pytest.raises(FailedPrecondition, match="is being deleted"):
            call(lab)


async def test_one_that_drains_for_long_has_half_a_minute_when_its_endpoint_goes(lab: Lab) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model(), replicas=2)
    await ready(lab, node)
    update(lab, replicas=1)
    await node.take()
    assert node.grace[-1] == 3600
    stop(lab)
    await node.take()
    assert node.grace[-2:] == [30, 30]
    lab.endpoints.delete(ALICE, endpoint_service_pb2.DeleteEndpointRequest(name=NAME))
    end_drained(lab, node)
    with pytest.raises(NotFound):
        get(lab)


def drained(lab: Lab, node: str, *, drained: bool = True) -> None:
    with lab.database.write() as transaction:
        this = tables.node.c.id == node
        transaction.run(tables.node.update().where(this).values(draining=drained, cordoned=drained))


async def test_a_replica_leaves_a_node_that_is_drained_when_another_answers(lab: Lab) -> None:
    one = await lab.connected("n1")
    create(lab, lab.model())
    await ready(lab, one)
    drained(lab, "n1")
    lab.look()
    lab.look()
    found = get(lab)
    assert shown(lab) == {"r0": "READY 1", "r1": "PENDING 1"}
    assert found.state == Endpoint.STATE_READY
    assert found.state_reason.startswith("r0 leaves node n1, which is drained, when r1 has room: ")
    lab.wait(120, one)
    lab.look()
    assert shown(lab)["r0"] == "READY 1"
    two = await lab.connected("n2")
    await ready(lab, one, two)
    lab.look()
    assert shown(lab) == {"r0": "DRAINING 1", "r1": "READY 1"}
    assert [each.node for each in get(lab).replica_status] == ["nodes/n1", "nodes/n2"]


async def test_only_what_is_named_changes_and_only_as_it_was_seen(lab: Lab) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model(), max_sequence_length=64)
    seen = get(lab)
    await ready(lab, node)
    # Replicas come and go, and that is no change of the endpoint.
    assert update(lab, etag=seen.etag, replicas=2).max_sequence_length == 64
    with pytest.raises(Conflict, match="read it again"):
        update(lab, etag=seen.etag, replicas=1)
    with pytest.raises(InvalidInput, match="names 'state': what can be changed is model, replicas"):
        update(lab, state=Endpoint.STATE_READY)
    with pytest.raises(InvalidInput) as raised:
        update(lab, replicas=0, tensor_parallel=0, cache_bytes=0)
    assert sorted(raised.value.fields) == [
        "endpoint.cache_bytes",
        "endpoint.replicas",
        "endpoint.tensor_parallel",
    ]
    with pytest.raises(InvalidInput, match="context of 128"):
        update(lab, max_sequence_length=129)
    with pytest.raises(InvalidInput, match="does not exist"):
        update(lab, model="projects/demo/models/none/versions/1")
    assert get(lab).generation == 1


async def test_who_may_not_read_the_model_may_change_how_many_there_are(lab: Lab) -> None:
    node = await lab.connected("n1")
    model = lab.model()
    create(lab, model)
    await ready(lab, node)
    state.add_user(lab.database, "bob")
    bob = Caller(Principal(PrincipalKind.USER, "bob"), "r-3", "test")
    assert update(lab, caller=bob, replicas=2).replicas == 2
    with pytest.raises(InvalidInput, match="may not be read by users/bob"):
        update(lab, caller=bob, model=model)


async def test_what_was_only_asked_for_changes_nothing(lab: Lab) -> None:
    node = await lab.connected("n1")
    first, second = lab.model(), lab.model(weight_bytes=4000)
    create(lab, first)
    await ready(lab, node)
    request = endpoint_service_pb2.UpdateEndpointRequest(
        endpoint=Endpoint(name=NAME, model=second),
        update_mask={"paths": ["model"]},
        validate_only=True,
    )
    assert lab.endpoints.update(ALICE, request).generation == 2
    assert (get(lab).generation, shown(lab)) == (1, {"r0": "READY 1"})
