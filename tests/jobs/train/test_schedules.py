"""Which rank computes which stage and which layers."""

from __future__ import annotations

import pytest

from appliance.jobs.train.parallel.schedules import (
    layers_of_stage,
    rank_of_stage,
    stages_of_rank,
)
from appliance.kinds.train_settings import STAGES_PER_RANK


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("1F1B", [[0], [1], [2], [3]]),
        ("GPipe", [[0], [1], [2], [3]]),
        ("Interleaved1F1B", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("ZBVZeroBubble", [[0, 7], [1, 6], [2, 5], [3, 4]]),
    ],
)
def test_stages_of_four_ranks(schedule: str, expected: list[list[int]]) -> None:
    stages = 4 * STAGES_PER_RANK[schedule]
    assert [stages_of_rank(schedule, rank, 4, stages) for rank in range(4)] == expected
    for rank, held in enumerate(expected):
        assert [rank_of_stage(schedule, stage, 4) for stage in held] == [rank] * len(held)


def test_one_rank_has_the_one_stage_of_any_schedule() -> None:
    assert [stages_of_rank(schedule, 0, 1, 1) for schedule in STAGES_PER_RANK] == [[0]] * 4


def test_stages_have_equal_runs_of_layers() -> None:
    assert [list(layers_of_stage(stage, 3, 6)) for stage in range(3)] == [[0, 1], [2, 3], [4, 5]]
