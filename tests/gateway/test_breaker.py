"""When a replica leaves rotation, and when it may come back."""

from __future__ import annotations

import math

from appliance.gateway.breaker import Breaker, BreakerState, Budget


def opened(at: float = 100.0) -> Breaker:
    breaker = Breaker(3)
    for _ in range(3):
        fail(breaker, at)
    return breaker


def fail(breaker: Breaker, at: float) -> bool:
    """An answer that was sent after everything before it fails."""
    return breaker.failed(at, math.nextafter(at, math.inf))


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(3)
    assert [fail(breaker, at) for at in (0, 1, 2)] == [False, False, True]
    assert breaker.state is BreakerState.OPEN


def test_a_success_between_keeps_it_closed() -> None:
    breaker = Breaker(3)
    for at in range(10):
        fail(breaker, 2 * at)
        fail(breaker, 2 * at + 1)
        breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED


def test_what_was_sent_before_a_failure_counts_with_it_once() -> None:
    breaker = Breaker(3)
    # A stream with a hundred answers is lost, and what was late beside them comes a little later.
    assert not any(breaker.failed(10.0, sent / 10) for sent in range(100))
    assert not any(breaker.failed(10.5, 9.9) for _ in range(100))
    assert breaker.state is BreakerState.CLOSED
    assert [breaker.failed(11.0, 10.6), breaker.failed(12.0, 11.5)] == [False, True]


def test_an_answer_sent_long_after_a_failure_begins_a_new_row() -> None:
    breaker = Breaker(2)
    assert [breaker.failed(at, at - 1) for at in (0.0, 100.0, 200.0)] == [False, False, False]
    # However long it took: it was sent just after.
    assert breaker.failed(500.0, 201.0)


def test_late_answers_of_a_replica_that_makes_no_token_count_each() -> None:
    together, rare = Breaker(3), Breaker(3)
    assert [together.failed(10.0, 9.0, dead=True) for _ in range(3)] == [False, False, True]
    # However long ago the last one was.
    assert [rare.failed(at + 120, at, dead=True) for at in (0.0, 1e3, 2e3)] == [False, False, True]


def test_late_answers_of_a_replica_that_makes_no_token_are_paid_for_once() -> None:
    budget, breaker = Budget(0.0, spare=1), Breaker(9)
    for _ in range(3):
        breaker.failed(10.0, 9.0, dead=True)
        assert budget.pay(breaker)


def test_answers_that_end_while_it_is_open_change_nothing() -> None:
    breaker = opened()
    breaker.succeeded()
    assert fail(breaker, 100.5) is False
    assert breaker.state is BreakerState.OPEN
    assert breaker.probe_due(101.0)


def test_pauses_double_up_to_half_a_minute() -> None:
    breaker, now, pauses = opened(0.0), 0.0, []
    for _ in range(8):
        pause = next(p for p in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0) if breaker.probe_due(now + p))
        assert not breaker.probe_due(now + pause - 0.01)
        pauses.append(pause)
        now += pause
        breaker.probe_sent()
        assert breaker.state is BreakerState.HALF_OPEN
        assert not breaker.probe_due(now + 1000)
        breaker.probed(now, well=False)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_one_good_probe_closes_it_and_forgets() -> None:
    breaker = opened()
    breaker.probe_sent()
    breaker.probed(101.0, well=True)
    assert breaker.state is BreakerState.CLOSED
    assert [fail(breaker, 102.0), fail(breaker, 103.0)] == [False, False]


def failed() -> Breaker:
    """One whose replica failed just now."""
    breaker = Breaker(3)
    fail(breaker, 1.0)
    return breaker


def test_retries_are_a_share_of_calls() -> None:
    budget = Budget(0.1, spare=2)
    assert [budget.pay(failed()) for _ in range(4)] == [True, True, False, False]
    for _ in range(11):
        budget.earn()
    assert [budget.pay(failed()), budget.pay(failed())] == [True, False]


def test_a_quiet_time_saves_no_more_than_the_spare() -> None:
    budget = Budget(0.5, spare=3)
    for _ in range(1000):
        budget.earn()
    assert [budget.pay(failed()) for _ in range(5)] == [True, True, True, False, False]


def test_what_fails_together_costs_one_retry() -> None:
    budget, first, second = Budget(0.1, spare=2), failed(), failed()
    # Also when two replicas fail at the same time.
    assert all(budget.pay(breaker) for _ in range(100) for breaker in (first, second))
    assert not first.failed(1.5, 0.9)
    assert budget.pay(first)
    fail(first, 2.0)
    assert not budget.pay(first)


def test_what_nobody_could_pay_for_is_not_free_afterwards() -> None:
    budget, breaker = Budget(0.5, spare=1), failed()
    budget.pay(failed())
    assert [budget.pay(breaker), budget.pay(breaker)] == [False, False]
    budget.earn()
    budget.earn()
    assert [budget.pay(breaker), budget.pay(breaker), budget.pay(failed())] == [True, True, False]
