"""Slows long work in the background down, so that it does not delay calls.

The interpreter hands its lock on each 5 ms only, and a call needs it some twenty times: beside a
thread that only computes, 20 ms become 130. Work that sleeps a moment after each millisecond hands
it on by itself.

Used by the cross-check of the policy; what runs while somebody waits for it is not paced.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.001
PAUSE_SECONDS = 0.001


class Pace(Protocol):
    """Goes through items at some pace."""

    def __call__(self, items: Iterable[T], /) -> Iterable[T]:
        """The items."""


def at_once(items: Iterable[T], /) -> Iterable[T]:
    """Without a pause."""
    return items


def paced(items: Iterable[T], /) -> Iterator[T]:
    """With a pause after each slice of work."""
    began = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - began > SLICE_SECONDS:
            time.sleep(PAUSE_SECONDS)
            began = time.perf_counter()
