"""Failed proofs: counted first, slowed down, stopped; the same for names that nobody has."""

import threading
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select

from appliance.control.auth import attempts as module
from appliance.control.auth import devices
from appliance.control.auth.attempts import Reserved, clear, delay_after
from appliance.control.store.database import Database
from appliance.control.store.tables import attempt
from appliance.core.errors import Exhausted
from tests.fakes.state import START, add_user


class Counters:
    """What a log-in from an unknown device counts in, by name."""

    def __init__(self, state: Database) -> None:
        self.state = state

    def begin(self, name: str, now: datetime = START) -> Reserved:
        with self.state.write() as transaction:
            counter = module.shared_counter(transaction, name, b"k" * 32)
            return module.reserve(transaction, counter, now)

    def release(self, reserved: Reserved) -> None:
        with self.state.write() as transaction:
            module.release(transaction, reserved)


@pytest.fixture
def attempts(state: Database) -> Counters:
    add_user(state, "alice")
    return Counters(state)


def test_delays() -> None:
    seconds = [delay_after(count).total_seconds() for count in (0, 4, 5, 6, 7, 14, 15, 99, 10**6)]
    assert seconds == [0, 0, 1, 2, 4, 512, 900, 900, 900]


@pytest.mark.attack
def test_the_sixth_try_must_wait(attempts: Counters) -> None:
    for _ in range(5):
        attempts.begin("alice")
    with pytest.raises(Exhausted, match="wait 1 second,") as raised:
        attempts.begin("alice")
    assert raised.value.retry_after == 1
    attempts.begin("alice", START + timedelta(seconds=1))
    with pytest.raises(Exhausted, match="wait 2 seconds"):
        attempts.begin("alice", START + timedelta(seconds=1))


@pytest.mark.attack
def test_after_a_hundred_the_counter_is_shut(attempts: Counters, state: Database) -> None:
    now = START
    for _ in range(100):
        attempts.begin("alice", now)
        now += timedelta(seconds=900)
    with pytest.raises(Exhausted, match="have an administrator unlock"):
        attempts.begin("alice", now + timedelta(days=365))
    with state.write() as transaction:
        clear(transaction, "user:alice")
    attempts.begin("alice", now)


@pytest.mark.attack
def test_parallel_tries_cannot_exceed_the_limit(attempts: Counters) -> None:
    got_through: list[int] = []

    def guess() -> None:
        for _ in range(5):
            try:
                attempts.begin("alice")
            except Exhausted:
                continue
            got_through.append(1)

    threads = [threading.Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got_through) == module.FREE


def test_a_try_that_was_never_verified_is_given_back(attempts: Counters) -> None:
    for _ in range(20):
        attempts.release(attempts.begin("alice"))
    reserved = [attempts.begin("alice") for _ in range(5)]
    with pytest.raises(Exhausted):
        attempts.begin("alice")
    attempts.release(reserved[-1])
    attempts.begin("alice")


@pytest.mark.attack
def test_tries_are_given_back_in_any_order_and_never_twice(
    attempts: Counters, state: Database
) -> None:
    first, second = attempts.begin("alice"), attempts.begin("alice")
    attempts.release(first)
    attempts.release(second)
    with state.read() as reading:
        assert reading.value(select(attempt.c.failures)) == 0
    kept = attempts.begin("alice")
    with state.write() as transaction:
        clear(transaction, "user:alice")
    attempts.release(kept)
    for _ in range(5):
        attempts.begin("alice")
    with pytest.raises(Exhausted):
        attempts.begin("alice")


@pytest.mark.attack
def test_a_try_from_before_a_success_is_not_given_back_out_of_those_after_it(
    attempts: Counters,
) -> None:
    """It would leave less than none, and whoever guesses had a free one more each time."""
    old = [attempts.begin("alice") for _ in range(4)]
    with attempts.state.write() as transaction:
        clear(transaction, "user:alice")
    new = attempts.begin("alice")
    for reserved in (new, *old):
        attempts.release(reserved)
    for _ in range(5):
        attempts.begin("alice")
    with pytest.raises(Exhausted):
        attempts.begin("alice")


@pytest.mark.attack
@pytest.mark.parametrize("failures", [6, 7, 12])
def test_a_try_that_is_given_back_late_spares_nobody_the_wait_for_the_others(
    attempts: Counters, failures: int
) -> None:
    """The wait is that of one failure less, from the last try on, and it is kept."""
    first, now = attempts.begin("alice"), START
    for count in range(1, failures):
        now += delay_after(count)
        attempts.begin("alice", now)
    attempts.release(first)
    left = delay_after(failures - 1)
    for moment in (now, now + left - timedelta(milliseconds=1)):
        with pytest.raises(Exhausted):
            attempts.begin("alice", moment)
    attempts.begin("alice", now + left)


def test_who_is_unlocked_may_try_again_by_every_way(attempts: Counters) -> None:
    """From unknown devices, from each known one, and with a recovery code; nobody else may."""
    add_user(attempts.state, "bob")
    others = {"user:bob", module.recovery_counter("bob")}
    counters = {*others, "user:alice", module.recovery_counter("alice")}
    with attempts.state.write() as transaction:
        for user in ("alice", "bob"):
            token = devices.remember(transaction, user, b"k" * 32, START)
            counter = module.device_counter(devices.device_id(token))
            counters.add(counter)
        others.add(counter)
        for each in counters:
            module.count(transaction, each, START)
        module.clear_account(transaction, "alice")
        rows = transaction.all(select(attempt.c.account))
    assert {row.account for row in rows} == others


@pytest.mark.attack
@pytest.mark.parametrize(
    "name", ["ALICE", " alice", "alice ", "\uff41\uff4c\uff49\uff43\uff45", "Alice\n"]
)
def test_spellings_share_one_counter(attempts: Counters, name: str) -> None:
    for _ in range(5):
        attempts.begin(name)
    with pytest.raises(Exhausted):
        attempts.begin("alice")


@pytest.mark.attack
def test_unknown_names_answer_alike_and_cannot_fill_the_disk(
    attempts: Counters, state: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUCKETS", 3)
    for _ in range(5):
        attempts.begin("nobody")
    with pytest.raises(Exhausted, match="wait 1 second,"):
        attempts.begin("nobody")
    now = START
    for number in range(30):
        now += timedelta(seconds=900)
        attempts.begin(f"name-{number}", now)
    with state.read() as reading:
        assert reading.value(select(func.count()).select_from(attempt)) <= 3


def test_a_wait_from_a_clock_that_was_ahead_is_not_believed(attempts: Counters) -> None:
    ahead = START + timedelta(days=365)
    for _ in range(6):
        attempts.begin("alice", ahead)
        ahead += timedelta(seconds=1)
    # The sixth asks for two seconds; what lies further ahead was written by a wrong clock.
    attempts.begin("alice", START)
    with pytest.raises(Exhausted, match="wait 4 seconds"):
        attempts.begin("alice", START)
