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
the control plane's gate and the gateway's access are doors, and `MachineDoor` is the one for
servers that only machines call.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from appliance.core import log
from appliance.core.errors import (
    ApplianceError,
    Cancelled,
    Denied,
    Internal,
    Unauthenticated,
    UnknownMethod,
)
from appliance.core.identity import ANONYMOUS, Principal, PrincipalKind
from appliance.crypto.certs import peer_identity
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import HEALTH_SERVICE, Rule, resource_of
from appliance.wire.status import to_status

logger = logging.getLogger(__name__)

RECHECK_SECONDS = 4.0
"""Time between two judgements of a stream; with a call in between below the required five seconds."""

caller: ContextVar[Principal] = ContextVar("caller", default=ANONYMOUS)
"""Who made the call being served; set by the door, read by services."""

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
    context: grpc.aio.ServicerContext[Any, Any]

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


class Door(grpc.aio.ServerInterceptor, Generic[Entered]):
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
        """Take note of the outcome: `entered` is None when `enter` raised, `error` when it went well.

        An error raised here is what the caller sees.
        """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Put the door in front of a method's handler; also of one that does not exist."""
        method = handler_call_details.method
        handler: grpc.RpcMethodHandler | None = await continuation(handler_call_details)
        if method.startswith(HEALTH_SERVICE):
            return handler
        if handler is None:
            error: ApplianceError = UnknownMethod("the server does not know this call")
            return grpc.stream_stream_rpc_method_handler(self._refusing(method, error))
        rule = self.rules.get(method)
        if rule is None:
            logger.error("no rule for %s: refused", method)
            error = Denied("no access rule allows this call")
            return _same_kind(handler, self._refusing(method, error))
        return _same_kind(handler, self._guarding(rule, handler))

    def _refusing(self, method: str, error: ApplianceError) -> Callable[..., Awaitable[None]]:
        """Behaviour of a method that is refused before anybody is asked."""
        rule = Rule(method[:200], permission="")

        async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            call = self._call(rule, None, context)
            await self.leave(call, None, error)
            await context.abort_with_status(to_status(error, call.request_id))

        return refuse

    def _guarding(
        self, rule: Rule, handler: grpc.RpcMethodHandler
    ) -> Callable[..., Awaitable[Any]]:
        """Behaviour of a method behind the door."""
        behaviour = _behaviour(handler)

        async def guarded(
            incoming: Any,  # noqa: ANN401 - a message or a stream of them, of any type
            context: grpc.aio.ServicerContext[Any, Any],
        ) -> object:
            request, incoming = await _first(rule, incoming)
            call = self._call(rule, request, context)

            async def serve() -> object:
                answer = behaviour(incoming, context)
                if not inspect.isasyncgen(answer):
                    return await answer
                async for message in answer:
                    await context.write(message)
                return None

            return await self._pass(call, serve)

        return guarded

    def _call(
        self, rule: Rule, request: Message | None, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Call:
        metadata = {key.lower(): value for key, value in context.invocation_metadata() or ()}
        asked = metadata.get("x-request-id", "")
        wanted = isinstance(asked, str) and _REQUEST_ID.fullmatch(asked)
        request_id = str(asked) if wanted else uuid.uuid4().hex
        log.request_id.set(request_id)
        return Call(rule, request, metadata, request_id, context)

    async def _pass(self, call: Call, serve: Callable[[], Awaitable[object]]) -> object:
        """One call from `enter` to its status."""
        started = time.perf_counter()
        error: ApplianceError | None = None
        answer: object = None
        if self._metrics:
            self._metrics.started(call.rule.method)
        try:
            answer = await self._noted(call, serve)
        except ApplianceError as raised:
            error = raised
        except asyncio.CancelledError:
            error = Cancelled("the caller left")
            raise
        except grpc.aio.AbortError:
            error = Internal("ended by the service")
            raise
        finally:
            if self._metrics:
                code, reason = (error.code, error.reason) if error else ("OK", "")
                seconds = time.perf_counter() - started
                self._metrics.finished(call.rule.method, code, reason, seconds)
        if error is not None:
            await call.context.abort_with_status(to_status(error, call.request_id))
        return answer

    async def _noted(self, call: Call, serve: Callable[[], Awaitable[object]]) -> object:
        """Enter, serve, and leave exactly once, whatever happens."""
        entered: Entered | None = None
        try:
            entered = await self.enter(call)
            work = self._watched(call, entered, serve) if call.rule.streaming else serve()
            answer = await work
        except ApplianceError as error:
            await self.leave(call, entered, error)
            raise
        except asyncio.CancelledError:
            await self.leave(call, entered, Cancelled("the caller left"))
            raise
        except grpc.aio.AbortError:
            await self.leave(call, entered, Internal("ended by the service"))
            raise
        except Exception as bug:
            logger.exception("%s failed", call.rule.method)
            error = Internal(
                "something went wrong in the server; its log has the details under request id "
                f"{call.request_id}"
            )
            await self.leave(call, entered, error)
            raise error from bug
        await self.leave(call, entered, None)
        return answer

    async def _watched(
        self, call: Call, entered: Entered, serve: Callable[[], Awaitable[object]]
    ) -> object:
        """Serve a stream; end it as soon as `recheck` says so."""
        work = asyncio.ensure_future(serve())
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


def _behaviour(handler: grpc.RpcMethodHandler) -> Callable[..., Any]:
    """The one function a handler has."""
    found: Callable[..., Any] = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    return found


def _same_kind(
    handler: grpc.RpcMethodHandler, behaviour: Callable[..., Awaitable[Any]]
) -> grpc.RpcMethodHandler:
    """A handler like `handler` with another behaviour."""
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    made: grpc.RpcMethodHandler = make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made


async def _first(rule: Rule, incoming: Any) -> tuple[Message | None, Any]:  # noqa: ANN401 - any message
    """The request that names the resource, and the requests for the service, the first included."""
    if not rule.request_streaming:
        return incoming, incoming
    if not rule.resource:
        return None, incoming
    stream = aiter(incoming)
    first: Message | None = await anext(stream, None)

    async def whole() -> AsyncIterator[Message]:
        if first is not None:
            yield first
        async for message in stream:
            yield message

    return first, whole()


class MachineDoor(Door[Principal]):
    """The door of a server that only machines call: the certificate says who, on every call.

    Args:
        rules: of all methods of the server.
        cluster: id of the cluster the caller must belong to.
        allowed: kinds of callers that may call.
        evicted: whether a caller is refused now although its certificate still holds.
        now: the time.
        metrics: counts calls.
        recheck_seconds: time between two judgements of a stream.
    """

    def __init__(
        self,
        rules: Mapping[str, Rule],
        cluster: str,
        allowed: Collection[PrincipalKind],
        *,
        evicted: Callable[[Principal], bool] = lambda _: False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        metrics: CallMetrics | None = None,
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        super().__init__(rules, metrics=metrics, recheck_seconds=recheck_seconds)
        self._cluster = cluster
        self._allowed = frozenset(allowed)
        self._evicted = evicted
        self._now = now

    def identify(self, call: Call) -> Principal:
        """Who calls. Raises Unauthenticated or Denied."""
        certificate = call.certificate
        if certificate is None:
            raise Unauthenticated("this server asks for a certificate of the appliance")
        principal = peer_identity(certificate, self._cluster, self._now(), need="client")
        if principal.kind not in self._allowed:
            raise Denied(f"{principal} may not call this server", principal=principal.name)
        if self._evicted(principal):
            raise Denied(f"{principal} was evicted", principal=principal.name)
        return principal

    async def enter(self, call: Call) -> Principal:
        """Identify the caller."""
        principal = self.identify(call)
        caller.set(principal)
        return principal

    async def recheck(self, call: Call, entered: Principal) -> None:
        """Identify it again."""
        if self.identify(call) != entered:
            raise Unauthenticated("the caller changed during the call")

    async def leave(
        self, call: Call, entered: Principal | None, error: ApplianceError | None
    ) -> None:
        """Log what was refused; what went well is in the metrics."""
        if error is not None:
            logger.warning(
                "%s: %s",
                error.reason,
                error.message,
                extra={
                    "method": call.rule.method,
                    "peer": call.peer,
                    "principal": str(entered or ANONYMOUS),
                },
            )
