"""Which rank a job hangs on, from what its ranks show."""

from __future__ import annotations

from appliance.jobs.runtime.signs import RankState, Sign
from appliance.jobs.runtime.stalls import MAX_GAP, How, Stall, StallWatch

WORKS, WAITS, DONE = RankState.WORKS, RankState.WAITS, RankState.DONE


def look(watch: StallWatch, *signs: Sign, seconds: float = 1.0) -> Stall | None:
    return watch.observe(dict(enumerate(signs)), seconds)


def later(*signs: Sign, seconds: int, silent: tuple[int, ...] = ()) -> Stall | None:
    """What is seen after some seconds in which nobody left a mark, and some did not beat."""
    watch = StallWatch(len(signs))
    look(watch, *signs)
    found = None
    for second in range(1, seconds + 1):
        now = [
            sign if number in silent else Sign(sign.marks, second, sign.state, sign.doing)
            for number, sign in enumerate(signs)
        ]
        found = look(watch, *now)
    return found


def test_a_rank_that_neither_marks_nor_beats_is_silent() -> None:
    stopped, waiting = Sign(5, 0, WORKS, "step 5"), Sign(5, 0, WAITS, "step 5")
    assert later(waiting, stopped, seconds=20, silent=(1,)) == Stall(20, 1, "step 5", How.SILENT)


def test_a_rank_outside_all_collectives_is_the_one_that_is_waited_for() -> None:
    asleep, waiting = Sign(4, 0, WORKS, "reads"), Sign(9, 0, WAITS, "step 9")
    assert later(waiting, asleep, waiting, seconds=7) == Stall(7, 1, "reads", How.WORKS)


def test_where_all_wait_the_one_that_has_been_quiet_for_the_longest_is_named() -> None:
    watch = StallWatch(2)
    look(watch, Sign(1, 1, WAITS), Sign(1, 1, WAITS))
    look(watch, Sign(2, 2, WAITS), Sign(1, 2, WAITS, "step 3"))
    assert look(watch, Sign(2, 3, WAITS), Sign(1, 3, WAITS, "step 3")) == Stall(
        1, 1, "step 3", How.WAITS
    )


def test_nobody_has_hung_while_one_rank_goes_on() -> None:
    watch = StallWatch(3)
    for second in range(100):
        found = look(watch, Sign(7, second, WAITS), Sign(second, second, WORKS), Sign(7, 0, WORKS))
        assert found is not None
        assert found.seconds <= 1


def test_a_rank_of_which_nothing_was_heard_is_silent() -> None:
    watch = StallWatch(2)
    for second in range(10):
        found = watch.observe({0: Sign(3, second, WAITS)}, 1.0)
    assert found == Stall(9, 1, "", How.SILENT)


def test_a_rank_that_has_returned_is_waited_for_by_nobody() -> None:
    done, slow = Sign(9, 3, DONE), Sign(9, 0, WAITS, "ends")
    assert later(done, slow, seconds=8, silent=(0,)) == Stall(8, 1, "ends", How.WAITS)
    assert look(StallWatch(1), done) is None


def test_time_in_which_nobody_looked_does_not_count() -> None:
    watch = StallWatch(1)
    look(watch, Sign(1))
    found = look(watch, Sign(1), seconds=3600.0)
    assert found is not None
    assert found.seconds == MAX_GAP
