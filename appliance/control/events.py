"""Wake-ups inside the control plane: "something about this topic has changed, look again".

Rules kept here:
* a wake-up carries no data: who is woken reads the state again, so a lost, doubled or early wake-up
  can never show a wrong state;
* `publish` may be called from any thread and never blocks; it is called after the transaction that
  changed the state has ended;
* many wake-ups between two looks become one, so a slow watcher costs nothing.

A topic is a resource name (`projects/p/jobs/j`) or one of the words below. Published by the
services and the scheduler; waited for by the gate and by every Watch stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

ACCESS = "access"
"""Roles, bindings, users, tokens, sessions or certificates: what a caller may do has changed."""
NODES = "nodes"
"""A node joined, left or was evicted."""
QUEUE = "queue"
"""There is work to place."""
STORAGE = "storage"
"""There is something to do with the object store."""
ROUTING = "routing"
"""Endpoints, replicas or who may ask them."""


class Subscription:
    """One subscription to topics: set by any of them, cleared each time its owner wakes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Wake the watcher, from any thread."""
        # A loop that is closed has no watchers left; the server is stopping.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._changed.set)

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109  # it is an answer here, not an error
        """Wait for a change, or `timeout` seconds. Returns whether something has changed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        changed = self._changed.is_set()
        self._changed.clear()
        return changed


class Events:
    """Topics and who listens to them, in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: dict[str, set[Subscription]] = {}

    def publish(self, *topics: str) -> None:
        """Wake everybody who listens to one of these topics. From any thread."""
        with self._lock:
            watches = {watch for topic in topics for watch in self._watches.get(topic, ())}
        for watch in watches:
            watch.wake()

    @contextlib.contextmanager
    def watch(self, *topics: str) -> Iterator[Subscription]:
        """Listen to topics. Inside the event loop; read the state after entering, not before."""
        watch = Subscription()
        with self._lock:
            for topic in topics:
                self._watches.setdefault(topic, set()).add(watch)
        try:
            yield watch
        finally:
            with self._lock:
                for topic in topics:
                    self._watches[topic].discard(watch)
                    if not self._watches[topic]:
                        del self._watches[topic]
