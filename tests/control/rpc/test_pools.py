"""Threads of strangers: turns go round the sources."""

import threading

import pytest

from appliance.control.rpc.pools import InTurn


@pytest.mark.attack
def test_one_log_in_waits_for_one_turn_of_each_source_that_floods() -> None:
    pool, begin = InTurn(1), threading.Event()
    done: list[str] = []
    holding = pool.submit("held", begin.wait)
    futures = [
        pool.submit(source, lambda source=source: done.append(source))
        for source in ("flood-1", "flood-2")
        for _ in range(100)
    ]
    futures.append(pool.submit("honest", lambda: done.append("honest")))
    begin.set()
    for future in (holding, *futures):
        future.result(10)
    pool.shutdown()
    assert done.index("honest") == 2
    assert len(done) == 201


def test_what_fails_fails_for_who_asked_and_the_rest_goes_on() -> None:
    pool = InTurn(1)

    def fail() -> None:
        raise KeyError("lost")

    failed, fine = pool.submit("a", fail), pool.submit("a", lambda: 7)
    with pytest.raises(KeyError):
        failed.result(10)
    assert fine.result(10) == 7
    pool.shutdown()


def test_what_was_given_up_before_its_turn_is_not_done() -> None:
    pool, begin = InTurn(1), threading.Event()
    done: list[int] = []
    holding = pool.submit("a", begin.wait)
    given_up = pool.submit("a", lambda: done.append(1))
    assert given_up.cancel()
    begin.set()
    assert holding.result(10)
    pool.shutdown()
    assert done == []
