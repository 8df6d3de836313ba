"""The door of a server: every call of every service passes here, in the same order.

Order of a call: a place for it, by source, while nobody knows who calls; `identify`, from what came
with the call itself and never from a message; a seat of that caller; the first message, within a
time; `enter` (may it), the service, `leave` (what came out), the status. Rules kept here:
* a method without a rule is refused, whatever the service would have done;
* nobody waits for a stranger: a call that needs an identity is judged before a message is read, and
  one that needs none holds one of the few places of its source, where who waits longest goes for
  who comes;
* an error of ours becomes a status with details; any other exception becomes INTERNAL with the
  request id and its text stays in the log;
* the request id is always ours; the one a caller sent is kept beside it;
* `leave` runs once for each call that had a rule or should have had one, also for refused, failed
  and abandoned calls;
* a stream is judged again every few seconds, because a certificate may end and a right be taken
  away during it.

The attacks: a call that reaches a service without a decision, or outlives it; calls that are opened
and held so that nobody else finds a place. `Door` is the frame; the control plane's gate is one,
`appliance.wire.machine_door` another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Generic, TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import Message

from appliance.core import log
from appliance.core.errors import (
    ApplianceError,
    Cancelled,
    Denied,
    Internal,
    UnknownMethod,
)
from appliance.core.identity import ANONYMOUS, Principal
from appliance.wire.admission import source_of
from appliance.wire.budgets import Admission, class_of
from appliance.wire.handlers import (
    Behaviour,
    Context,
    Handler,
    Incoming,
    behaviour_of,
    parser_of,
    receiving_bytes,
)
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import HEALTH_SERVICE, AccessRule, resource_of
from appliance.wire.sending import end_with, forget, serve
from appliance.wire.status import to_status

logger = logging.getLogger(__name__)

RECHECK_SECONDS = 4.0
"""Time between two judgements of a stream: what was revoked ends within five seconds."""

caller: ContextVar[Principal] = ContextVar("caller", default=ANONYMOUS)
"""Who made the call being served; set by the door, read by services."""

UNKNOWN = "unknown"
"""Stands for the name of a method that nobody has, where names must be ours."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Entered = TypeVar("Entered")
"""What `enter` found out and `recheck` and `leave` need again."""


@dataclass(frozen=True)
class Call:
    """One call as the door sees it.

    Attributes:
        rule: what the call needs.
        request: the request; of a stream the first message, read only when the rule's resource is
            in it; None when there is none, and while the caller is identified.
        metadata: what the caller sent beside it; keys in lower case; the last of equal keys counts.
        request_id: of this call; made here.
        context: gRPC's; asked by nobody but the event loop while the call lives.
        peer: address the call came from: `ipv4:127.0.0.1:51234`, `ipv6:[::1]:51234`.
        certificate: the peer's, PEM; None when it showed none.
        caller_request_id: the caller's own `x-request-id`, when it is one; names nothing of ours.
        answer: what the service answered, once it has; of a stream of answers None.
    """

    rule: AccessRule
    request: Message | None
    metadata: Mapping[str, str | bytes]
    request_id: str
    context: Context
    peer: str = ""
    certificate: bytes | None = None
    caller_request_id: str = ""
    answer: Message | None = None

    @property
    def resource(self) -> str:
        """Name of the resource the call is about; empty for the whole appliance."""
        return resource_of(self.rule, self.request)

    @property
    def source(self) -> str:
        """What the call counts for while its caller is unknown, see `source_of`."""
        return source_of(self.peer)


