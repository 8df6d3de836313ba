"""A link: the one stream between this gateway and one start of one replica, with all its answers.

Rules kept here:
* one task writes, one reads; the queue between is bounded, and a full link takes no answers;
* what a replica says of an answer that is not in work here is dropped, so nothing comes twice;
* a replica is judged by what it says: a heartbeat each 250 ms, and engine steps that rise while it
  has work; silence and stall are doubts, which end as soon as it speaks again;
* an answer is late by the time that the replica works on it: while others wait there, and none that
  was sent later has had its first token, it may be one of them (`load`);
* it gets as many answers as its engine works on at a time, and an eighth more, so that a slot that
  gets free is filled at once; the others wait here, where another replica can take them;
* nothing of a caller but token ids and sampling goes to a replica.

Called by `appliance.gateway.fleet` (open, tick, close) and `router` (submit, take, forget).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import grpc
import grpc.aio

from appliance.api.inference.v1 import generation_pb2, worker_service_pb2
from appliance.api.inference.v1.worker_service_pb2_grpc import WorkerServiceStub
from appliance.core.errors import ApplianceError, Cancelled, Unavailable
from appliance.core.waiting import Backoff
from appliance.gateway.attempts import Attempt
from appliance.gateway.breaker import Breaker, BreakerState
from appliance.gateway.config import RoutingSettings
from appliance.gateway.load import ReplicaLoad
from appliance.gateway.snapshot import ReplicaAddress
from appliance.wire.status import from_rpc_error

logger = logging.getLogger(__name__)

QUEUE = 2048
PROBE_SECONDS = 10.0
LOOK_SECONDS = 1.0
"""So often who waits for a token looks whether the call may go on."""
FIRST_PAUSE = 0.1
MAX_PAUSE = 1.0
_RECENT_STEPS = 64
_STALL_STEPS, _STALL_MOST = 8.0, 3.0
"""A step may take so many times the longest recent one before it counts as a stall, and so many
times what the site says at most."""

Submit = worker_service_pb2.Submit


def stall_limit(seconds: float, longest: float) -> float:
    """How long an engine that has work may make no step. Pure.

    Args:
        seconds: as the site says.
        longest: what the longest of its recent steps took.
    """
    return min(max(seconds, _STALL_STEPS * longest), _STALL_MOST * seconds)


class ReplicaLink:
    """The stream to one start of one replica.

    Args:
        place: which replica, which start, where.
        channel: to it, over mTLS; the link closes it.
        settings: time-outs and bounds.
        changed: is called when the link may have become better or worse.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        place: ReplicaAddress,
        channel: grpc.aio.Channel,
        settings: RoutingSettings,
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.place = place
        self.breaker = Breaker(settings.failures)
        self.attempts: dict[int, Attempt] = {}
        self.connected = False
        self.draining = False
        self.retired = False
        self.doubtful = False
        self._channel = channel
        self._settings = settings
        self._changed = changed
        self._clock = clock
        self._orders: asyncio.Queue[worker_service_pb2.AttachRequest] = asyncio.Queue(QUEUE)
        self._next = 1
        self._steps = 0
        self._heard = clock()
        self._stepped = clock()
        self._token = -math.inf
        self._gaps: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._load = ReplicaLoad()
        self._ticked = clock()
        self.broken_at = clock()
        self._probe: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def ready(self) -> bool:
        """Whether it can take an answer now."""
        return (
            self.connected
            and not self.draining
            and not self.retired
            and not self.doubtful
            and self.breaker.state is BreakerState.CLOSED
        )

    @property
    def full(self) -> bool:
        """Whether it has as many answers as it may."""
        most = self._settings.answers_per_replica
        return self._load.is_full(len(self.attempts), most) or self._orders.full()

    @property
    def has_slot(self) -> bool:
        """Whether an answer would be worked on at once, as far as we know."""
        return self._load.has_slot(len(self.attempts))

    def submit(self, submit: Submit, patience: float = math.inf) -> Attempt:
        """Start an answer; the link must be ready and not full. Sets the id.

        Args:
            submit: the order.
            patience: moment until which it may wait for its turn in the replica.
        """
        now = self._clock()
        if not self.attempts:
            # An idle engine makes no steps; its time begins with its work.
            self._stepped = now
        attempt = Attempt(self._next, now, patience)
        self._next += 1
        submit.id = attempt.id
        self.attempts[attempt.id] = attempt
        self._orders.put_nowait(worker_service_pb2.AttachRequest(submit=submit))
        return attempt

    def forget(self, attempt: Attempt) -> None:
        """Be done with an answer; the replica is told when it still works on it."""
        was_full = self.full
        if self.attempts.pop(attempt.id, None) is None:
            return
        if not attempt.ended and self.connected:
            self._abort(attempt)
        if was_full:
            self._changed()

    def _abort(self, attempt: Attempt) -> None:
        abort = worker_service_pb2.AttachRequest(abort=worker_service_pb2.Abort(id=attempt.id))
        try:
            self._orders.put_nowait(abort)
        except asyncio.QueueFull:
            # It takes nothing: better a new stream than answers that nobody waits for.
            self._task.cancel("the replica takes no orders")

    def succeeded(self) -> None:
        """An answer ended well."""
        self.breaker.succeeded()

    def failed(self, attempt: Attempt) -> None:
        """An answer was lost by the replica's fault."""
        now = self._clock()
        is_dead = attempt.late and self._token < attempt.sent
        if self.breaker.failed(now, attempt.sent, dead=is_dead):
            self.broken_at = now
            logger.warning("replica %s is out of rotation: it failed repeatedly", self.place.id)
            self._changed()

    def tick(self, now: float, lag: float) -> None:
        """Judge the replica and its answers; `lag`: seconds this process was not running itself."""
        if lag:
            self._heard += lag
            self._stepped += lag
            for attempt in self.attempts.values():
                attempt.since += lag
        passed, self._ticked = now - self._ticked - lag, now
        if self.retired and not self.attempts:
            self._task.cancel()
            return
        if not self.connected:
            return
        doubtful = self._is_silent(now) or self._is_stalled(now)
        if doubtful != self.doubtful:
            self.doubtful = doubtful
            if doubtful:
                self.broken_at = now
                why = "silent" if self._is_silent(now) else "makes no steps"
                logger.warning("replica %s is in doubt: it %s", self.place.id, why)
            self._changed()
        self._tick_attempts(now, max(0.0, passed))
        may_probe = not (self.doubtful or self.draining or self.retired or self.full)
        if may_probe and self.breaker.probe_due(now):
            self.breaker.probe_sent()
            self._probe = asyncio.create_task(self._prove())

    def _tick_attempts(self, now: float, passed: float) -> None:
        first, between = self._settings.first_token_seconds, self._settings.between_tokens_seconds
        for attempt in self.attempts.values():
            if self._load.may_wait(attempt):
                attempt.since = min(now, attempt.since + passed)
                attempt.expired = attempt.first and now > attempt.patience
            if now - attempt.since > (first if attempt.first else between):
                attempt.late = True
            may_look = now - attempt.looked >= LOOK_SECONDS
            if attempt.late or attempt.expired or self.doubtful or may_look:
                attempt.looked = now
                attempt.wake()

    def _is_silent(self, now: float) -> bool:
        return now - self._heard > self._settings.silent_seconds

    def _is_stalled(self, now: float) -> bool:
        limit = stall_limit(self._settings.stall_seconds, max(self._gaps, default=0.0))
        return bool(self.attempts) and now - self._stepped > limit

    async def _prove(self) -> None:
        """Have the replica make one token; says in the breaker whether it did."""
        sampling = generation_pb2.Sampling(max_tokens=1)
        attempt = self.submit(Submit(prompt_token_ids=[0], sampling=sampling))
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                while not attempt.ended and not attempt.late:
                    attempt.take()
                    await attempt.wait()
        except TimeoutError:
            logger.info("replica %s did not answer a probe", self.place.id)
        # Where a probe only waits, or is not taken, the replica works on others.
        waits = not self.doubtful and self._load.may_wait(attempt)
        well = bool(attempt.finish or attempt.refused or attempt.busy or waits)
        self.forget(attempt)
        self.breaker.probed(self._clock(), well=well)
        if well:
            logger.info("replica %s is back in rotation", self.place.id)
            self._changed()

    async def close(self) -> None:
        """End the stream; answers in work are lost."""
        tasks = [task for task in (self._task, self._probe) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def closed(self) -> bool:
        """Whether it is over for good."""
        return self._task.done()

    async def _run(self) -> None:
        """Keep a stream open until the link is retired or closed."""
        backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)
        try:
            while not self.retired:
                error, spoke = await self._attach()
                if spoke:
                    backoff.reset()
                    logger.warning("replica %s is gone: %s", self.place.id, error)
                self._broke(error)
                await asyncio.sleep(backoff.failed())
        except Exception:
            logger.exception("the link to replica %s failed; it is opened anew", self.place.id)
        finally:
            self._broke(Unavailable("the gateway closed the link"))
            await self._channel.close(None)

    def _broke(self, error: ApplianceError) -> None:
        """The stream is over: every answer on it is lost."""
        if self.connected:
            self.broken_at = self._clock()
        self.connected = False
        self.doubtful = False
        self._load = ReplicaLoad()
        lost, self.attempts = self.attempts, {}
        for attempt in lost.values():
            attempt.lost = error
            attempt.wake()
        while not self._orders.empty():
            self._orders.get_nowait()
        self._changed()

    async def _attach(self) -> tuple[ApplianceError, bool]:
        """One stream until its end; why it ended, and whether the replica ever spoke."""
        call: Any = WorkerServiceStub(self._channel).Attach()
        writer = asyncio.create_task(self._write(call))
        error: ApplianceError = Unavailable("the replica ended the stream")
        try:
            # grpc-stubs does not know the end marker.
            while (message := await call.read()) is not cast("Any", grpc.aio).EOF:
                self._take(message)
        except grpc.RpcError as failed:
            error = from_rpc_error(failed)
        except asyncio.CancelledError:
            # gRPC also says so when the replica is stopping; then nobody cancelled this task.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            error = Cancelled("the replica cancelled the stream")
        finally:
            call.cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        return error, self.connected

    async def _write(self, call: Any) -> None:  # noqa: ANN401 - gRPC's calls have no common type
        """Send orders, one at a time; the reader hears why when it does not work."""
        while True:
            await call.write(await self._orders.get())

    def _take(self, message: worker_service_pb2.AttachResponse) -> None:
        """One message: outputs of a step, a heartbeat, or both."""
        now = self._heard = self._clock()
        # First of all: what is busy now may not be any more with the next heartbeat, not with this.
        if message.HasField("heartbeat"):
            self._take_heartbeat(message.heartbeat, now)
        for output in message.outputs:
            attempt = self.attempts.get(output.id)
            if attempt is None:
                continue
            if output.token_ids:
                self._token = now
                attempt.tokens.extend(output.token_ids)
                if attempt.first:
                    # Its turn has come, whatever the last tick said.
                    attempt.first = attempt.expired = False
                    self._load.note_first_token(attempt, now)
                attempt.since = now
            if output.busy:
                attempt.busy = self._load.busy = True
            elif output.refused:
                attempt.refused = output.refused
            elif output.finish_reason:
                attempt.finish = output.finish_reason
            attempt.wake()

    def _take_heartbeat(self, beat: worker_service_pb2.Heartbeat, now: float) -> None:
        if beat.steps != self._steps:
            # What one step took, at the best that heartbeats tell.
            self._gaps.append((now - self._stepped) / max(1, beat.steps - self._steps))
            self._steps = beat.steps
            self._stepped = now
        was_full = self.full
        self._load.note_heartbeat(beat)
        better = not self.connected or (self.doubtful and not self._is_stalled(now))
        better = better or (was_full and not self.full)
        if beat.draining and not self.draining:
            self.draining = True
            self.broken_at = now
            logger.info("replica %s drains", self.place.id)
        if not self.connected:
            logger.info("replica %s is connected", self.place.id)
        self.connected = True
        if better:
            self.doubtful = False
            self._changed()
