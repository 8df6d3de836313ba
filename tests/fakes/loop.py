"""An event loop whose time is its own: who sleeps wakes at once, and the clock says it was later.

    def test_a_day() -> None:
        jumping(sleep_for_a_day())

For code that waits for nothing but time: with threads or sockets a jump may come too early.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.SelectSelector):
    """Passes time by itself instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if timeout is None and not found:
            raise RuntimeError("nobody will ever wake: the code waits for something else than time")
        if not found:
            self.now += timeout or 0.0
        return found


def jumping(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; `asyncio.get_running_loop().time()` begins at zero."""
    selector = _Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
