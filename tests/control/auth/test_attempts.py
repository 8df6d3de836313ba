"""Failed proofs: counted first, slowed down, stopped; the same for names that nobody has."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from appliance.control.auth import attempts as module
from appliance.control.auth.attempts import Attempts, clear, delay_after
from appliance.control.store.database import Database
from appliance.control.store.tables import attempt
from appliance.core.errors import Exhausted
from tests.fakes.state import START, add_user


@pytest.fixture
def attempts(state: Database) -> Attempts:
    add_user(state, "alice")
    return Attempts(state, b"k" * 32)


def test_delays() -> None:
    seconds = [delay_after(count).total_seconds() for count in (0, 4, 5, 6, 7, 14, 15, 99, 10**6)]
    assert seconds == [0, 0, 1, 2, 4, 512, 900, 900, 900]


@pytest.mark.attack
def test_the_sixth_try_must_wait(attempts: Attempts) -> None:
    for _ in range(5):
        attempts.begin("alice", START)
    with pytest.raises(Exhausted, match="wait 1 seconds") as raised:
        attempts.begin("alice", START)
    assert raised.value.retry_after == 1
    attempts.begin("alice", START + timedelta(seconds=1))
    with pytest.raises(Exhausted, match="wait 2 seconds"):
        attempts.begin("alice", START + timedelta(seconds=1))


@pytest.mark.attack
def test_after_a_hundred_an_administrator_must_unlock(attempts: Attempts, state: Database) -> None:
    now = START
    for _ in range(100):
        attempts.begin("alice", now)
        now += timedelta(seconds=900)
    with pytest.raises(Exhausted, match="administrator must unlock"):
        attempts.begin("alice", now + timedelta(days=365))
    with state.write() as transaction:
        clear(transaction, "alice")
    attempts.begin("alice", now)


@pytest.mark.attack
def test_parallel_tries_cannot_exceed_the_limit(attempts: Attempts) -> None:
    got_through: list[int] = []

    def guess() -> None:
        for _ in range(5):
            try:
                attempts.begin("alice", START)
            except Exhausted:
                continue
            got_through.append(1)

    threads = [threading.Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got_through) == module.FREE


@pytest.mark.attack
@pytest.mark.parametrize(
    "name", ["ALICE", " alice", "alice ", "\uff41\uff4c\uff49\uff43\uff45", "Alice\n"]
)
def test_spellings_share_one_counter(attempts: Attempts, name: str) -> None:
    for _ in range(5):
        attempts.begin(name, START)
    with pytest.raises(Exhausted):
        attempts.begin("alice", START)


@pytest.mark.attack
def test_unknown_names_answer_alike_and_cannot_fill_the_disk(
    attempts: Attempts, state: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUCKETS", 3)
    for _ in range(5):
        attempts.begin("nobody", START)
    with pytest.raises(Exhausted, match="wait 1 seconds"):
        attempts.begin("nobody", START)
    now = START
    for number in range(30):
        now += timedelta(seconds=900)
        attempts.begin(f"name-{number}", now)
    with state.read() as reading:
        assert reading.value(select(func.count()).select_from(attempt)) <= 3
