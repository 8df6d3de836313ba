"""Serves one engine over mTLS: proves that it works, says so, and drains when told to stop.

Rules kept here:
* nothing listens before the engine has made a token, and gateways alone may call;
* SIGTERM drains: heartbeats and health say so, what is in work ends, then the process.

Called by `appliance.worker.main` inside the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from prometheus_client import CollectorRegistry

from appliance.api.inference.v1 import worker_service_pb2, worker_service_pb2_grpc
from appliance.core.addresses import host_port, split_address
from appliance.core.errors import Unavailable
from appliance.core.identity import PrincipalKind
from appliance.wire.accepted import AcceptedFile
from appliance.wire.machine_door import MachineDoor
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import rules_of
from appliance.wire.server import Listener, Server, Service
from appliance.wire.tls import server_credentials
from appliance.worker import metrics
from appliance.worker.orders import ReplicaOrders
from appliance.worker.outputs import Output
from appliance.worker.reports import WorkerReports
from appliance.worker.requests import EngineRequest
from appliance.worker.service import Generator, WorkerLoad, WorkerService

logger = logging.getLogger(__name__)

FIRST_TOKEN_SECONDS = 180.0
"""Ranks that share few cores take long over their first step, and only over that."""
MIN_DRAIN_SECONDS = 1.0
"""Four heartbeats: every gateway knows by then, and what it sent before is here."""
MAX_DRAIN_SECONDS = 3600.0
"""As long as an answer may take. Whoever said stop has said for how long, and ends it then; what is
not done goes on in another replica of the same version, if there is one."""
DRAIN_LOOK_SECONDS = 0.05
CLOSE_SECONDS = 0.5
OPTIONS = (
    # One stream lasts as long as its gateway; cutting it by age would interrupt every answer.
    ("grpc.max_connection_age_ms", 2**31 - 1),
    ("grpc.max_connection_idle_ms", 2**31 - 1),
)


async def prove(engine: Generator) -> None:
    """Have the engine make one token. Raises Unavailable when it does not."""
    done: asyncio.Future[Output] = asyncio.get_running_loop().create_future()

    def sink(output: Output) -> None:
        if not done.done():
            done.set_result(output)

    request = EngineRequest([0], 1, 0.0, 1.0, 0, None, [])
    await engine.submit("proof", request, sink)
    try:
        async with asyncio.timeout(FIRST_TOKEN_SECONDS):
            output = await done
    except TimeoutError as error:
        raise Unavailable(
            f"the engine made no token within {FIRST_TOKEN_SECONDS:.0f} seconds"
        ) from error
    if output.failed or len(output.tokens) != 1:
        raise Unavailable("the engine failed at its first token")


async def serve(orders: ReplicaOrders, engine: Generator, reports: WorkerReports) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises:
        Unavailable: the engine does not work.
        FailedPrecondition: the address cannot be listened on.
    """
    await prove(engine)
    load = WorkerLoad()
    registry = CollectorRegistry()
    server = Server(metrics_address="127.0.0.1:0", registry=registry, grace=CLOSE_SECONDS)
    metrics.show(registry, engine.activity, load)
    rules = rules_of(worker_service_pb2.DESCRIPTOR.services_by_name.values())
    calls = CallMetrics(registry)
    port = server.bind(
        Listener(
            address=orders.listen,
            setting="listen",
            credentials=server_credentials(
                orders.key_pem, orders.cert_pem, orders.ca_pem, require_client=True
            ),
            interceptors=[
                MachineDoor(
                    rules,
                    orders.cluster_id,
                    {PrincipalKind.GATEWAY},
                    check=AcceptedFile(orders.gateways).check,
                    metrics=calls,
                )
            ],
            services=[
                Service(
                    WorkerService(engine, load),
                    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server,
                )
            ],
            rules=rules,
            options=OPTIONS,
        )
    )
    stop = _stop_signal()
    await server.start()
    await server.set_serving(serving=True)
    host, _ = split_address(orders.listen, "listen")
    reports.ready(host_port(host, port), f"127.0.0.1:{server.metrics_port}")
    await stop.wait()
    await server.set_serving(serving=False)
    await drain(load)
    await server.stop()


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def drain(
    load: WorkerLoad, *, least: float = MIN_DRAIN_SECONDS, most: float = MAX_DRAIN_SECONDS
) -> None:
    """Let what is in work end: for `least` seconds at least and `most` at most."""
    load.draining = True
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < most:
        if passed >= least and not load.answers:
            break
        await asyncio.sleep(DRAIN_LOOK_SECONDS)
    logger.info("drained", extra={"answers_left": load.answers})
