"""What is kept of a series that goes on for ever."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from appliance.core.thinning import MAX_POINTS, thin


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
    assert thin(range(first, last + 1), 8) == steps


@pytest.mark.parametrize("first", [0, 1, 7, 8, 1_000_000])
def test_no_length_keeps_more_and_what_was_left_out_never_comes_back(first: int) -> None:
    before: set[int] = set()
    for last in range(first, first + 600):
        now = set(thin(range(first, last + 1), 32))
        assert len(now) <= 32
        assert now - before <= {last}
        before = now | {last}


SPACINGS = [
    range(10, 100_001, 10),
    range(1, 30_001, 10),
    range(333, 3_000_000, 333),
    range(1000, 5_000_001, 1000),
    range(1, 20_001, 2),
    [1, 2, 3, *range(1_000_001, 1_010_000)],
]


@pytest.mark.parametrize("steps", SPACINGS)
def test_every_point_is_kept_until_there_are_too_many(steps: Sequence[int]) -> None:
    for few in (steps[:100], steps[:MAX_POINTS]):
        assert thin(few) == list(few)


@pytest.mark.parametrize("steps", SPACINGS)
@pytest.mark.parametrize("together", [100, 5000])
def test_however_far_apart_steps_are_half_of_the_bound_and_all_of_it_is_kept(
    steps: Sequence[int], together: int
) -> None:
    kept: list[int] = []
    for few in _batches(steps, together):
        kept = thin([*kept, *few])
    assert MAX_POINTS // 2 <= len(kept) <= MAX_POINTS
    assert (kept[0], kept[-1]) == (steps[0], steps[-1])


@pytest.mark.parametrize("steps", SPACINGS[:-1])
def test_what_is_kept_is_even(steps: Sequence[int]) -> None:
    apart = [after - step for step, after in itertools.pairwise(thin(steps)[1:-1])]
    assert max(apart) <= 2 * min(apart)


def test_what_waits_is_thinned_apart_from_what_is_kept_and_fits_it() -> None:
    old, new = range(1, 500_001), range(500_001, 1_000_001)
    together = set(thin([*old, *new]))
    apart = set(thin([*thin(old), *thin(new)]))
    assert together == apart


def test_a_million_steps() -> None:
    assert thin(range(1, 1_000_001)) == [1, *range(512, 1_000_000, 512), 1_000_000]


def _batches(steps: Sequence[int], together: int) -> list[Sequence[int]]:
    return [steps[at : at + together] for at in range(0, len(steps), together)]
