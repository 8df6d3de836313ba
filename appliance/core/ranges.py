"""A set of whole numbers that mostly follow each other, kept as ranges. Pure.

Called by `appliance.control.services.serving.usage`.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator


class Ranges:
    """Numbers from 1 on.

    Args:
        spans: first and last number of each range, in any order.
    """

    def __init__(self, spans: Iterable[Iterable[int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted(tuple(span) for span in spans):
            self._firsts.append(first)
            self._lasts.append(last)

    def __contains__(self, number: int) -> bool:
        """Whether a number is in it."""
        index = bisect.bisect_right(self._firsts, number) - 1
        return index >= 0 and number <= self._lasts[index]

    @property
    def spans(self) -> list[list[int]]:
        """First and last number of each range, in order."""
        return [list(span) for span in zip(self._firsts, self._lasts, strict=True)]

    @property
    def newest(self) -> int:
        """The largest number; 0 when there is none."""
        return self._lasts[-1] if self._lasts else 0

    def add(self, number: int) -> None:
        """Add a number."""
        if number in self:
            return
        index = bisect.bisect_right(self._firsts, number)
        joins_before = index > 0 and self._lasts[index - 1] == number - 1
        joins_after = index < len(self._firsts) and self._firsts[index] == number + 1
        if joins_before and joins_after:
            self._lasts[index - 1] = self._lasts[index]
            del self._firsts[index], self._lasts[index]
        elif joins_before:
            self._lasts[index - 1] = number
        elif joins_after:
            self._firsts[index] = number
        else:
            self._firsts.insert(index, number)
            self._lasts.insert(index, number)

    def gaps(self, last: int) -> Iterator[tuple[int, int]]:
        """First and last number of each range from 1 to `last` that is not in it."""
        expected = 1
        for first, end in zip(self._firsts, self._lasts, strict=True):
            if first > last:
                break
            if first > expected:
                yield expected, first - 1
            expected = end + 1
        if expected <= last:
            yield expected, last
