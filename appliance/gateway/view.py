"""The gateway's connection to the control plane: a fresh view, tokenizers, reports.

Rules kept here:
* the view is replaced by another, never changed, and only when all of the other has arrived; what
  does not fit to what is there ends the stream, and a new one begins with everything;
* its age counts from the moment a message of the control plane arrived, by a clock that also goes
  while the machine sleeps and that nobody can set;
* while the control plane is not heard calls are decided by what it said last, for a time that the
  site chooses, and that is said; older than that, there is no view;
* who comes back hears everything first: what was taken away meanwhile holds at once;
* under a new identity another channel is opened; calls in work end on the one before.

The attack: cut the gateway off and go on with a right that was taken away
(docs/decisions/0028-a-gateway-goes-on-from-its-last-view.md). Called by `appliance.gateway.main`;
read by everything that decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

import grpc
import grpc.aio

from appliance.api.serving.v1 import routing_service_pb2
from appliance.api.serving.v1.routing_service_pb2_grpc import RoutingServiceStub
from appliance.core.errors import ApplianceError, Internal, Unavailable
from appliance.gateway.fetching import Fetched, fetch
from appliance.gateway.snapshot import Draft, RoutingSnapshot
from appliance.wire.routing import FORM
from appliance.wire.status import from_rpc_error

logger = logging.getLogger(__name__)

CALL_SECONDS = 30.0
HEARD_SECONDS = 10.0
"""A view that is older is stale; without a time for stale ones nothing is decided by it."""
SILENT_SECONDS = 5.0
"""The control plane says something each second; after so long the stream is opened again."""
RETRY_SECONDS = 0.5


def boot_seconds() -> float:
    """Seconds since the machine started, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class View:
    """The newest snapshot, as long as it is young enough.

    Args:
        stale_seconds: how long one decides that is not kept fresh; 0: while it is fresh.
        clock: seconds that only go forward.
    """

    def __init__(self, stale_seconds: float, clock: Callable[[], float] = boot_seconds) -> None:
        self._limit = stale_seconds or HEARD_SECONDS
        self._clock = clock
        self._snapshot: RoutingSnapshot | None = None
        self._draft: Draft | None = None
        self._heard = 0.0

    def take(self, message: routing_service_pb2.RoutingView) -> bool:
        """Take in a message of the stream; whether the snapshot is another one now.

        Raises Internal when it does not fit what came before: the stream has to be opened again.
        """
        if message.unchanged:
            if self._snapshot is None or message.version != self._snapshot.version:
                raise Internal("the control plane says that a view has not changed which we lack")
            self._heard = self._clock()
            return False
        draft, self._draft = self._continued(message), None
        draft.add(message)
        if message.more:
            self._draft = draft
            return False
        self._snapshot = draft.finished(message)
        self._heard = self._clock()
        return True

    def begin(self) -> None:
        """Forget what a stream that has ended left half said."""
        self._draft = None

    def _continued(self, message: routing_service_pb2.RoutingView) -> Draft:
        """The draft that a message belongs to. Raises Internal when it fits none."""
        draft = self._draft
        base = draft.base.version if draft and draft.base else 0
        if draft is not None and (draft.version, base) == (message.version, message.base_version):
            return draft
        if draft is not None:
            raise Internal("the control plane began a version of the view before it ended another")
        if not message.base_version:
            return Draft(None, message)
        if self._snapshot is None or self._snapshot.version != message.base_version:
            raise Internal("the control plane changes a version of the view which we lack")
        return Draft(self._snapshot, message)

    @property
    def decides(self) -> bool:
        """Whether calls can be decided now."""
        return self._snapshot is not None and self.age <= self._limit

    @property
    def stale(self) -> bool:
        """Whether they would be decided by what is old."""
        return self.decides and self.age > HEARD_SECONDS

    @property
    def age(self) -> float:
        """Seconds since the control plane was last heard."""
        return self._clock() - self._heard

    @property
    def last(self) -> RoutingSnapshot | None:
        """The newest snapshot, however old: for what is decided already."""
        return self._snapshot

    def current(self) -> RoutingSnapshot:
        """The snapshot to decide by. Raises Unavailable when there is none young enough."""
        if self._snapshot is None or not self.decides:
            since = "since it started" if self._snapshot is None else f"for {self.age:.0f} s"
            raise Unavailable(
                f"the gateway has not heard from the control plane {since} and cannot say what you "
                "may ask: repeat the call shortly",
                retry_after=2.0,
            )
        return self._snapshot


async def _wait(error: ApplianceError) -> None:
    del error
    await asyncio.sleep(RETRY_SECONDS)


class ControlClient:
    """Calls the control plane over mTLS.

    Args:
        connect: opens a channel to its listener for machines, under the identity of now.
        view: is kept fresh by `watch`.
        settle: waits after a call that failed, and gets another identity if that is why.
    """

    def __init__(
        self,
        connect: Callable[[], grpc.aio.Channel],
        view: View,
        settle: Callable[[ApplianceError], Awaitable[None]] = _wait,
    ) -> None:
        self._connect = connect
        self._view = view
        self._settle = settle
        self._channel = connect()
        self._stub = RoutingServiceStub(self._channel)
        self._closing: set[asyncio.Task[None]] = set()

    def reopen(self) -> None:
        """Use another channel from now on; calls in work on the one before have time to end."""
        before, self._channel = self._channel, self._connect()
        self._stub = RoutingServiceStub(self._channel)
        task = asyncio.create_task(before.close(CALL_SECONDS))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """End every call."""
        for task in self._closing:
            task.cancel()
        await self._channel.close(None)

    async def watch(self, changed: Callable[[RoutingSnapshot], None]) -> None:
        """Follow the view for ever; `changed` gets each new snapshot. Reopens what breaks."""
        while True:
            try:
                async for snapshot in self._stream():
                    changed(snapshot)
            except grpc.RpcError as error:
                failed = from_rpc_error(error)
                logger.warning("the control plane cannot be followed: %s", failed)
                await self._settle(failed)
                continue
            except (TimeoutError, Internal) as error:
                logger.warning("the control plane is followed anew: %s", error or "it was silent")
            await asyncio.sleep(RETRY_SECONDS)

    async def _stream(self) -> AsyncIterator[RoutingSnapshot]:
        """Snapshots of one stream, until it ends or another channel is there."""
        self._view.begin()
        stub = self._stub
        call = stub.WatchRouting(routing_service_pb2.WatchRoutingRequest(form=FORM))
        messages = aiter(call)
        try:
            while stub is self._stub:
                async with asyncio.timeout(SILENT_SECONDS):
                    message = await anext(messages, None)
                if message is None:
                    return
                if self._view.take(message):
                    snapshot = self._view.last
                    if snapshot is not None:
                        yield snapshot
        finally:
            call.cancel()

    async def tokenizer(self, endpoint: str, uid: str = "", held: Collection[str] = ()) -> Fetched:
        """The tokenizer of a version that an endpoint serves. Raises ApplianceError."""
        request = routing_service_pb2.ReadServedTokenizerRequest(
            endpoint=endpoint, model_uid=uid, held=held
        )
        return await fetch(self._stub, request, CALL_SECONDS)

    async def report(self, request: routing_service_pb2.ReportUsageRequest) -> bool:
        """Make usages and counts durable in the audit chain; whether it says that they are.

        Raises ApplianceError.
        """
        try:
            answer = await self._stub.ReportUsage(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return bool(answer.recorded)
