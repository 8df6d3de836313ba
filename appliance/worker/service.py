"""gRPC service of a worker: one stream for each gateway, one message for each engine step.

Rules kept here:
* all answers of a gateway share a stream: the price of a message is per message, not per token;
* only one task writes to a stream; a slow one holds a bounded outbox and stops nobody;
* a heartbeat goes out every 250 ms, with or without tokens, so that silence means trouble;
* an abort, and the end of a stream, free the slots of their answers at once;
* gateways hear how many answers a step works on and how many wait: what waits is not late, and what
  is too much is neither the caller's fault nor the replica's;
* while it drains the worker still takes what a gateway sent before it heard of that.

Called by gRPC behind the door for machines; constructed by `appliance.worker.main`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import grpc.aio

from appliance.api.inference.v1 import generation_pb2, worker_service_pb2, worker_service_pb2_grpc
from appliance.core.errors import ApplianceError, InvalidInput, Unavailable
from appliance.wire.sending import send
from appliance.worker.outbox import StreamOutbox
from appliance.worker.outputs import LENGTH, STOP, EngineActivity, Output
from appliance.worker.requests import EngineLimits, EngineRequest, request_of

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.25
SEND_SECONDS = 10.0
"""A gateway that takes no message for so long is gone: its answers go on elsewhere."""
MAX_ANSWERS = 1024
"""Answers in work for all gateways; a gateway's own limits are far below."""

_FINISH = {
    "": generation_pb2.FINISH_REASON_UNSPECIFIED,
    STOP: generation_pb2.FINISH_REASON_STOP,
    LENGTH: generation_pb2.FINISH_REASON_LENGTH,
}

Context = grpc.aio.ServicerContext[Any, Any]


class Generator(Protocol):
    """What is asked of `appliance.worker.engine.Engine`."""

    activity: EngineActivity
    limits: EngineLimits

    async def submit(
        self, identifier: str, request: EngineRequest, sink: Callable[[Output], None]
    ) -> None:
        """Start an answer."""

    async def abort(self, identifiers: list[str]) -> None:
        """Forget answers."""


class WorkerLoad:
    """Answers in work over all streams, and whether the worker drains."""

    def __init__(self) -> None:
        self.answers = 0
        self.draining = False
        self.tokens = 0


class WorkerService(worker_service_pb2_grpc.WorkerServiceServicer):
    """Serves `Attach` with one engine."""

    def __init__(self, engine: Generator, load: WorkerLoad) -> None:
        self._engine = engine
        self._load = load
        self._streams = 0

    async def Attach(  # noqa: N802  # the generated base class names it
        self,
        request_iterator: AsyncIterator[worker_service_pb2.AttachRequest],
        context: Context,
    ) -> None:
        """Take orders and send outputs until either side ends the stream."""
        self._streams += 1
        stream = _Stream(self._engine, self._load, str(self._streams))
        reader = asyncio.create_task(stream.read(request_iterator))
        writer = asyncio.create_task(stream.write(context))
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reader, writer):
                task.cancel()
            try:
                # First: a message that is on its way to nobody keeps no slot.
                await stream.end()
            finally:
                ended = await asyncio.gather(reader, writer, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, ApplianceError):
                raise outcome


class _Stream:
    """One gateway's answers."""

    def __init__(self, engine: Generator, load: WorkerLoad, name: str) -> None:
        self._engine = engine
        self._load = load
        self._name = name
        self._outbox = StreamOutbox()
        self._answers: set[int] = set()

    async def read(self, orders: AsyncIterator[worker_service_pb2.AttachRequest]) -> None:
        """Carry out orders until the gateway has no more. Raises InvalidInput for a broken one."""
        async for order in orders:
            kind = order.WhichOneof("order")
            if kind == "submit":
                await self._submit(order.submit)
            elif kind == "abort":
                await self._abort(order.abort.id)
            else:
                raise InvalidInput("a message of the stream has no order")

    async def _submit(self, submit: worker_service_pb2.Submit) -> None:
        identifier = submit.id
        if identifier in self._answers:
            raise InvalidInput(f"two answers of the stream have the id {identifier}")
        if self._load.answers >= MAX_ANSWERS:
            self._outbox.busy(identifier)
            return
        try:
            request = request_of(submit, self._engine.limits)
        except InvalidInput as error:
            self._outbox.refuse(identifier, error.message)
            return

        def sink(output: Output) -> None:
            self._took(identifier, output)

        # Noted before the engine has it: whatever happens meanwhile, `end` forgets it.
        self._answers.add(identifier)
        self._load.answers += 1
        await self._engine.submit(self._full(identifier), request, sink)

    def _full(self, identifier: int) -> str:
        """The identifier of an answer among those of all streams."""
        return f"{self._name}-{identifier}"

    def _took(self, identifier: int, output: Output) -> None:
        """The engine made an output; runs in the engine's turn of the loop and never waits."""
        if identifier not in self._answers:
            return
        if output.failed:
            # Not for the caller to see: the stream ends, and the gateway goes on elsewhere.
            self._outbox.fail(Unavailable("the engine lost an answer"))
            return
        self._load.tokens += len(output.tokens)
        self._outbox.tokens(identifier, output.tokens, _FINISH[output.finish])
        if output.finish:
            self._done(identifier)

    def _done(self, identifier: int) -> None:
        self._answers.discard(identifier)
        self._load.answers -= 1

    async def _abort(self, identifier: int) -> None:
        self._outbox.forget(identifier)
        if identifier in self._answers:
            self._done(identifier)
            await self._engine.abort([self._full(identifier)])

    async def write(self, context: Context) -> None:
        """Send what there is, and a heartbeat when one is due, until it raises Unavailable."""
        due = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._outbox.filled.wait()
            message = worker_service_pb2.AttachResponse(outputs=self._outbox.take())
            if time.monotonic() >= due:
                message.heartbeat.CopyFrom(self._heartbeat())
                due = time.monotonic() + HEARTBEAT_SECONDS
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await send(context, message)
            except TimeoutError as error:
                raise Unavailable("the gateway takes no messages; attach again") from error

    def _heartbeat(self) -> worker_service_pb2.Heartbeat:
        activity = self._engine.activity
        return worker_service_pb2.Heartbeat(
            steps=activity.steps,
            running=activity.running,
            waiting=activity.waiting,
            draining=self._load.draining,
            step_age_seconds=activity.age,
            slots=self._engine.limits.slots,
        )

    async def end(self) -> None:
        """Forget all answers of the stream."""
        forgotten = [self._full(identifier) for identifier in self._answers]
        self._load.answers -= len(self._answers)
        self._answers.clear()
        if forgotten:
            logger.info("a gateway left; %d answers are forgotten", len(forgotten))
            await self._engine.abort(forgotten)
