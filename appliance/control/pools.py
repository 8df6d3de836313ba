"""Threads for calls: those whose caller is known, and those of strangers, apart.

Rules kept here: services run where their caller belongs, decided when the work begins; however
many log-ins wait for their hash, a known caller's work finds its threads free.

The attack: fill every thread with log-ins. Made by the composition root; given to every servicer as
one pool.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

from appliance.control.services.caller import known_caller
from appliance.core.identity import ANONYMOUS

T = TypeVar("T")

STRANGER_THREADS = 4


class CallPool(Executor):
    """Runs the work of a call in the threads of known callers or in those of strangers.

    Args:
        threads: for known callers, and for work that belongs to no call.
    """

    def __init__(self, threads: int) -> None:
        self._known = ThreadPoolExecutor(threads, thread_name_prefix="call")
        self._strangers = ThreadPoolExecutor(STRANGER_THREADS, thread_name_prefix="stranger")

    def submit(
        self, function: Callable[..., T], /, *arguments: object, **named: object
    ) -> Future[T]:
        """Run a function; called in the context of the call it belongs to."""
        caller = known_caller()
        stranger = caller is not None and caller.principal == ANONYMOUS
        return (self._strangers if stranger else self._known).submit(function, *arguments, **named)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the base class names it
        """End both."""
        self._known.shutdown(wait, cancel_futures=cancel_futures)
        self._strangers.shutdown(wait, cancel_futures=cancel_futures)
