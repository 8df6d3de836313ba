"""The one way of an inference call through the gateway, whichever front it came in by.

Order: who is it and may they (`admit`), then words to tokens, tokens from a replica, tokens to text
(`answer`), then what it took (`end`). Rules kept here:
* nothing of a request is looked at closely before its caller is known and may ask;
* every call that `begin` saw is ended once, and its outcome goes to the audit chain, also when this
  process is killed meanwhile: one record for an inference call of a known caller, a count for calls
  of strangers, for what a known caller is refused beyond its budget, and for what it is refused
  that asks no model;
* a credential that does not work counts against its source, a valid one never does;
* an endpoint that is asked for more than it can answer leaves the others their share of the places
  (`appliance.gateway.shares`), and what only waits makes way for what can be worked on;
* a running answer is judged again with each new view: a right that was taken away ends it;
* a prompt is made for the version of the model whose replica answers; while an endpoint changes
  from one to another it is made again for the other when the first has gone, never in an answer;
* text is never logged, reported or counted, nor what a library says of it.

The attacks: take all slots; ask on after a right has ended; leave no trace; fill the audit log with
refusals; guess tokens. Called by
`appliance.gateway.service` and `appliance.gateway.openai`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from appliance.api.inference.v1 import generation_pb2
from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import (
    ApplianceError,
    Cancelled,
    Exhausted,
    FailedPrecondition,
    Unauthenticated,
    Unavailable,
)
from appliance.gateway import access
from appliance.gateway.ask import STOP, Ask, OtherVersionError
from appliance.gateway.config import GatewayLimits
from appliance.gateway.hidden_errors import hiding_errors
from appliance.gateway.metrics import GatewayMetrics
from appliance.gateway.questions import Question, Questions
from appliance.gateway.router import Router
from appliance.gateway.shares import may_enter, own, victim
from appliance.gateway.text import Detokenizer
from appliance.gateway.turns import Asker
from appliance.gateway.usage import INFERENCE, UsageReports
from appliance.gateway.view import View
from appliance.wire.admission import Rates, Refusals, SourceLimit, source_of

_MAX_NAME = 200


class AnswerPiece(NamedTuple):
    """Text and tokens since the piece before; `finish` is set on the last one."""

    text: str
    tokens: Sequence[int]
    finish: generation_pb2.FinishReason


@dataclass
class InferenceCall:
    """One call and what becomes of it.

    Attributes:
        method: `INFERENCE`, or another name of ours for what was asked.
        endpoint: full resource name, as the caller asked for it.
        started: monotonic seconds; `came`: seconds since 1970.
        blocked: monotonic seconds since the caller takes nothing; 0 while it does.
        recorded: its number among the calls that went to a replica; 0 before.
    """

    front: str
    request_id: str
    endpoint: str
    source: str
    started: float
    came: float
    method: str = INFERENCE
    principal: str = ""
    credential: str = ""
    version: int = -1
    holds_place: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    continuations: int = 0
    first_token: float = 0.0
    last_token: float = 0.0
    blocked: float = 0.0
    recorded: int = 0


@dataclass(frozen=True)
class PipelineParts:
    """What the pipeline works with."""

    view: View
    questions: Questions
    router: Router
    usage: UsageReports
    metrics: GatewayMetrics
    limits: GatewayLimits
    refusals: Refusals = field(default_factory=Refusals)
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class InferencePipeline:
    """Admits, answers and ends calls."""

    def __init__(self, parts: PipelineParts) -> None:
        self._parts = parts
        self._running: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        """Calls by endpoint."""
        self._total = 0
        limits = parts.limits
        self._strangers = SourceLimit(
            limits.refused_per_second, limits.refused_burst, self._parts.clock
        )
        self._denials = Rates(limits.refused_per_second, limits.refused_burst, self._parts.clock)
        self.draining = False

    @property
    def running(self) -> int:
        """Admitted calls that have not ended."""
        return self._total

    def begin(
        self, front: str, request_id: str, endpoint: str, source: str, method: str = INFERENCE
    ) -> InferenceCall:
        """A call came; the caller of this ends it, whatever happens."""
        now, wall = self._parts.clock(), self._parts.wall()
        return InferenceCall(front, request_id, endpoint, source, now, wall, method)

    def identify(self, authorization: str | bytes | None, source: str) -> tuple[str, str]:
        """Principal and token id of a caller.

        Raises:
            Unauthenticated: nobody knows the caller.
            Exhausted: the same, and its source has tried too often.
            Unavailable: nothing can be decided now.
        """
        try:
            token = access.bearer(authorization)
            return access.identify(self._parts.view.current(), token, self._parts.wall())
        except Unauthenticated:
            self._strangers.take(source)
            raise

    def endpoints(self, principal: str) -> list[str]:
        """Endpoints a caller may ask. Raises Unavailable."""
        return access.allowed(self._parts.view.current(), principal)

    def admit(self, call: InferenceCall, authorization: str | bytes | None) -> None:
        """Decide whether the call goes on, and take its slot.

        Raises:
            Unauthenticated: nobody knows the caller.
            NotFound: there is no such endpoint for it.
            FailedPrecondition: the endpoint is stopped.
            Exhausted: too many calls of it, or of all.
            Unavailable: nothing can be decided or recorded now, or the gateway stops.
        """
        if self.draining:
            raise Unavailable("the gateway stops: repeat the request", retry_after=1.0)
        principal, credential = self.identify(authorization, call.source)
        call.principal = principal
        snapshot = self._parts.view.current()
        if access.route(snapshot, principal, call.endpoint).stopped:
            raise FailedPrecondition(
                f"{call.endpoint} is stopped: whoever may do so starts it with "
                f"`appliance endpoint start {call.endpoint}`"
            )
        self._parts.usage.check_room(self._total)
        self._find_place(call, len(snapshot.routes))
        call.credential, call.version = credential, snapshot.version
        call.holds_place = True
        self._running[principal] += 1
        self._held[call.endpoint] += 1
        self._total += 1
        self._parts.metrics.running.set(self._total)

    def _find_place(self, call: InferenceCall, endpoints: int) -> None:
        """Whether the call fits; one that only waits elsewhere makes way. Raises Exhausted."""
        limits, places = self._parts.limits, self._parts.router.places
        mine = own(limits.calls, endpoints)
        is_over = self._running[call.principal] >= limits.calls_per_caller
        fits = may_enter(self._held, call.endpoint, endpoints, limits.calls)
        if fits and not is_over:
            return
        # One of its own answers frees both.
        caller = call.principal if is_over else None
        waiting = places.may_go(call.endpoint, caller)
        goes = victim(waiting, self._held, mine, shared=not fits)
        if goes is not None:
            places.make_way(goes, caller)
            return
        raise Exhausted(
            f"you have {limits.calls_per_caller} answers in work, as many as one caller may"
            if is_over
            else "the gateway has as many answers in work as it may for this endpoint",
            retry_after=1.0,
        )

    def recheck(self, call: InferenceCall) -> None:
        """Judge a running call again; raises when it must end."""
        snapshot = self._parts.view.last
        if snapshot is None:
            return
        access.recheck(snapshot, call.credential, call.principal, call.endpoint, self._parts.wall())
        call.version = snapshot.version
        now = self._parts.clock()
        if call.blocked and now - call.blocked > self._parts.limits.send_seconds:
            raise Exhausted("the answer ends, because its caller does not read it")

    async def answer(
        self, call: InferenceCall, question: Question
    ) -> AsyncGenerator[AnswerPiece, None]:
        """Stream the answer of an admitted call; closing the generator ends it everywhere."""
        with hiding_errors(call.request_id):
            before: Ask | None = None
            while True:
                text, ask = await self._prepared(call, question, before)
                if not call.recorded:
                    # Whatever happens to this process from here on, the call is told of.
                    call.recorded = self._parts.usage.begin(self._usage(call, None))
                pieces = self._pieces(call, text, ask)
                try:
                    async with contextlib.aclosing(pieces):
                        async for piece in pieces:
                            yield piece
                except OtherVersionError:
                    before = ask
                else:
                    return

    async def _prepared(
        self, call: InferenceCall, question: Question, before: Ask | None
    ) -> tuple[Detokenizer, Ask]:
        """What is asked of a replica, and what makes text of its answer."""
        asker = Asker(call.endpoint, call.principal)
        text, ask = await self._parts.questions.prepare(question, asker, before)
        call.prompt_tokens = len(ask.prompt)
        ask.check = partial(self._check, call)
        ask.turned_away = partial(self._free_place, call)
        ask.until = call.started + self._parts.limits.answer_seconds
        return text, ask

    async def _pieces(
        self, call: InferenceCall, text: Detokenizer, ask: Ask
    ) -> AsyncGenerator[AnswerPiece, None]:
        """The answer of one version. Raises OtherVersionError before its first token."""
        async with contextlib.aclosing(self._parts.router.answer(ask)) as steps:
            async for step in steps:
                self._count(call, ask, len(step.tokens))
                shown = text.add(step.tokens)
                if step.finish:
                    shown += text.flush()
                finish = STOP if text.stopped else step.finish
                call.blocked = self._parts.clock()
                yield AnswerPiece(shown, step.tokens, finish)
                call.blocked = 0.0
                if finish:
                    return
                self._check(call)

    def _count(self, call: InferenceCall, ask: Ask, tokens: int) -> None:
        now = self._parts.clock()
        if tokens and not call.completion_tokens:
            call.first_token = now - call.started
        call.last_token = now
        call.completion_tokens += tokens
        call.continuations = ask.continuations

    def _check(self, call: InferenceCall) -> None:
        """End an answer that takes too long, or whose right has ended."""
        if self._parts.clock() - call.started > self._parts.limits.answer_seconds:
            raise Unavailable("the answer took longer than an answer may: ask for fewer tokens")
        snapshot = self._parts.view.last
        if snapshot is not None and snapshot.version != call.version:
            self.recheck(call)

    def end(self, call: InferenceCall, error: ApplianceError | None) -> None:
        """The call is over: free its slot, count it, report it."""
        self._free_place(call)
        self._measure(call, error.reason if error else "")
        if error is not None and not call.recorded and self._is_counted(call):
            source = source_of(call.source)
            self._parts.refusals.count(source, error.reason, call.method, principal=call.principal)
        elif call.method == INFERENCE:
            self._parts.usage.end(self._usage(call, error), call.recorded)

    def _free_place(self, call: InferenceCall) -> None:
        """Somebody else may have the call's place; said twice, it is free once."""
        if not call.holds_place:
            return
        call.holds_place = False
        for counter, key in ((self._running, call.principal), (self._held, call.endpoint)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]
        self._total -= 1

    def _is_counted(self, call: InferenceCall) -> bool:
        """Whether a refused call becomes one of a count, and no record of its own."""
        if not call.principal or call.method != INFERENCE:
            return True
        return self._denials.wait(call.principal) > 0

    def _usage(
        self, call: InferenceCall, error: ApplianceError | None
    ) -> routing_service_pb2.Usage:
        usage = routing_service_pb2.Usage(
            request_id=call.request_id,
            principal=call.principal,
            endpoint=call.endpoint[:_MAX_NAME],
            reason=error.reason if error else "",
            prompt_tokens=call.prompt_tokens,
            completion_tokens=call.completion_tokens,
            continuations=call.continuations,
            first_token_seconds=call.first_token,
            seconds=self._parts.clock() - call.started,
            source=call.source,
            credential=call.credential,
        )
        usage.start_time.FromNanoseconds(int(call.came * 1e9))
        return usage

    def _measure(self, call: InferenceCall, reason: str) -> None:
        metrics = self._parts.metrics
        metrics.running.set(self._total)
        metrics.requests.labels(call.front, reason).inc()
        metrics.tokens.labels("in").inc(call.prompt_tokens)
        metrics.tokens.labels("out").inc(call.completion_tokens)
        if call.completion_tokens:
            metrics.first_token.observe(call.first_token)
        if call.completion_tokens > 1:
            time_between = call.last_token - call.started - call.first_token
            metrics.between.observe(time_between / (call.completion_tokens - 1))


def meaning(ended: BaseException) -> ApplianceError:
    """What the end of a call that was not an error of ours is reported as."""
    return ended if isinstance(ended, ApplianceError) else Cancelled("the caller left")
