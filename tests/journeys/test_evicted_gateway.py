"""A gateway that was evicted asks no replica any more, although its certificate holds ten days."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest

from appliance.api.inference.v1 import worker_service_pb2 as rpc
from appliance.api.inference.v1 import worker_service_pb2_grpc
from appliance.core.identity import PrincipalKind
from appliance.machine import kinds
from appliance.machine.control_plane import ControlAddress
from appliance.machine.identity import Identity, IdentityStore
from appliance.wire.accepted import ISSUING
from appliance.wire.tls import sync_channel
from tests.journeys.streams import flowing
from tests.journeys.two_nodes import ENDPOINT, Two

pytestmark = [pytest.mark.timeout(240), pytest.mark.long]

HEARS_SECONDS = 12.0
"""A pass of the scheduler, a heartbeat, and the next look at open streams."""


def joined(two: Two, folder: Path) -> Identity:
    """Another gateway of this appliance: no more of it than its key and its certificate."""
    token, data = folder / "join.token", two.appliance.data
    made = two.appliance.alice.json(
        *("gateway", "create-join-token", "stolen", "--host", "stolen.example"),
        *("--out", str(token)),
    )
    machines = two.settings["listen"]["machines"]
    control = ControlAddress(
        data / "ca.pem", two.appliance.server, machines, made["ca_fingerprint"]
    )
    return asyncio.run(IdentityStore(kinds.GATEWAY, folder, control).join(token))


@contextmanager
def attached(identity: Identity, address: str) -> Iterator[Iterator[rpc.AttachResponse]]:
    """The stream of a replica, as gateways open it."""
    certificate = (identity.key_pem, identity.certificate_pem)
    name = PrincipalKind.REPLICA.server_name
    with sync_channel(address, identity.ca_pem, *certificate, server_name=name) as channel:
        stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        requests: SimpleQueue[rpc.AttachRequest | None] = SimpleQueue()
        stream = stub.Attach(iter(requests.get, None), timeout=60)
        try:
            yield stream
        finally:
            requests.put(None)
            stream.cancel()


def refusal(stream: Iterator[rpc.AttachResponse]) -> str:
    """Why a stream ended."""
    with pytest.raises(grpc.RpcError) as raised:
        for _ in stream:
            pass
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
    return str(raised.value.details())


@pytest.mark.attack
def test_its_streams_end_at_every_replica_and_no_answer_of_the_others_fails(
    two: Two, tmp_path: Path
) -> None:
    two.settle()
    two.log_in()
    stolen, restarts = joined(two, tmp_path), two.restarts()
    addresses = [replica.address for replica in two.replicas()]
    with flowing(two.client, ENDPOINT, count=4, tokens=100) as asked, ExitStack() as stack:
        streams = [stack.enter_context(attached(stolen, address)) for address in addresses]
        for stream in streams:
            assert next(stream).HasField("heartbeat")
        time.sleep(ISSUING.total_seconds())  # A newer certificate may not have been heard of yet.
        assert all(next(stream).HasField("heartbeat") for stream in streams)
        two.appliance.alice.run("gateway", "evict", "stolen", "--yes")
        evicted = time.monotonic()
        for stream in streams:
            assert "its gateway was evicted" in refusal(stream)
        assert time.monotonic() - evicted < HEARS_SECONDS
        for address in addresses:
            with attached(stolen, address) as again:
                assert "its gateway was evicted" in refusal(again)
        answered = asked.answers
        time.sleep(2)
        assert asked.answers > answered
    assert asked.failures == []
    assert two.restarts() == restarts
