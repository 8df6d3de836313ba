from datetime import timedelta

import pytest

from appliance.core.waiting import Backoff, grown, in_seconds, pause_after


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1.0, "1 second"),
        (0.0, "1 second"),
        (0.2, "1 second"),
        (1.0, "1 second"),
        (1.01, "2 seconds"),
        (59.5, "60 seconds"),
    ],
)
def test_a_time_to_wait_is_rounded_up(seconds: float, said: str) -> None:
    assert in_seconds(seconds) == said


def test_pauses_grow_and_have_an_end() -> None:
    assert [grown(times, 1.0, 30.0) for times in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert [grown(times, 60.0, 1800.0, 5) for times in range(1, 5)] == [60, 300, 1500, 1800]
    assert grown(1_000_000, 1.0, 30.0) == 30
    assert pause_after(3, timedelta(seconds=0.5), timedelta(minutes=1)) == timedelta(seconds=2)


def test_each_pause_is_a_random_part_of_one_that_grows_until_a_success() -> None:
    asked: list[tuple[float, float]] = []

    def half(least: float, most: float) -> float:
        asked.append((least, most))
        return (least + most) / 2

    backoff = Backoff(1.0, 5.0, half)
    assert [backoff.failed() for _ in range(5)] == [0.5, 1, 2, 2.5, 2.5]
    assert asked == [(0, 1), (0, 2), (0, 4), (0, 5), (0, 5)]
    assert backoff.failed(60.0) == 16

    backoff.reset()
    assert backoff.failed() == 0.5


def test_two_that_failed_together_come_back_apart() -> None:
    first, second = Backoff(1.0, 60.0), Backoff(1.0, 60.0)
    assert [first.failed() for _ in range(8)] != [second.failed() for _ in range(8)]
