"""Endpoints and their replicas: accepted, started, lost and back, drained."""

from __future__ import annotations

import pytest

from appliance.api.serving.v1 import endpoint_pb2, endpoint_service_pb2
from appliance.control.store import tables
from appliance.core.errors import (
    AlreadyExists,
    Exhausted,
    FailedPrecondition,
    InvalidInput,
    LeaseLost,
    NotFound,
)
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import make_csr, new_private_key
from appliance.crypto.reading import (
    not_after,
    peer_identity,
)
from tests.fakes.lab import ALICE, GIB, Lab
from tests.fakes.state import full

NAME = "projects/demo/endpoints/chat"
Endpoint, Replica = endpoint_pb2.Endpoint, endpoint_pb2.Replica


def create(lab: Lab, model: str, **values: int) -> Endpoint:
    request = endpoint_service_pb2.CreateEndpointRequest(
        parent="projects/demo",
        endpoint_id="chat",
        endpoint=Endpoint(model=model, **{"cache_bytes": 64 << 20, **values}),
    )
    return lab.endpoints.create(ALICE, request)


def delete(lab: Lab) -> None:
    lab.endpoints.delete(ALICE, endpoint_service_pb2.DeleteEndpointRequest(name=NAME))


def get(lab: Lab) -> Endpoint:
    return lab.endpoints.get(ALICE, NAME)


async def test_replicas_spread_over_nodes_and_the_endpoint_is_what_they_are(lab: Lab) -> None:
    one, two = await lab.connected("n1"), await lab.connected("n2")
    made = create(lab, lab.model(), replicas=2, tensor_parallel=2)
    assert (made.state, made.max_sequence_length) == (Endpoint.STATE_STARTING, 128)
    assert [replica.state for replica in made.replica_status] == [Replica.STATE_PENDING] * 2
    lab.look()
    await one.take()
    await two.take()
    orders = [one.started[0], two.started[0]]
    assert [list(order.devices) for order in orders] == [[0, 1], [0, 1]]
    assert orders[0].endpoint == NAME
    one.ready(orders[0].work, "127.0.0.1:5001")
    assert get(lab).state == Endpoint.STATE_DEGRADED
    two.ready(orders[1].work, "127.0.0.1:5002")
    found = get(lab)
    assert found.state == Endpoint.STATE_READY
    assert [(r.id, r.node, r.address, r.epoch) for r in found.replica_status] == [
        ("r0", "nodes/n1", "127.0.0.1:5001", 1),
        ("r1", "nodes/n2", "127.0.0.1:5002", 1),
    ]


async def test_a_replica_that_dies_is_back_at_once_then_after_1_2_4_to_30_seconds(
    lab: Lab,
) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model())
    lab.look()
    await node.take()
    node.ready(node.started[0].work)
    lab.forward(31)
    node.heartbeat()
    pauses = []
    for _ in range(8):
        node.gone(node.started[-1].work, "its engine died")
        before, waited = len(node.started), 0
        while True:
            node.heartbeat()
            lab.look()
            await node.take()
            if len(node.started) > before:
                break
            lab.forward(1)
            waited += 1
        pauses.append(waited)
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30]
    found = get(lab)
    assert (found.state, found.replica_status[0].epoch) == (Endpoint.STATE_FAILED, 9)
    assert found.replica_status[0].restarts == 8
    assert "its engine died" in found.state_reason
    node.ready(node.started[-1].work)
    assert (get(lab).state, get(lab).state_reason) == (Endpoint.STATE_READY, "")
    lab.forward(31)
    node.heartbeat()
    node.gone(node.started[-1].work)
    lab.look()
    await node.take()
    assert node.started[-1].work.epoch == 10


async def test_the_end_of_a_replica_that_could_not_be_written_counts_once_when_it_is_said_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model())
    lab.look()
    await node.take()
    work = node.started[0].work
    node.ready(work)
    for _ in range(5):
        with full(monkeypatch), pytest.raises(Exhausted):
            node.gone(work, "its engine died")
    assert get(lab).state == Endpoint.STATE_READY
    node.gone(work, "its engine died")
    lab.look()
    await node.take()
    # At once, as after the first failure.
    assert node.started[-1].work.epoch == 2


@pytest.mark.attack
async def test_an_older_epoch_of_a_replica_is_refused_everywhere(lab: Lab) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model())
    lab.look()
    await node.take()
    old = node.started[0].work
    node.gone(old)
    lab.look()
    await node.take()
    node.ready(old, "127.0.0.1:6666")
    await node.take()
    assert get(lab).replica_status[0].address == ""
    assert (old.work, 1) in node.stopped
    with pytest.raises(LeaseLost):
        node.keys(old)


async def test_a_node_that_comes_back_without_its_replica_starts_it_again_now(lab: Lab) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model())
    lab.look()
    await node.take()
    node.ready(node.started[0].work)
    node.disconnect()
    node.running.clear()
    await node.connect()
    lab.look()
    await node.take()
    assert [order.work.epoch for order in node.started] == [1, 2]


async def test_a_restarted_control_plane_keeps_replicas_that_answer(lab: Lab) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model())
    lab.look()
    await node.take()
    node.ready(node.started[0].work)
    lab.restart()
    await node.connect()
    lab.look()
    await node.take()
    assert len(node.started) == 1
    assert get(lab).state == Endpoint.STATE_READY


