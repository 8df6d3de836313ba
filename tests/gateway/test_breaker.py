"""When a replica leaves rotation, and when it may come back."""

from __future__ import annotations

from appliance.gateway.breaker import Breaker, Budget, State


def opened(at: float = 100.0) -> Breaker:
    breaker = Breaker(3)
    for _ in range(3):
        breaker.failed(at)
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(3)
    assert [breaker.failed(0), breaker.failed(0), breaker.failed(0)] == [False, False, True]
    assert breaker.state is State.OPEN


def test_a_success_between_keeps_it_closed() -> None:
    breaker = Breaker(3)
    for _ in range(10):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded()
    assert breaker.state is State.CLOSED


def test_answers_that_end_while_it_is_open_change_nothing() -> None:
    breaker = opened()
    breaker.succeeded()
    assert breaker.failed(100.5) is False
    assert breaker.state is State.OPEN
    assert breaker.probe_due(101.0)


def test_pauses_double_up_to_half_a_minute() -> None:
    breaker, now, pauses = opened(0.0), 0.0, []
    for _ in range(8):
        pause = next(p for p in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0) if breaker.probe_due(now + p))
        assert not breaker.probe_due(now + pause - 0.01)
        pauses.append(pause)
        now += pause
        breaker.probe_sent()
        assert breaker.state is State.HALF_OPEN
        assert not breaker.probe_due(now + 1000)
        breaker.probed(now, well=False)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_one_good_probe_closes_it_and_forgets() -> None:
    breaker = opened()
    breaker.probe_sent()
    breaker.probed(101.0, well=True)
    assert breaker.state is State.CLOSED
    assert [breaker.failed(102.0), breaker.failed(102.0)] == [False, False]


def test_retries_are_a_share_of_calls() -> None:
    budget = Budget(0.1, spare=2)
    assert [budget.spend() for _ in range(4)] == [True, True, False, False]
    for _ in range(11):
        budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]


def test_a_quiet_time_saves_no_more_than_the_spare() -> None:
    budget = Budget(0.5, spare=3)
    for _ in range(1000):
        budget.earn()
    assert [budget.spend() for _ in range(5)] == [True, True, True, False, False]
