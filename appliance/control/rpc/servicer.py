"""What all servicers share: how an RPC reaches its service, and how a stream follows a resource.

A servicer is `class <Noun>Rpc(Servicer, <Noun>ServiceServicer)` in `rpc/<noun>.py`; each method
only translates:

    async def GetUser(self, request, context):
        return await self._run(self._service.get, self.caller, request.name)

Rules kept here:
* services are synchronous and run in threads, so a slow disk never stops the event loop; what may
  wait for the object store runs in threads for that alone (`_run_in(self._pool.storage, ...)`);
* permissions, audit and errors are the gate's business; a servicer has no `try` and no `abort`;
* work that has begun ends, also when its caller leaves, so that the audit result is true.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Protocol, TypeVar, cast

from google.protobuf.descriptor import ServiceDescriptor

from appliance.control.events import Events
from appliance.control.rpc.pools import CallPool
from appliance.control.services.common.caller import Caller, current_caller
from appliance.core.errors import Internal, InvalidInput
from appliance.wire.server import Service

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)

LOOK_AGAIN = 15.0
"""Seconds after which a watcher reads the state again even if nobody woke it."""


def stop_if_left() -> None:
    """Raise CancelledError when the call being served was cancelled, also if that was absorbed."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Intake(Protocol[M_contra, T_co]):
    """What takes in a caller's stream: `begin` made it, `abort` is called last in any case."""

    def add(self, message: M_contra) -> None:
        """Take a message after the first."""

    def close(self) -> None:
        """The stream has ended: check and seal what came."""

    def finish(self) -> T_co:
        """Let it appear."""

    def abort(self) -> None:
        """Leave nothing, unless it has appeared."""


class Servicer:
    """Base of every servicer.

    Args:
        pool: threads; shared by all servicers.
        events: wake-ups for Watch streams.
    """

    def __init__(self, pool: CallPool, events: Events) -> None:
        self._pool = pool
        self._events = events

    @property
    def caller(self) -> Caller:
        """Who makes the call being served."""
        return current_caller()

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a synchronous service method in a thread, in the context of this request."""
        return await self._run_in(self._pool, function, *arguments)

    async def _run_in(self, pool: Executor, function: Callable[..., T], *arguments: object) -> T:
        """As `_run`, in the threads of another pool."""
        call = functools.partial(contextvars.copy_context().run, function, *arguments)
        work = asyncio.get_running_loop().run_in_executor(pool, call)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # The caller has left, but a change under way ends one way or the other: what is
            # recorded as its outcome must be what happened.
            return await work

    async def _run_for_stream(self, function: Callable[..., T], *arguments: object) -> T:
        """As `_run` inside a stream: one whose caller has left goes no further."""
        return await self._look_in(self._pool, function, *arguments)

    async def _look_in(self, pool: Executor, function: Callable[..., T], *arguments: object) -> T:
        """As `_run_for_stream`, in the threads of another pool."""
        value = await self._run_in(pool, function, *arguments)
        stop_if_left()
        return value

    async def _take_in(
        self, begin: Callable[[Caller, M], Intake[M, T]], messages: AsyncIterator[M]
    ) -> T:
        """A caller's whole stream as one thing that appears at its end, or not at all.

        A connection that breaks looks like the end of the stream until gRPC says otherwise; hence
        the work of `close` lies between the last message and the decision to `finish`.
        """
        first = await anext(messages, None)
        if first is None:
            raise InvalidInput("the stream is empty: its first message names what to fill")
        pool = self._pool.storage
        intake = await self._run_in(pool, begin, self.caller, first)
        try:
            stop_if_left()
            async for message in messages:
                await self._look_in(pool, intake.add, message)
            await self._look_in(pool, intake.close)
            return await self._run_in(pool, intake.finish)
        finally:
            await self._run_in(pool, intake.abort)

    async def _follow(
        self, topic: str, read: Callable[[], T], ended: Callable[[T], bool], *more: str
    ) -> AsyncIterator[T]:
        """What `read` returns now and each time it is different, until `ended` says so.

        `topic` and `more` wake it.
        """
        last: T | None = None
        with self._events.watch(topic, *more) as watch:
            while True:
                value = await self._run_for_stream(read)
                if value != last:
                    yield value
                    last = value
                if ended(value):
                    return
                await watch.wait(LOOK_AGAIN)


def descriptor_of(kind: type[Servicer]) -> ServiceDescriptor:
    """The proto service a servicer's class implements."""
    module, base = _generated(kind)
    services = importlib.import_module(module.removesuffix("_grpc")).DESCRIPTOR.services_by_name
    return cast("ServiceDescriptor", services[base.removesuffix("Servicer")])


def service_of(servicer: Servicer) -> Service:
    """A servicer with the generated function that registers it, for a listener."""
    module, base = _generated(type(servicer))
    register = getattr(importlib.import_module(module), f"add_{base}_to_server")
    return Service(servicer, register)


def _generated(kind: type[Servicer]) -> tuple[str, str]:
    """Module and name of the generated class a servicer inherits from."""
    for base in kind.__mro__:
        if base.__module__.endswith("_pb2_grpc"):
            return base.__module__, base.__name__
    raise Internal(f"{kind.__name__} implements no service of the protos")
