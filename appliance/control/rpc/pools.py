"""Threads of the control plane, apart by what they may have to wait for.

Rules kept here:
* what may wait for the object store (uploads, keys of work, tokenizers) has threads of its own, and
  so have downloads, heartbeats, reports of agents, the scheduler, and the queue of the object
  store: none can take the threads of another, so a store that hangs stops what needs it and
  nothing else;
* services run where their caller belongs, decided when the work begins; however many log-ins wait
  for their hash, a known caller's work finds its threads free;
* turns of strangers go round their sources: a log-in waits for one piece of work of each other
  source, however much the others have asked for.

The attacks: fill every thread with log-ins; from many addresses at once, each within its rate, let
work wait longer than anybody stays. Made by the composition root; given to every servicer as one
pool.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

from appliance.control.services.common.caller import known_caller
from appliance.core.identity import ANONYMOUS
from appliance.wire.admission import source_of

T = TypeVar("T")

STRANGER_THREADS = 4
STORAGE_THREADS = 16
"""Uploads, imports and starts of work at a time."""
DOWNLOAD_THREADS = 4
"""Pieces of downloads that are read at a time."""
AGENT_THREADS = 8
PASS_THREADS = 2
TASK_THREADS = 4
"""Tasks of the object store at a time."""


class InTurn:
    """Threads whose work goes round the sources that asked for it.

    Args:
        threads: pieces of work at a time.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stranger")
        self._lock = threading.Lock()
        self._lines: OrderedDict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = OrderedDict()

    def submit(self, source: str, work: Callable[[], T]) -> Future[T]:
        """Run `work` when it is the turn of its source. Raises RuntimeError after the end."""
        future: Future[T] = Future()
        with self._lock:
            # One piece of work each time a thread is free: which one is decided then.
            self._pool.submit(self._next)
            self._lines.setdefault(source, deque()).append((future, work))
        return future

    def _next(self) -> None:
        with self._lock:
            source, line = self._lines.popitem(last=False)
            future, work = line.popleft()
            if line:
                self._lines[source] = line
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            future.set_exception(error)

    def shutdown(self, *, wait: bool = True) -> None:
        """Take nothing more; what was asked for is done."""
        self._pool.shutdown(wait)


class CallPool(Executor):
    """Runs the work of a call in the threads of known callers or in those of strangers.

    Args:
        threads: for known callers.

    Attributes:
        storage: for calls that read or write the object store.
        downloads: for reading what leaves the appliance, a piece at a time.
        agents: for heartbeats of agents, which write nothing.
        reports: for what else agents say: who they are, what happened to their work.
        passes: for what runs again and again by itself and needs the state alone.
        tasks: for the queue of the object store.
        erasures: one thread, for deleted keys.
    """

    def __init__(self, threads: int) -> None:
        self._known = ThreadPoolExecutor(threads, thread_name_prefix="call")
        self._strangers = InTurn(STRANGER_THREADS)
        self.storage = ThreadPoolExecutor(STORAGE_THREADS, thread_name_prefix="storage")
        self.downloads = ThreadPoolExecutor(DOWNLOAD_THREADS, thread_name_prefix="download")
        self.agents = ThreadPoolExecutor(AGENT_THREADS, thread_name_prefix="agent")
        self.reports = ThreadPoolExecutor(AGENT_THREADS, thread_name_prefix="report")
        self.passes = ThreadPoolExecutor(PASS_THREADS, thread_name_prefix="pass")
        self.tasks = ThreadPoolExecutor(TASK_THREADS, thread_name_prefix="task")
        self.erasures = ThreadPoolExecutor(1, thread_name_prefix="erasure")

    def submit(
        self, function: Callable[..., T], /, *arguments: object, **named: object
    ) -> Future[T]:
        """Run a function; called in the context of the call it belongs to."""
        caller = known_caller()
        if caller is None or caller.principal != ANONYMOUS:
            return self._known.submit(function, *arguments, **named)
        work = functools.partial(function, *arguments, **named)
        return self._strangers.submit(source_of(caller.source), work)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the base class names it
        """End all of them."""
        for pool in (self._known, self.agents, self.reports, self.passes):
            pool.shutdown(wait, cancel_futures=cancel_futures)
        # What has not begun to wait for the store need not.
        for pool in (self.storage, self.downloads, self.tasks, self.erasures):
            pool.shutdown(wait, cancel_futures=True)
        self._strangers.shutdown(wait=wait)
