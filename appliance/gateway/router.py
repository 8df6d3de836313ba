"""One answer from any replica: chooses one, and goes on with another when it is lost.

Rules kept here (`docs/gateway.md` explains them):
* before the first token an answer is tried again at once elsewhere, within a budget;
* after it, the rest is asked of another replica by token ids: prompt and what was generated, with
  as many tokens fewer; what has ended already is not asked for again;
* tried replicas come last; a mere doubt moves an answer only when an untried replica is ready;
* token ids that the tokenizer does not have are no part of an answer, and no replica's failure;
* what the caller did wrong is never tried again and is no replica's failure;
* whoever leaves an answer ends it in the replica at once;
* an endpoint that has no replica holds so many answers that have not begun (`waiting`), and four
  times as many that have, and no more: the slots of a gateway are for all.

The attack, or the accident: an endpoint whose replicas crash at each start takes every slot of the
gateway with answers that wait for it.

Called by `appliance.gateway.pipeline`.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from appliance.api.inference.v1 import generation_pb2
from appliance.core.errors import ApplianceError, Exhausted, InvalidInput, Unavailable
from appliance.gateway.breaker import Budget
from appliance.gateway.config import Routing
from appliance.gateway.fleet import Fleet
from appliance.gateway.links import Attempt, Link, Submit
from appliance.gateway.snapshot import Place

logger = logging.getLogger(__name__)

STOP = generation_pb2.FINISH_REASON_STOP
LENGTH = generation_pb2.FINISH_REASON_LENGTH
GOING_ON = generation_pb2.FINISH_REASON_UNSPECIFIED
_LOOK_SECONDS = 0.25
BEGUN_SHARE = 4
_SEED_BITS = 63


@dataclass
class Ask:
    """What is asked of a replica, and how far the answer is.

    Attributes:
        prompt: token ids.
        sampling: without stop texts; `max_tokens` is at least 1 and fits the context.
        ends: token ids that end the answer.
        vocabulary: token ids there are; others that a replica answers with are left out.
        until: moment, on the router's clock, at which the call has had its time.
        check: raises when the call may not go on; asked while it waits.
        generated: token ids so far.
        continuations: times it went on with another replica.
    """

    endpoint: str
    prompt: list[int]
    sampling: generation_pb2.Sampling
    ends: list[int]
    vocabulary: int
    until: float = math.inf
    check: Callable[[], None] = field(default=lambda: None, repr=False)
    generated: list[int] = field(default_factory=list)
    continuations: int = 0
    retries: int = 0
    tried: set[Place] = field(default_factory=set)

    def finished(self) -> generation_pb2.FinishReason:
        """How the answer ended, by what was generated so far."""
        if not self.generated:
            return GOING_ON
        if self.generated[-1] in self.ends and not self.sampling.ignore_end:
            return STOP
        return LENGTH if len(self.generated) >= self.sampling.max_tokens else GOING_ON

    def submit(self) -> Submit:
        """The order for the rest of the answer."""
        sampling = generation_pb2.Sampling()
        sampling.CopyFrom(self.sampling)
        sampling.max_tokens -= len(self.generated)
        if self.generated and sampling.HasField("seed"):
            sampling.seed = seed_at(sampling.seed, len(self.generated))
        return Submit(
            prompt_token_ids=[*self.prompt, *self.generated],
            sampling=sampling,
            end_token_ids=self.ends,
        )


def seed_at(seed: int, position: int) -> int:
    """The seed for the rest of an answer: random numbers of its beginning must not come again."""
    digest = hashlib.sha256(f"{seed}/{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


class Step(NamedTuple):
    """Tokens since the step before; `finish` is set on the last one."""

    tokens: list[int]
    finish: generation_pb2.FinishReason


class Router:
    """Answers from the replicas of a fleet.

    Args:
        moved: is called for each retry (False) and continuation (True).
    """

    def __init__(
        self,
        fleet: Fleet,
        settings: Routing,
        *,
        moved: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._settings = settings
        self._budget = Budget(settings.retry_share)
        self._moved = moved
        self._clock = clock
        self._waiting: Counter[tuple[str, bool]] = Counter()

    async def answer(self, ask: Ask) -> AsyncGenerator[Step, None]:
        """Stream the answer; closing the generator ends it in the replica.

        Raises:
            InvalidInput: the replica refuses the request itself.
            Unavailable: no replica can answer, or too many failed.
            Exhausted: every replica is full.
        """
        self._budget.earn()
        while True:
            finish = ask.finished()
            if finish:
                yield Step([], finish)
                return
            link = await self._link(ask)
            attempt = link.submit(ask.submit())
            try:
                async with contextlib.aclosing(self._steps(ask, link, attempt)) as steps:
                    async for step in steps:
                        yield step
                        if step.finish:
                            return
            finally:
                link.forget(attempt)
            link.failed()
            ask.tried.add(link.place)
            self._go_on(ask, attempt.lost)

    async def _steps(self, ask: Ask, link: Link, attempt: Attempt) -> AsyncGenerator[Step, None]:
        """What one replica makes of an answer; ends without a finish when it has to go on."""
        tried = {*ask.tried, link.place}
        while True:
            await attempt.wait()
            # The rows of a model's embedding may be more than the tokens that its tokenizer has.
            tokens = [token for token in attempt.take() if token < ask.vocabulary]
            finish = attempt.finish
            tokens = tokens[: ask.sampling.max_tokens - len(ask.generated)]
            ask.generated += tokens
            if finish:
                link.succeeded()
            if tokens or finish:
                yield Step(tokens, finish)
            if finish:
                return
            if attempt.refused:
                raise InvalidInput(attempt.refused)
            if attempt.lost is not None or attempt.late:
                return
            if link.doubtful and self._fleet.has_other(ask.endpoint, tried):
                return

    def _go_on(self, ask: Ask, lost: ApplianceError | None) -> None:
        """Decide whether a lost answer may go on. Raises Unavailable."""
        begun = bool(ask.generated)
        logger.warning(
            "an answer %s after %d tokens: %s",
            "goes on elsewhere" if begun else "is tried again",
            len(ask.generated),
            lost or "the replica is in doubt",
        )
        if begun:
            ask.continuations += 1
            allowed = ask.continuations <= self._settings.continuations
        else:
            ask.retries += 1
            allowed = ask.retries <= self._settings.retries and self._budget.spend()
        if not allowed:
            raise Unavailable(
                "replicas failed repeatedly at this request: repeat it later", retry_after=2.0
            )
        self._moved(begun)

    async def _link(self, ask: Ask) -> Link:
        """A link that can take the answer; waits for one that may come. Raises Unavailable.

        One that has begun waits as long as its call may take: what was made of it is worth more.
        """
        link = self._take_turn(ask)
        if link is not None:
            return link
        begun = bool(ask.generated)
        key, most = (ask.endpoint, begun), self._settings.waiting * (BEGUN_SHARE if begun else 1)
        # One that was with a replica that broke is no newcomer.
        if not ask.retries and self._waiting[key] >= most:
            raise Unavailable(
                f"{most} answers wait for a replica of {ask.endpoint} already: repeat the request"
                " later",
                retry_after=5.0,
            )
        patience = math.inf if begun else self._clock() + self._settings.wait_seconds
        limit = min(ask.until, patience)
        self._waiting[key] += 1
        try:
            while (link := self._take_turn(ask)) is None:
                ask.check()
                left = limit - self._clock()
                if left <= 0 or not self._fleet.has_hope(ask.endpoint, begun=begun):
                    raise Unavailable(
                        f"no replica of {ask.endpoint} is ready: repeat the request later, "
                        "or look at the endpoint's state",
                        retry_after=5.0,
                    )
                await self._fleet.wait(min(left, _LOOK_SECONDS))
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        return link

    def _take_turn(self, ask: Ask) -> Link | None:
        """A link that can take the answer now; None when none is ready. Raises Exhausted."""
        link = self._fleet.take_turn(ask.endpoint, ask.tried)
        if link is None and self._fleet.is_full(ask.endpoint):
            raise Exhausted("every replica has as many answers as it may", retry_after=1.0)
        return link
