"""The door of a server: every call of every service passes here, in the same order.

Order of a call: its rule, its request (where the resource is in it), `enter` (who is it, may it),
the service, `leave` (what came out), the status. Rules kept here:
* a method without a rule is refused, whatever the service would have done;
* an error of ours becomes a status with details; any other exception becomes INTERNAL with the
  request id and its text stays in the log;
* `leave` runs once for each call that had a rule or should have had one, also for refused, failed
  and abandoned calls;
* a stream is judged again every few seconds, because a certificate may end and a right be taken
  away during it.

The attack: a call that reaches a service without a decision, or outlives it. `Door` is the frame;
the control plane's gate is one, `appliance.wire.machine_door` another.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from appliance.core import log
from appliance.core.errors import (
    ApplianceError,
    Cancelled,
    Denied,
    Internal,
    InvalidInput,
    UnknownMethod,
)
from appliance.core.identity import ANONYMOUS, Principal
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import HEALTH_SERVICE, Rule, resource_of
from appliance.wire.status import to_status

logger = logging.getLogger(__name__)

RECHECK_SECONDS = 4.0
"""Time between two judgements of a stream: what was revoked ends within five seconds."""

caller: ContextVar[Principal] = ContextVar("caller", default=ANONYMOUS)
"""Who made the call being served; set by the door, read by services."""

FIRST_MESSAGE_SECONDS = 20.0
"""Time a caller has to say what a stream is about."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Behaviour = Callable[[Any, Any], Any]
"""A service's function: (request or stream, context) to an awaitable or an async generator."""

_UNKNOWN = "unknown"
_LONGEST_METHOD = 200
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Entered = TypeVar("Entered")
"""What `enter` found out and `recheck` and `leave` need again."""


@dataclass(frozen=True)
class Call:
    """One call as the door sees it.

    Attributes:
        rule: what the call needs.
        request: the request; of a stream the first message, read only when the rule's resource is
            in it; None when there is none.
        metadata: what the caller sent beside it; keys in lower case; the last of equal keys counts.
        request_id: the caller's `x-request-id` when it is one, otherwise a new one.
        context: gRPC's.
    """

    rule: Rule
    request: Message | None
    metadata: Mapping[str, str | bytes]
    request_id: str
    context: Context

    @property
    def resource(self) -> str:
        """Name of the resource the call is about; empty for the whole appliance."""
        return resource_of(self.rule, self.request)

    @property
    def peer(self) -> str:
        """Address the call came from, as gRPC writes it: `ipv4:127.0.0.1:51234`."""
        return self.context.peer()

    @property
    def certificate(self) -> bytes | None:
        """The peer's certificate, PEM; None when it showed none."""
        found = self.context.auth_context().get("x509_pem_cert")
        return next(iter(found), None) if found else None


