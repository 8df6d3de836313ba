"""The served models that a gateway has read: tokenizer and template, by what they are.

Rules kept here:
* each content is prepared once and kept by its digest, however many endpoints serve it, and fetched
  only while it is not here;
* a few are in memory before they are prepared, and one is prepared at a time: a tokenizer of 60 MiB
  takes a gigabyte while it is prepared, and the interpreter for seconds;
* one that cannot be read is read again after a pause, whatever is asked meanwhile;
* so many calls wait for one model, and no more, for as long as for a replica that may come, and no
  longer: the places of a gateway are for all.

The accident: a large or broken tokenizer of one endpoint that stops the answers of others. Called
by `appliance.gateway.questions` and, for the view, by `main`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from weakref import WeakValueDictionary

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import Exhausted, Unavailable
from appliance.gateway.fetching import Fetched
from appliance.gateway.snapshot import Pool, RoutingSnapshot
from appliance.gateway.tokenize import Desk, ServedModel

logger = logging.getLogger(__name__)

FETCHES = 4
WAITING = 128
FETCH_AGAIN_SECONDS = 1.0
PREPARE_AGAIN_SECONDS = 30.0

Fetch = Callable[[str, str, Collection[str]], Awaitable[Fetched]]


class ServedModels:
    """Served models by endpoint and version, read once each.

    Args:
        fetch: asks the control plane for the tokenizer of an endpoint's version; is told the
            contents that are here, and returns the content and the tokenizer, or None for one of
            them.
        desk: where their prompts are prepared.
        seconds: that a call waits for one.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        fetch: Fetch,
        desk: Desk,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._desk = desk
        self._seconds = seconds
        self._clock = clock
        self._models: dict[Pool, asyncio.Task[ServedModel]] = {}
        self._again: dict[Pool, float] = {}
        """When those that failed may be read again."""
        self._waiting: Counter[Pool] = Counter()
        self._contents: WeakValueDictionary[str, ServedModel] = WeakValueDictionary()
        self._versions: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._fetching = asyncio.Semaphore(FETCHES)
        self._preparing = asyncio.Lock()

    def apply(self, snapshot: RoutingSnapshot) -> None:
        """Forget models that are no longer served; read those that can be asked for now."""
        served = {
            Pool(route.endpoint, version)
            for route in snapshot.routes.values()
            for version in route.versions
        }
        for key in self._models.keys() - served:
            del self._models[key]
        # Also of those whose reading ended after they had gone.
        self._again = {key: at for key, at in self._again.items() if key in served}
        # One that is coming too, where another one answers: nobody waits for it when it has come.
        asked = {route.endpoint for route in snapshot.routes.values() if route.places}
        for key in sorted(served - self._models.keys()):
            if key.endpoint in asked:
                self._start(key)

    def has(self, pool: Pool) -> bool:
        """Whether a model is here, and prepared."""
        task = self._models.get(pool)
        return task is not None and task.done() and not _has_failed(task)

    async def get(self, key: Pool) -> ServedModel:
        """The model of a version at an endpoint; one read for all who wait.

        Raises:
            Exhausted: too many wait for it.
            Unavailable: it does not come in time.
            ApplianceError: whatever its last read raised.
        """
        task = self._models.get(key)
        if task is None or (_has_failed(task) and self._clock() >= self._again.get(key, 0.0)):
            task = self._start(key)
        if task.done():
            return task.result()
        if self._waiting[key] >= WAITING:
            raise Exhausted(
                f"{WAITING} calls wait for the tokenizer of {key.endpoint} already: repeat the"
                " request later",
                retry_after=5.0,
            )
        self._waiting[key] += 1
        try:
            # Whoever leaves does not take it from the others.
            await asyncio.wait({task}, timeout=self._seconds)
            if task.done():
                return task.result()
            raise Unavailable(
                f"the tokenizer of {key.endpoint} is still on its way: repeat the request later",
                retry_after=5.0,
            )
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]

    def _start(self, key: Pool) -> asyncio.Task[ServedModel]:
        task = asyncio.create_task(self._read(key))
        self._models[key] = task
        task.add_done_callback(_note)
        return task

    async def _read(self, key: Pool) -> ServedModel:
        self._again[key] = self._clock() + FETCH_AGAIN_SECONDS
        # Endpoints that serve the same version wait for the first of them, which fetches it.
        model = key.version.uid or key.version.model
        version = self._versions.setdefault(model, asyncio.Lock())
        # What was fetched is let go of when it is prepared: no more than these are in memory.
        async with version, self._fetching:
            held = dict(self._contents)
            content, served = await self._fetch(key.endpoint, key.version.uid, list(held))
            if served is None:
                return held[content]
            self._again[key] = self._clock() + PREPARE_AGAIN_SECONDS
            async with self._preparing:
                return await self._prepare(content, served)

    async def _prepare(
        self, content: str, served: routing_service_pb2.ServedTokenizer
    ) -> ServedModel:
        # Versions of the same content that are fetched at the same time are prepared once.
        model = self._contents.get(content) if content else None
        if model is None:
            model = await asyncio.to_thread(ServedModel, served, self._desk)
            if content:
                self._contents[content] = model
        return model


def _has_failed(task: asyncio.Task[ServedModel]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _note(task: asyncio.Task[ServedModel]) -> None:
    """Log a failed read: nobody may be waiting for it yet; a later call reads again."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("a served model cannot be read: %s", error)
