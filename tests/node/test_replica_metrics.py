"""What replicas count is shown by the agent, and nothing that they make up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from appliance.node.replica_metrics import MAX_BYTES, MAX_SAMPLES, ReplicaMetrics, Source
from appliance.wire.server import Server
from appliance.worker import metrics
from appliance.worker.outputs import EngineActivity
from appliance.worker.service import WorkerLoad

ENDPOINT = "projects/p/endpoints/e"


def shown(*addresses: str) -> dict[tuple[str, str, str], float]:
    """Numbers of replicas r0, r1 and so on, by name, endpoint and replica."""
    registry = CollectorRegistry()
    sources = [Source(ENDPOINT, f"r{at}", address) for at, address in enumerate(addresses)]
    registry.register(ReplicaMetrics(lambda: sources))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, sample.labels["endpoint"], sample.labels["replica"]): sample.value
        for family in families
        for sample in family.samples
    }


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A port of loopback that says this to whoever connects; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(10)


def page(body: str) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + body.encode()


async def test_the_numbers_of_real_workers_are_shown_by_replica() -> None:
    registry = CollectorRegistry()
    metrics.show(registry, EngineActivity(), WorkerLoad())
    server = Server(metrics_address="127.0.0.1:0", registry=registry)
    server._start_metrics()
    try:
        address = f"127.0.0.1:{server.metrics_port}"
        found = shown(address, address)
    finally:
        await server.stop()
    assert found["appliance_worker_running", ENDPOINT, "r0"] == 0
    assert found["appliance_worker_running", ENDPOINT, "r1"] == 0
    assert {replica for *_, replica in found} == {"r0", "r1"}


def test_one_that_does_not_answer_is_left_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nobody = f"127.0.0.1:{silent.getsockname()[1]}"
    with answering(page("appliance_worker_steps 7\n")) as there:
        found = shown(nobody, there, "", "10.0.0.1:80", "127.0.0.1:99999")
    assert found == {("appliance_worker_steps", ENDPOINT, "r1"): 7}


@pytest.mark.attack
@pytest.mark.parametrize(
    "body",
    [
        'appliance_worker_steps{replica="r9"} 7\n',
        "appliance_node_connected 0\n",
        "process_cpu_seconds_total 1\n",
        "appliance_worker_steps{ 7\n",
        "\x00\x01",
        "x" * (MAX_BYTES + 1),
    ],
)
def test_what_a_replica_makes_up_is_not_shown(body: str) -> None:
    with answering(page(body)) as address:
        assert shown(address) == {}


@pytest.mark.attack
def test_a_replica_shows_so_many_numbers() -> None:
    names = (f"appliance_worker_{a}{b}" for a in "abcdefghijklmnop" for b in "abcdefghijklmnop")
    with answering(page("".join(f"{name} 1\n" for name in names))) as address:
        assert len(shown(address)) == MAX_SAMPLES


@pytest.mark.attack
def test_a_replica_that_answers_slowly_holds_up_nobody() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.75
        return now[0]

    with socket.create_server(("127.0.0.1", 0)) as slow:
        address = f"127.0.0.1:{slow.getsockname()[1]}"
        collector = ReplicaMetrics(lambda: [Source(ENDPOINT, "r0", address)] * 100, clock)
        assert list(collector.collect()) == []
    assert now[0] < 200


@pytest.mark.attack
@pytest.mark.parametrize("body", ["{, =+Inf'{1e999}", "a{b=", "# TYPE a b c d", "a 1 2 3 4", "\0"])
def test_what_no_parser_understands_hides_nothing_else(body: str) -> None:
    with answering(page(body)) as one, answering(page("appliance_worker_running 3\n")) as other:
        assert shown(one, other) == {("appliance_worker_running", ENDPOINT, "r1"): 3}


@pytest.mark.attack
def test_one_that_says_nothing_hides_no_other() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, answering(page("appliance_worker_running 3\n")) as other:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert shown(address, other) == {("appliance_worker_running", ENDPOINT, "r1"): 3}
