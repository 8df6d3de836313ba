# ruff: noqa: ANN401, ARG002, N802 - the proto names methods; generated code and gRPC have no types
"""What a gateway needs around it, without engines: a control plane's routing, and two replicas.

They run in a process of their own, so that their work is not counted as the gateway's. A replica
makes one token for each answer in a step and one message for each step, as the worker does, either
as fast as its reader takes them or one step each `TICK_SECONDS`, as an engine does.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import pydoc_data.topics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any

import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from appliance.api.inference.v1 import generation_pb2, worker_service_pb2, worker_service_pb2_grpc
from appliance.api.serving.v1 import endpoint_pb2, routing_service_pb2, routing_service_pb2_grpc
from appliance.core.identity import Principal, PrincipalKind
from appliance.wire import routing
from appliance.wire.machine_door import MachineDoor
from appliance.wire.rules import rules_of
from appliance.wire.server import Listener, Server, Service
from appliance.wire.tls import server_credentials

CLUSTER = "bench"
KINDS = ("saturated", "paced")
LONG = "long"
"""The replica that takes long prompts, with a tokenizer of words and a template."""
LONG_CONTEXT = 1 << 19
TICK_SECONDS = 0.02
BEAT_SECONDS = 0.25
LONGEST = 4096
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content | trim }}{% endfor %}<s>"
WORDS = b"The relay passes on what the replica says, letter by letter. "


@dataclass(frozen=True)
class Pair:
    """A private key and its certificate, PEM."""

    key: bytes = field(repr=False)
    certificate: bytes


@dataclass(frozen=True)
class Cast:
    """Who the stand-ins are, and the one caller they let the gateway know."""

    ca: bytes
    control: Pair
    replicas: dict[str, Pair]
    token_key: bytes = field(repr=False)
    token_id: str
    token_digest: bytes


def endpoint(kind: str) -> str:
    """Name of the endpoint that a replica of this kind serves."""
    return f"projects/bench/endpoints/{kind}"


def replica(kind: str) -> Principal:
    """Who the replica of this kind is."""
    return Principal(PrincipalKind.REPLICA, kind)


def run(cast: Cast, parent: Connection) -> None:
    """Serve until the parent says so; tells it the ports: of the control plane, then by kind."""
    # That an asker leaves is how each round ends, and nothing to warn of.
    logging.getLogger("appliance.wire").setLevel(logging.ERROR)
    uvloop.run(_run(cast, parent))


async def _run(cast: Cast, parent: Connection) -> None:
    servers: list[Server] = []
    ports: dict[str, int] = {}
    for kind in (*KINDS, LONG):
        service = Service(
            Replica(TICK_SECONDS if kind == "paced" else 0.0),
            worker_service_pb2_grpc.add_WorkerServiceServicer_to_server,
        )
        server, ports[kind] = _serve(cast, cast.replicas[kind], worker_service_pb2, service)
        servers.append(server)
    routing = Service(
        Routing(_view(cast, ports)), routing_service_pb2_grpc.add_RoutingServiceServicer_to_server
    )
    server, control = _serve(cast, cast.control, routing_service_pb2, routing)
    servers.append(server)
    for server in servers:
        await server.start()
    parent.send((control, ports))
    await asyncio.to_thread(parent.recv)
    for server in servers:
        await server.stop()


def _serve(
    cast: Cast,
    pair: Pair,
    module: Any,
    service: Service,
) -> tuple[Server, int]:
    rules = rules_of(module.DESCRIPTOR.services_by_name.values())
    server = Server(grace=0.0)
    credentials = server_credentials(pair.key, pair.certificate, cast.ca, require_client=True)
    door = MachineDoor(rules, CLUSTER, {PrincipalKind.GATEWAY})
    listener = Listener("127.0.0.1:0", "listen", credentials, [door], [service], rules)
    return server, server.bind(listener)


def _view(cast: Cast, ports: dict[str, int]) -> routing_service_pb2.RoutingView:
    principal = "serviceAccounts/bench"
    ends = Timestamp()
    ends.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    view = routing_service_pb2.RoutingView(
        version=1,
        token_key=cast.token_key,
        credentials=[
            routing_service_pb2.Credential(
                id=cast.token_id, digest=cast.token_digest, principal=principal, expire_time=ends
            )
        ],
        rights=[
            routing_service_pb2.Right(
                principal=principal, project="projects/bench", permissions=["endpoints.infer"]
            )
        ],
        routes=[
            routing_service_pb2.Route(
                endpoint=endpoint(kind),
                project="projects/bench",
                model=f"projects/bench/models/{kind}/versions/1",
                max_sequence_length=LONG_CONTEXT if kind == LONG else LONGEST,
                replicas=[
                    endpoint_pb2.Replica(
                        id=kind,
                        state="STATE_READY",
                        epoch=1,
                        address=f"127.0.0.1:{port}",
                        server_name=replica(kind).server_name,
                    )
                ],
            )
            for kind, port in ports.items()
        ],
    )
    entries: list[routing.ViewEntry] = [*view.credentials, *view.rights, *view.routes]
    digests = [routing.entry_digest(entry) for entry in entries]
    view.digest = routing.digest(routing.total(0, digests, ()))
    return view


def letters() -> Tokenizer:
    """A tokenizer with one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def words() -> Tokenizer:
    """A tokenizer of words, trained on Python's documentation."""
    made = letters()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    return made


