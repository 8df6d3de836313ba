"""Whose password is hashed next: turns, bounds, and those whose turn never comes."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator

import argon2
import pytest

from appliance.control.auth import hasher as module
from appliance.control.auth.hasher import Hasher, HashQueue, HashTurn
from appliance.control.auth.passwords import Passwords
from appliance.core.errors import Exhausted
from tests.fakes.state import FastPasswords

GOOD = "tall grass by the mill"


def turn(account: str, source: str = "s") -> HashTurn:
    return HashTurn(account, source, lambda: None)


def order(lines: HashQueue) -> list[str]:
    found = []
    while (each := lines.take()) is not None:
        found.append(f"{each.account}@{each.source}")
    return found


def test_turns_go_round_the_accounts_and_the_sources() -> None:
    lines = HashQueue()
    for account, source in (("a", "1"), ("a", "1"), ("a", "1"), ("b", "1"), ("c", "2")):
        lines.add(turn(account, source))
    assert order(lines) == ["a@1", "a@1", "b@1", "c@2", "a@1"]
    assert lines.take() is None


@pytest.mark.attack
def test_a_flood_on_one_name_delays_that_name_alone() -> None:
    lines = HashQueue()
    for number in range(60):
        lines.add(turn("alice", f"10.0.0.{number}"))
    lines.add(turn("bob", "10.9.9.9"))
    assert "bob@10.9.9.9" in order(lines)[:4]


@pytest.mark.attack
def test_a_flood_of_names_from_eight_addresses_delays_those_addresses() -> None:
    lines = HashQueue()
    for number in range(64):
        lines.add(turn(f"name-{number}", f"10.0.0.{number % 8}"))
    assert lines.add(turn("bob", "10.9.9.9")) is not None
    assert "bob@10.9.9.9" in order(lines)[: 2 * 9]


@pytest.mark.attack
def test_who_has_to_go_is_the_newest_of_the_longest_line() -> None:
    lines = HashQueue(most=3)
    first, second = turn("alice", "1"), turn("alice", "2")
    for each in (first, second, turn("bob", "3")):
        assert lines.add(each) is None
    assert lines.add(turn("carol", "4")) is second
    own = turn("carol", "5")
    assert lines.add(own) is own
    assert lines.add(turn("dora", "6")) is not None


def test_leaving_the_line() -> None:
    lines = HashQueue()
    first, second = turn("a"), turn("a")
    lines.add(first)
    lines.add(second)
    lines.remove(first)
    lines.remove(first)
    assert lines.take() is second
    lines.remove(second)
    assert lines.take() is None


class Held(argon2.PasswordHasher):
    """Begins to hash and goes on when it is told to; counts how many do at once."""

    def __init__(self) -> None:
        super().__init__(1, 8, 1)
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.now = self.most = self.all = 0
        self._lock = threading.Lock()

    def hash(self, password: str | bytes, *, salt: bytes | None = None) -> str:
        if threading.current_thread() is threading.main_thread():
            return super().hash(password, salt=salt)
        with self._lock:
            self.now += 1
            self.all += 1
            self.most = max(self.most, self.now)
        self.begun.release()
        assert self.go.wait(30)
        with self._lock:
            self.now -= 1
        return super().hash(password, salt=salt)


class Queue:
    """A hasher whose two places are taken until `go` is set."""

    def __init__(self, *, longest_wait: float = 30.0) -> None:
        self.held = Held()
        self.hasher = Hasher(Passwords(b"p" * 32, self.held), longest_wait=longest_wait)
        self.first: list[asyncio.Task[str]] = []

    def ask(self, account: str, source: str = "s", *, known: bool = False) -> asyncio.Task[str]:
        asked = self.hasher.hash(GOOD, account=account, source=source, known=known)
        return asyncio.create_task(asked)

    async def fill(self) -> None:
        self.first = [self.ask("first") for _ in range(2)]
        for _ in self.first:
            await asyncio.to_thread(self.held.begun.acquire, timeout=30)


@pytest.fixture
async def queue() -> AsyncIterator[Queue]:
    made = Queue()
    await made.fill()
    yield made
    made.held.go.set()
    await asyncio.gather(*made.first)
    await asyncio.to_thread(made.hasher.close)


async def test_a_password_is_hashed_and_verified() -> None:
    hasher = Hasher(FastPasswords())
    stored = await hasher.hash(GOOD, account="a", source="s", known=False)
    verify = hasher.verify
    assert await verify(stored, GOOD, account="a", source="s", known=False)
    assert not await verify(stored, GOOD + " ", account="a", source="s", known=False)
    assert not await verify(None, GOOD, account="a", source="s", known=False)
    hasher.close()


@pytest.mark.attack
async def test_two_at_once_whoever_asks(queue: Queue) -> None:
    waiting = [queue.ask(f"account-{number}") for number in range(20)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    queue.held.go.set()
    await asyncio.gather(*waiting)
    assert queue.held.most == module.AT_ONCE


@pytest.mark.attack
async def test_beyond_the_bound_the_flood_is_refused_and_others_are_served(queue: Queue) -> None:
    flood = [queue.ask("alice") for _ in range(3 * module.MAX_WAITING)]
    await asyncio.sleep(0)
    bob = queue.ask("bob", "other")
    await asyncio.sleep(0)
    queue.held.go.set()
    assert (await bob).startswith("$argon2id$")
    ended = await asyncio.gather(*flood, return_exceptions=True)
    refused = [each for each in ended if isinstance(each, Exhausted)]
    assert len(refused) == 2 * module.MAX_WAITING + 1
    assert {each.retry_after for each in refused} == {module.RETRY_SECONDS}
    assert "try again in a few seconds" in refused[0].message


@pytest.mark.attack
async def test_who_is_known_waits_for_one_hash_more_whatever_strangers_send(queue: Queue) -> None:
    flood = [queue.ask(f"name-{number}") for number in range(2 * module.MAX_WAITING)]
    await asyncio.sleep(0)
    # The same address and no account of its own in the line, as behind one gateway of a company.
    known = [queue.ask(f"device-{number}", known=True) for number in range(2)]
    await asyncio.sleep(0)
    hasher = queue.hasher
    with hasher._lock:
        hasher._working += 1  # As a third worker that takes turns without computing.
    order = [hasher._next() for _ in range(4)]
    assert [turn.known for turn in order if turn is not None] == [True, False, True, False]
    with hasher._lock:
        hasher._working -= 1
    for turn in order:
        assert turn is not None
        turn.future.set_result("taken")
    queue.held.go.set()
    assert await asyncio.gather(*known) == ["taken", "taken"]
    await asyncio.gather(*flood, return_exceptions=True)


async def test_who_waits_too_long_is_told_so_and_nothing_is_verified() -> None:
    queue = Queue(longest_wait=0.01)
    await asyncio.to_thread(lambda: None)
    queue.first = [queue.ask("first") for _ in range(2)]
    for _ in queue.first:
        await asyncio.to_thread(queue.held.begun.acquire, timeout=30)
    with pytest.raises(Exhausted, match="too many people log in"):
        await queue.ask("late")
    queue.held.go.set()
    # What had begun ends, however long it takes: its outcome is what happened.
    assert len(await asyncio.gather(*queue.first)) == 2
    assert queue.held.all == 2
    await asyncio.to_thread(queue.hasher.close)


async def test_who_leaves_while_waiting_costs_nothing(queue: Queue) -> None:
    gone = queue.ask("gone")
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    queue.held.go.set()
    await queue.ask("next")
    assert queue.held.all == 3


async def test_who_leaves_after_the_work_began_is_waited_for(queue: Queue) -> None:
    queue.first[0].cancel()
    await asyncio.sleep(0)
    assert not queue.first[0].done()
    queue.held.go.set()
    assert (await queue.first[0]).startswith("$argon2id$")


async def test_hashes_give_way_to_everything_else() -> None:
    """Two hashes at once would take both processors of a small machine from all calls."""

    class Noting(FastPasswords):
        nice: int | None = None

        def verify(self, stored: str | None, password: str) -> bool:
            self.nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return super().verify(stored, password)

    passwords = Noting()
    hasher = Hasher(passwords)
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    await hasher.verify(None, GOOD, account="a", source="s", known=False)
    hasher.close()
    assert passwords.nice == max(mine, module.NICE)
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine


async def test_hashes_are_made_where_no_priority_may_be_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: int) -> None:
        raise PermissionError("a filter of system calls")

    monkeypatch.setattr(os, "setpriority", refused)
    hasher = Hasher(FastPasswords())
    async with asyncio.timeout(5):
        await hasher.verify(None, GOOD, account="a", source="s", known=False)
    hasher.close()