async def test_delete_drains_and_then_the_endpoint_is_gone(lab: Lab) -> None:
    node = await lab.connected("n1")
    model = lab.model()
    create(lab, model, replicas=2)
    lab.look()
    await node.take()
    for order in node.started:
        node.ready(order.work)
    running = set(node.running)
    delete(lab)
    found = get(lab)
    assert (found.state, found.state_reason) == (
        Endpoint.STATE_STOPPING,
        "deleted by users/alice",
    )
    assert [r.state for r in found.replica_status] == [Replica.STATE_DRAINING] * 2
    with pytest.raises(FailedPrecondition, match="already"):
        delete(lab)
    with pytest.raises(AlreadyExists):
        create(lab, model)
    await node.take()
    assert set(node.stopped) == running
    lab.look()
    for order in node.started:
        node.gone(order.work)
    with pytest.raises(NotFound):
        get(lab)
    assert lab.rows(tables.replica) == []
    assert lab.work.leases.capacity("n1", 4, GIB).free == [0, 1, 2, 3]
    create(lab, model)


def test_an_adapter_is_no_model_that_can_be_served(lab: Lab) -> None:
    with pytest.raises(InvalidInput) as raised:
        create(lab, lab.model(kind="adapter"))
    assert raised.value.fields == {"endpoint.model": "holds adapter; name a version of model"}


async def test_an_endpoint_that_never_started_is_gone_at_once(lab: Lab) -> None:
    node = await lab.connected("n1")
    create(lab, lab.model())
    node.disconnect()
    delete(lab)
    with pytest.raises(NotFound):
        get(lab)


async def test_a_replica_waits_with_a_sentence_until_devices_are_free(lab: Lab) -> None:
    node = await lab.connected("n1", devices=1)
    create(lab, lab.model(), replicas=2)
    lab.look()
    await node.take()
    assert len(node.started) == 1
    waiting = get(lab).replica_status[1]
    assert waiting.state == Replica.STATE_PENDING
    assert waiting.state_reason.startswith("waiting for 1 free device")


async def test_a_replica_waits_for_a_node_that_can_run_it(lab: Lab) -> None:
    lame = await lab.connected("n1", lacks={"replica": "vllm is not installed", "train": ""})
    create(lab, lab.model())
    lab.look()
    await lame.take()
    waiting = get(lab)
    assert (waiting.state, waiting.replica_status[0].state) == (
        Endpoint.STATE_STARTING,
        Replica.STATE_PENDING,
    )
    assert waiting.replica_status[0].state_reason == waiting.state_reason
    assert waiting.state_reason == (
        "waiting for a node that can run replicas; node n1: vllm is not installed"
    )
    able = await lab.connected("n2", devices=1, lacks={"replica": ""})
    lab.look()
    await able.take()
    assert (len(lame.started), len(able.started)) == (0, 1)


async def test_a_replica_gets_the_key_of_its_model_and_a_servers_certificate(lab: Lab) -> None:
    node = await lab.connected("n1")
    model = lab.model()
    create(lab, model)
    lab.look()
    await node.take()
    csr = make_csr(new_private_key()).decode()
    keys = node.keys(node.started[0].work, csr)
    assert [(key.name, key.kind) for key in keys.inputs] == [(model, "model")]
    assert node.reader(keys.inputs[0]).files()[0] == "config.json"
    uid = get(lab).uid
    identity = peer_identity(
        keys.certificate.encode(), lab.base.keyring.cluster_id, lab.time.wall(), need="server"
    )
    assert identity == Principal(PrincipalKind.REPLICA, f"{uid}-r0-1")
    # A worker cannot renew it: it holds as long as the authority does.
    assert not_after(keys.certificate.encode()) == not_after(lab.base.keyring.ca.certificate_pem)
    with pytest.raises(Exception, match="client"):
        peer_identity(
            keys.certificate.encode(), lab.base.keyring.cluster_id, lab.time.wall(), need="client"
        )


@pytest.mark.parametrize(
    ("values", "field", "text"),
    [
        ({"tensor_parallel": 3}, "endpoint.tensor_parallel", "does not divide"),
        ({"tensor_parallel": 4}, "endpoint.tensor_parallel", "key_value_heads of 2"),
        ({"tensor_parallel": 0}, "endpoint.tensor_parallel", "1 to 1,024"),
        ({"replicas": 0}, "endpoint.replicas", "1 to 64"),
        ({"max_sequence_length": 0}, "endpoint.max_sequence_length", "2 or more"),
        ({"cache_bytes": 0}, "endpoint.cache_bytes", "16,777,216 to 4,398,046,511,104"),
        ({"replicas": 65}, "endpoint.replicas", "1 to 64"),
        ({"max_sequence_length": 129}, "endpoint.max_sequence_length", "context of 128"),
        ({"cache_bytes": 5}, "endpoint.cache_bytes", "16,777,216 to 4,398,046,511,104"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_field(
    lab: Lab, values: dict[str, int], field: str, text: str
) -> None:
    await lab.connected("n1")
    with pytest.raises(InvalidInput) as raised:
        create(lab, lab.model(), **values)
    assert text in raised.value.fields[field]
    assert lab.rows(tables.endpoint) == []


async def test_a_model_whose_heads_the_engine_cannot_serve_is_refused(lab: Lab) -> None:
    await lab.connected("n1")
    for head in (16, 48):
        with pytest.raises(InvalidInput, match=f"heads of width {head}"):
            create(lab, lab.model(f"h{head}", head_dim=head))
    assert create(lab, lab.model("h64", head_dim=64)).state == Endpoint.STATE_STARTING


async def test_a_model_that_is_not_there_or_too_large_is_refused(lab: Lab) -> None:
    await lab.connected("n1", memory=2 * GIB)
    with pytest.raises(InvalidInput, match="does not exist"):
        create(lab, "projects/demo/models/none/versions/1")
    with pytest.raises(FailedPrecondition) as raised:
        create(lab, lab.model(weight_bytes=2 * GIB))
    assert raised.value.message.startswith(
        "it needs about 3.6 GiB per device; the largest node offers 2.0 GiB: use a smaller cache"
    )