class Door(grpc.aio.ServerInterceptor, Generic[Entered]):  # type: ignore[type-arg]  # generic in the stubs only
    """The frame of a door; a subclass says who may enter."""

    def __init__(
        self,
        rules: Mapping[str, AccessRule],
        *,
        admission: Admission | None = None,
        metrics: CallMetrics | None = None,
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        self.rules = rules
        self._admission = admission or Admission()
        self._metrics = metrics
        self._recheck_seconds = recheck_seconds

    @abstractmethod
    async def identify(self, call: Call) -> Principal:
        """Who calls, from the metadata or the certificate alone: no message was read.

        `ANONYMOUS` for a call that needs no identity. Raises the error the caller shall see.
        """

    @abstractmethod
    async def enter(self, call: Call) -> Entered:
        """Decide whether the identified caller may; the result goes to `recheck` and `leave`.

        Raises the error the caller shall see.
        """

    async def recheck(self, call: Call, entered: Entered) -> None:
        """Decide again about a running stream; raises when it must end."""

    async def leave(
        self, call: Call, entered: Entered | None, error: ApplianceError | None
    ) -> None:
        """Take note of the outcome; `entered` is None when `enter` raised, `error` without one.

        An error raised here is what the caller sees.
        """

    def fault(self, call: Call, bug: Exception) -> Internal:
        """What a caller hears of a bug; the log hears the rest."""
        logger.error("%s failed", call.rule.method, exc_info=bug)
        return Internal(
            "something went wrong in the server; its log has the details under request id "
            f"{call.request_id}"
        )

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
            return receiving_bytes(self._refusing(UNKNOWN, unknown), streams=True)
        if method.startswith(HEALTH_SERVICE):
            return handler
        rule = self.rules.get(method)
        if rule is None:
            logger.error("no rule for %s: refused", method)
            closed = Denied("no access rule allows this call")
            return self._wrap_handler(handler, self._refusing(method, closed))
        return self._wrap_handler(handler, self._guarding(rule, handler))

    def _wrap_handler(self, handler: Handler, behaviour: Behaviour) -> Handler:
        """A handler that answers as `handler` does, and lets the door receive the messages."""
        return receiving_bytes(
            behaviour,
            streams=handler.response_streaming,
            serializer=handler.response_serializer,
        )

    def _refusing(self, method: str, error: ApplianceError) -> Behaviour:
        """Behaviour of a method that is refused whoever asks; no message of it is read.

        `method` is a name of ours: what a caller made up is free text, which no record takes.
        """
        rule = AccessRule(method, permission="")

        async def refuse(_: object, context: Context) -> None:
            call = _call(rule, context)
            started = time.perf_counter()
            self._count_start(UNKNOWN)
            status = to_status(error, call.request_id)
            try:
                # For the record alone: a known caller is named in it, a stranger is counted.
                await self._identify_if_known(call)
                await self._leave(call, None, error)
            except ApplianceError as raised:
                status = to_status(raised, call.request_id)
            finally:
                self._count_end(UNKNOWN, (error.code, error.reason), started)
            await end_with(context, status)

        return refuse

    def _guarding(self, rule: AccessRule, handler: Handler) -> Behaviour:
        """Behaviour of a method behind the door."""
        behaviour, parse = behaviour_of(handler), parser_of(handler)

        async def guarded(raw: AsyncIterator[bytes], context: Context) -> object:
            incoming = Incoming(rule.method, raw, parse)
            try:
                return await self._handle(_call(rule, context), incoming, behaviour)
            finally:
                await incoming.close()

        return guarded

    async def _handle(self, call: Call, incoming: Incoming, behaviour: Behaviour) -> object:
        """One call from its arrival to its status."""
        started = time.perf_counter()
        outcome = ("OK", "")
        self._count_start(call.rule.method)
        try:
            return await self._run_and_record(call, incoming, behaviour)
        except ApplianceError as error:
            outcome = error.code, error.reason
            await end_with(call.context, to_status(error, call.request_id))
            return None
        except BaseException as raised:
            ended = _classify(raised)
            outcome = ended.code, ended.reason
            raise
        finally:
            self._count_end(call.rule.method, outcome, started)

    async def _run_and_record(self, call: Call, incoming: Incoming, behaviour: Behaviour) -> object:
        """Admit, enter, serve, and leave exactly once, whatever happens."""
        entered: Entered | None = None
        try:
            with contextlib.ExitStack() as places:
                if call.rule.anonymous:
                    request, messages = await self._receive(call, incoming, places)
                else:
                    principal = await self._identify_in_turn(call)
                    seat = self._admission.seats.seat(principal, class_of(call.rule))
                    places.enter_context(seat)
                    request, messages = await self._first(call, incoming)
                call = replace(call, request=request)
                entered = await self.enter(call)
                work = serve(behaviour, messages, call.context)
                if call.rule.streaming:
                    answer = await self._watched(call, entered, work)
                else:
                    answer = await work
        except (ApplianceError, asyncio.CancelledError, grpc.aio.AbortError) as ended:
            await self._leave(call, entered, _classify(ended))
            raise
        except Exception as bug:
            hidden = self.fault(call, bug)
            await self._leave(call, entered, hidden)
            raise hidden from bug
        answered = replace(call, answer=answer) if isinstance(answer, Message) else call
        await self._leave(answered, entered, None)
        return answer

    async def _receive(
        self, call: Call, incoming: Incoming, places: contextlib.ExitStack
    ) -> tuple[Message | None, object]:
        """The first message of a stranger, in a place that it holds until the call ends.

        The limits of `identify` come first, so that who is over them pushes nobody out.
        """
        caller.set(await self.identify(call))
        anonymous = self._admission.anonymous
        place = anonymous.enter(call.source, incoming.end)
        places.callback(anonymous.leave, place)
        try:
            found = await self._first(call, incoming)
        except TimeoutError as error:
            raise anonymous.refusal() from error
        anonymous.keep_for_good(place)
        return found

    async def _identify_in_turn(self, call: Call) -> Principal:
        """`identify`, when it is the turn of the call's source."""
        async with self._admission.identifying.turn(call.source):
            principal = await self.identify(call)
        caller.set(principal)
        return principal

    async def _identify_if_known(self, call: Call) -> None:
        """Name the caller of a refused call for `leave`, if it has a name. Raises Internal."""
        try:
            await self._identify_in_turn(call)
        except ApplianceError:
            return
        except Exception as bug:
            raise self.fault(call, bug) from bug

    async def _first(self, call: Call, incoming: Incoming) -> tuple[Message | None, object]:
        """The message that names the resource, and what the service gets, that one included."""
        seconds = self._admission.first_message_seconds
        if not call.rule.request_streaming:
            request = await incoming.only(seconds)
            return request, request
        # A stream that is about the whole appliance may begin whenever it likes: its caller is
        # known and holds a seat of its own.
        named = bool(call.rule.resource) or call.rule.anonymous
        first = await incoming.first(seconds) if named else None
        return first, incoming.whole(first)

    async def _leave(
        self, call: Call, entered: Entered | None, error: ApplianceError | None
    ) -> None:
        """`leave`, whose own bugs do not reach the caller either."""
        try:
            await self.leave(call, entered, error)
        except ApplianceError:
            raise
        except Exception as bug:
            raise self.fault(call, bug) from bug

    def _count_start(self, method: str) -> None:
        if self._metrics is not None:
            self._metrics.started(method)

    def _count_end(self, method: str, outcome: tuple[str, str], started: float) -> None:
        """`outcome`: code and reason."""
        if self._metrics is not None:
            self._metrics.finished(method, *outcome, time.perf_counter() - started)

    async def _watched(
        self, call: Call, entered: Entered, serve: Coroutine[None, None, object]
    ) -> object:
        """Serve a stream; end it as soon as `recheck` says so."""
        work = asyncio.create_task(serve)
        try:
            while not (await asyncio.wait({work}, timeout=self._recheck_seconds))[0]:
                await self.recheck(call, entered)
            return work.result()
        finally:
            # The stream is over; what it raises while it is ended interests nobody, and a caller
            # who leaves meanwhile does not change why it was.
            work.add_done_callback(forget)
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({work})
            # It keeps its error, whose frames keep it.
            del work


def _call(rule: AccessRule, context: Context) -> Call:
    """The call before anything of it was read; from here on the log carries its id."""
    metadata = {key.lower(): value for key, value in context.invocation_metadata() or ()}
    asked = metadata.get("x-request-id")
    usable = isinstance(asked, str) and _REQUEST_ID.fullmatch(asked)
    request_id = uuid.uuid4().hex
    log.request_id.set(request_id)
    shown = context.auth_context().get("x509_pem_cert")
    return Call(
        rule,
        None,
        metadata,
        request_id,
        context,
        # Read now: gRPC's context of a call that has ended, asked from another thread, ends the
        # whole process (seen as a segmentation fault when callers left during a flood).
        # gRPC writes the brackets of IPv6 as in a URL: `ipv6:%5B::1%5D:51234`.
        peer=unquote(context.peer()),
        certificate=next(iter(shown), None) if shown else None,
        caller_request_id=str(asked) if usable else "",
    )


def _classify(ended: BaseException) -> ApplianceError:
    """What the end of a call means for metrics and for `leave`."""
    if isinstance(ended, ApplianceError):
        return ended
    if isinstance(ended, asyncio.CancelledError):
        return Cancelled("the caller left")
    return Internal("the service ended the call itself")