class Door(grpc.aio.ServerInterceptor, Generic[Entered]):  # type: ignore[type-arg]  # generic in the stubs only
    """The frame of a door; a subclass says who may enter."""

    def __init__(
        self,
        rules: Mapping[str, Rule],
        *,
        metrics: CallMetrics | None = None,
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        self.rules = rules
        self._metrics = metrics
        self._recheck_seconds = recheck_seconds

    @abstractmethod
    async def enter(self, call: Call) -> Entered:
        """Identify the caller and decide; what it returns is given to `recheck` and `leave`.

        Sets `caller` when the caller is known. Raises the error the caller shall see.
        """

    async def recheck(self, call: Call, entered: Entered) -> None:
        """Decide again about a running stream; raises when it must end."""

    async def leave(
        self, call: Call, entered: Entered | None, error: ApplianceError | None
    ) -> None:
        """Take note of the outcome; `entered` is None when `enter` raised, `error` without one.

        An error raised here is what the caller sees.
        """

    # The base class promises a handler always, but gRPC itself answers None for unknown methods.
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Put the door in front of a method's handler; also of one that does not exist."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            unknown = UnknownMethod("the server does not know this call")
            return grpc.stream_stream_rpc_method_handler(self._refusing(method, unknown))
        if method.startswith(HEALTH_SERVICE):
            return handler
        rule = self.rules.get(method)
        if rule is None:
            logger.error("no rule for %s: refused", method)
            closed = Denied("no access rule allows this call")
            return _same_kind(handler, self._refusing(method, closed))
        return _same_kind(handler, self._guarding(rule, handler))

    def _refusing(self, method: str, error: ApplianceError) -> Behaviour:
        """Behaviour of a method that is refused before anybody is asked."""
        rule = Rule(method[:_LONGEST_METHOD], permission="")

        async def refuse(_: object, context: Context) -> None:
            call = _call(rule, context)
            started = time.perf_counter()
            self._count_start(_UNKNOWN)
            told = error
            try:
                await self._leave(call, None, error)
            except ApplianceError as raised:
                told = raised
            finally:
                self._count_end(_UNKNOWN, error, started)
            await _abort(call, told)

        return refuse

    def _guarding(self, rule: Rule, handler: Handler) -> Behaviour:
        """Behaviour of a method behind the door."""
        behaviour = _behaviour(handler)

        async def guarded(incoming: object, context: Context) -> object:
            return await self._pass(_call(rule, context), incoming, behaviour)

        return guarded

    async def _pass(self, call: Call, incoming: object, behaviour: Behaviour) -> object:
        """One call from its first message to its status."""
        started = time.perf_counter()
        error: ApplianceError | None = None
        answer: object = None
        self._count_start(call.rule.method)
        try:
            answer = await self._noted(call, incoming, behaviour)
        except ApplianceError as raised:
            error = raised
        except BaseException as raised:
            error = _meaning(raised)
            raise
        finally:
            self._count_end(call.rule.method, error, started)
        if error is not None:
            await _abort(call, error)
        return answer

    async def _noted(self, call: Call, incoming: object, behaviour: Behaviour) -> object:
        """Enter, serve, and leave exactly once, whatever happens."""
        entered: Entered | None = None
        try:
            request, incoming = await _first(call.rule, incoming)
            call = replace(call, request=request)
            entered = await self.enter(call)
            serve = _serve(behaviour, incoming, call.context)
            if call.rule.streaming:
                answer = await self._watched(call, entered, serve)
            else:
                answer = await serve
        except (ApplianceError, asyncio.CancelledError, grpc.aio.AbortError) as ended:
            await self._leave(call, entered, _meaning(ended))
            raise
        except Exception as bug:
            hidden = _hidden(call, bug)
            await self._leave(call, entered, hidden)
            raise hidden from bug
        await self._leave(call, entered, None)
        return answer

    async def _leave(
        self, call: Call, entered: Entered | None, error: ApplianceError | None
    ) -> None:
        """`leave`, whose own bugs do not reach the caller either."""
        try:
            await self.leave(call, entered, error)
        except ApplianceError:
            raise
        except Exception as bug:
            raise _hidden(call, bug) from bug

    def _count_start(self, method: str) -> None:
        if self._metrics is not None:
            self._metrics.started(method)

    def _count_end(self, method: str, error: ApplianceError | None, started: float) -> None:
        if self._metrics is not None:
            code, reason = (error.code, error.reason) if error else ("OK", "")
            self._metrics.finished(method, code, reason, time.perf_counter() - started)

    async def _watched(
        self, call: Call, entered: Entered, serve: Coroutine[None, None, object]
    ) -> object:
        """Serve a stream; end it as soon as `recheck` says so."""
        work = asyncio.create_task(serve)
        try:
            while True:
                done, _ = await asyncio.wait({work}, timeout=self._recheck_seconds)
                if done:
                    return work.result()
                await self.recheck(call, entered)
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
                if not work.cancelled():
                    # The stream is over; what it raised while it was ended interests nobody.
                    work.exception()


def _call(rule: Rule, context: Context) -> Call:
    """The call before its request was read; from here on the log carries its id."""
    metadata = {key.lower(): value for key, value in context.invocation_metadata() or ()}
    asked = metadata.get("x-request-id")
    usable = isinstance(asked, str) and _REQUEST_ID.fullmatch(asked)
    request_id = str(asked) if usable else uuid.uuid4().hex
    log.request_id.set(request_id)
    return Call(rule, None, metadata, request_id, context)


def _meaning(ended: BaseException) -> ApplianceError:
    """What the end of a call means for metrics and for `leave`."""
    if isinstance(ended, ApplianceError):
        return ended
    if isinstance(ended, asyncio.CancelledError):
        return Cancelled("the caller left")
    return Internal("the service ended the call itself")


def _hidden(call: Call, bug: Exception) -> Internal:
    """What a caller hears of a bug; the log hears the rest."""
    logger.error("%s failed", call.rule.method, exc_info=bug)
    return Internal(
        "something went wrong in the server; its log has the details under request id "
        f"{call.request_id}"
    )


async def _abort(call: Call, error: ApplianceError) -> None:
    """End the call with the error's status."""
    # grpc-stubs is older than this method of the asyncio context.
    await cast("Any", call.context).abort_with_status(to_status(error, call.request_id))


async def _serve(behaviour: Behaviour, incoming: object, context: Context) -> object:
    """What the service answers; a stream of answers is sent from here."""
    answer = behaviour(incoming, context)
    if not inspect.isasyncgen(answer):
        return await answer
    async with contextlib.aclosing(answer):
        async for message in answer:
            await context.write(message)
    return None


def _behaviour(handler: Handler) -> Behaviour:
    """The one function a handler has."""
    functions = (
        handler.unary_unary,
        handler.unary_stream,
        handler.stream_unary,
        handler.stream_stream,
    )
    return cast("Behaviour", next(function for function in functions if function is not None))


def _same_kind(handler: Handler, behaviour: Behaviour) -> Handler:
    """A handler like `handler` with another behaviour."""
    make: Callable[..., Handler] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


async def _first(
    rule: Rule,
    incoming: Any,  # noqa: ANN401 - a message or a stream of them, of any type
) -> tuple[Message | None, object]:
    """The request that names the resource, and what the service gets, the first one included."""
    if not rule.request_streaming:
        return incoming, incoming
    if not rule.resource:
        return None, incoming
    stream = aiter(incoming)
    try:
        async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
            first: Message | None = await anext(stream, None)
    except TimeoutError as error:
        raise InvalidInput("the first message of the stream did not come in time") from error

    async def whole() -> AsyncIterator[Message]:
        if first is not None:
            yield first
        async for message in stream:
            yield message

    return first, whole()
