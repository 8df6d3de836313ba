"""When the losses of trainers agree."""

from __future__ import annotations

import math

import pytest

from bench.hybrid_trainer import apart

WANTED = [3.0, 2.0]


def test_the_worst_loss_of_all_rounds_counts() -> None:
    rounds = {"ours": [[3.0, 2.0], [3.0, 2.25], [3.0, 2.0]], "theirs": [[3.0, 1.9]]}
    assert apart(rounds, WANTED) == 0.25


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_infinitely_far_from_any(loss: float) -> None:
    assert apart({"ours": [[3.0, loss], [3.0, 2.0]]}, WANTED) == math.inf


def test_a_loss_that_is_missing_is_no_agreement() -> None:
    with pytest.raises(ValueError, match="longer"):
        apart({"ours": [[3.0]]}, WANTED)