class Routing(routing_service_pb2_grpc.RoutingServiceServicer):
    """One view that never changes, one tokenizer; usage is taken and forgotten."""

    def __init__(self, view: routing_service_pb2.RoutingView) -> None:
        self._view = view
        self._letters = letters().to_str().encode()
        self._words = words().to_str().encode()

    async def WatchRouting(
        self, request: Any, context: Any
    ) -> AsyncIterator[routing_service_pb2.RoutingView]:
        """The view, then its pulse."""
        yield self._view
        while True:
            await asyncio.sleep(1.0)
            yield routing_service_pb2.RoutingView(version=self._view.version, unchanged=True)

    async def ReadServedTokenizer(
        self, request: Any, context: Any
    ) -> AsyncIterator[routing_service_pb2.ServedTokenizerPart]:
        """The tokenizer of an endpoint, in one piece."""
        long = request.endpoint == endpoint(LONG)
        tokenizer, template = (self._words, TEMPLATE.encode()) if long else (self._letters, b"")
        whole = tokenizer + template
        yield routing_service_pb2.ServedTokenizerPart(
            tokenizer=routing_service_pb2.ServedTokenizer(),
            content="words" if long else "letters",
            tokenizer_json_size=len(tokenizer),
            chat_template_size=len(template),
        )
        yield routing_service_pb2.ServedTokenizerPart(data=whole)
        yield routing_service_pb2.ServedTokenizerPart(digest=hashlib.sha256(whole).digest())

    async def ReportUsage(
        self, request: Any, context: Any
    ) -> routing_service_pb2.ReportUsageResponse:
        """Durable, in a manner of speaking."""
        return routing_service_pb2.ReportUsageResponse()


class Replica(worker_service_pb2_grpc.WorkerServiceServicer):
    """Answers with `WORDS`, over and over.

    Args:
        tick: seconds between two steps; 0: as fast as they are taken.
    """

    def __init__(self, tick: float) -> None:
        self._tick = tick
        self._ids = letters().encode(WORDS.decode()).ids

    async def Attach(self, request_iterator: Any, context: Any) -> None:
        """One gateway's answers, until it leaves."""
        answers: dict[int, tuple[int, int]] = {}
        filled = asyncio.Event()
        reader = asyncio.create_task(_read(request_iterator, answers, filled))
        try:
            await self._step(context, answers, filled)
        finally:
            reader.cancel()

    async def _step(
        self,
        context: Any,
        answers: dict[int, tuple[int, int]],
        filled: asyncio.Event,
    ) -> None:
        steps, beat_at, next_at = 0, 0.0, time.monotonic()
        while True:
            if not answers:
                filled.clear()
                await _wait(filled, BEAT_SECONDS)
                next_at = time.monotonic()
            message = worker_service_pb2.AttachResponse()
            self._answer(message, answers)
            steps += bool(message.outputs)
            now = time.monotonic()
            if now >= beat_at:
                beat_at = now + BEAT_SECONDS
                message.heartbeat.steps, message.heartbeat.running = steps, len(answers)
            await context.write(message)
            next_at += self._tick
            # Also without a tick: a write that does not wait lets nobody else run.
            await asyncio.sleep(max(0.0, next_at - time.monotonic()) if self._tick else 0.0)

    def _answer(
        self, message: worker_service_pb2.AttachResponse, answers: dict[int, tuple[int, int]]
    ) -> None:
        """Put the next token of each answer into a message."""
        for identifier, (made, most) in list(answers.items()):
            output = message.outputs.add(
                id=identifier, token_ids=[self._ids[made % len(self._ids)]]
            )
            if made + 1 < most:
                answers[identifier] = made + 1, most
            else:
                output.finish_reason = generation_pb2.FINISH_REASON_LENGTH
                del answers[identifier]


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def _read(orders: Any, answers: dict[int, tuple[int, int]], filled: asyncio.Event) -> None:
    async for order in orders:
        if order.HasField("submit"):
            answers[order.submit.id] = 0, order.submit.sampling.max_tokens
            filled.set()
        else:
            answers.pop(order.abort.id, None)
