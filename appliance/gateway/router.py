"""One answer from any replica: places it, and goes on with another replica when it is lost.

Rules kept here (`docs/gateway.md` explains them):
* before the first token an answer is tried again at once elsewhere, within a budget;
* after it, the rest is asked of another replica by token ids: prompt and what was generated, with
  as many tokens fewer; what has ended already is not asked for again;
* tried replicas come last; a mere doubt moves an answer only when an untried replica is ready;
* token ids that the tokenizer does not have are no part of an answer, and no replica's failure;
* what the caller did wrong is never tried again and is no replica's failure; neither is an answer
  that waited too long for its turn, or that a full replica did not take;
* an answer without a new token is judged each second: its call may have had its time, or its right
  may be gone;
* whoever leaves an answer ends it in the replica at once.

Called by `appliance.gateway.pipeline`; where an answer waits is `appliance.gateway.slots`.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from appliance.api.inference.v1 import generation_pb2
from appliance.core.errors import ApplianceError, Exhausted, InvalidInput, Unavailable
from appliance.gateway.ask import Ask
from appliance.gateway.attempts import Attempt
from appliance.gateway.breaker import Budget
from appliance.gateway.config import RoutingSettings
from appliance.gateway.fleet import ReplicaLinks
from appliance.gateway.links import ReplicaLink
from appliance.gateway.slots import RETRY_SECONDS, ReplicaSlots

logger = logging.getLogger(__name__)


class AnswerStep(NamedTuple):
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
        fleet: ReplicaLinks,
        settings: RoutingSettings,
        *,
        moved: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._settings = settings
        self._budget = Budget(settings.retry_share)
        self._moved = moved
        self._clock = clock
        self.places = ReplicaSlots(fleet, settings, clock)

    async def answer(self, ask: Ask) -> AsyncGenerator[AnswerStep, None]:
        """Stream the answer; closing the generator ends it in the replica.

        Raises:
            InvalidInput: the replica refuses the request itself.
            Unavailable: no replica can answer, or too many failed.
            Exhausted: every replica is full, and its turn did not come.
            OtherVersionError: it has not begun, and only replicas of another version can answer.
        """
        self._budget.earn()
        if ask.patience == math.inf:
            ask.patience = self._clock() + self._settings.queue_seconds
        while True:
            finish = ask.finished()
            if finish:
                yield AnswerStep([], finish)
                return
            link, attempt = await self.places.place(ask)
            try:
                async with contextlib.aclosing(self._steps(ask, link, attempt)) as steps:
                    async for step in steps:
                        yield step
                        if step.finish:
                            return
            finally:
                link.forget(attempt)
            if attempt.busy:
                # Others have filled it: this answer waits for its turn again.
                continue
            link.failed(attempt)
            ask.tried.add(link.place)
            self._go_on(ask, link, attempt.lost)

    async def _steps(
        self, ask: Ask, link: ReplicaLink, attempt: Attempt
    ) -> AsyncGenerator[AnswerStep, None]:
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
                yield AnswerStep(tokens, finish)
            if finish:
                return
            if attempt.refused:
                raise InvalidInput(attempt.refused)
            if attempt.expired:
                raise Exhausted(
                    "the replica did not come to this request in time, because others were before"
                    " it: repeat the request later, or give the endpoint more replicas",
                    retry_after=RETRY_SECONDS,
                )
            if attempt.lost is not None or attempt.late or attempt.busy:
                return
            if not tokens:
                ask.check()
            if link.doubtful and self._fleet.has_other(ask.pool, tried):
                return

    def _go_on(self, ask: Ask, link: ReplicaLink, lost: ApplianceError | None) -> None:
        """Decide whether a lost answer may go on. Raises Unavailable."""
        begun = ask.begun
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
            allowed = ask.retries <= self._settings.retries and self._budget.pay(link.breaker)
        if not allowed:
            raise Unavailable(
                "replicas failed repeatedly at this request: repeat it later", retry_after=2.0
            )
        # It waited for its turn, and had it: that it has to wait again is not its fault.
        ask.patience = self._clock() + self._settings.queue_seconds
        self._moved(begun)
