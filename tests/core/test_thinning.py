"""What is kept of a series that goes on for ever."""

from __future__ import annotations

import pytest

from appliance.core.thinning import is_kept, stride


def kept(first: int, last: int, most: int) -> list[int]:
    apart = stride(first, last, most)
    return [step for step in range(first, last + 1) if is_kept(step, first, last, apart)]


@pytest.mark.parametrize(
    ("first", "last", "steps"),
    [
        (1, 1, [1]),
        (1, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (1, 9, [1, 2, 4, 6, 8, 9]),
        (1, 16, [1, 4, 8, 12, 16]),
        (1001, 1009, [1001, 1002, 1004, 1006, 1008, 1009]),
        (8, 40, [8, 16, 24, 32, 40]),
        (0, 0, [0]),
    ],
)
def test_the_first_the_newest_and_evenly_spaced_ones_are_kept(
    first: int, last: int, steps: list[int]
) -> None:
    assert kept(first, last, 8) == steps


@pytest.mark.parametrize("first", [0, 1, 7, 8, 1_000_000])
def test_no_length_keeps_more_and_what_was_left_out_never_comes_back(first: int) -> None:
    before: set[int] = set()
    for last in range(first, first + 600):
        now = set(kept(first, last, 32))
        assert len(now) <= 32
        assert now - before <= {last}
        before = now | {last}


def test_a_million_steps() -> None:
    assert stride(1, 1_000_000) == 512
    assert stride(1, 2048) == 1
