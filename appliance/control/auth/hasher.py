"""Whose password is hashed next: two at once, in turn among accounts and among sources.

Rules kept here:
* at most two hashes are computed at once, on threads of their own that give way to others: whoever
  waits holds no thread that serves calls, and calls find a processor;
* what waits is served first come, first served within an account and within a source; turns go
  round all accounts and round all sources, one after the other: a flood on one name delays that
  name, one from an address delays that address, and nobody else waits longer than a round;
* who is known (by a device, a recovery code, a session) waits apart from all others, and every
  second turn is theirs: whatever strangers send, they wait for one hash more;
* at most 64 wait in each part. When more come, the newest of the longest line goes, be it an
  account's or a source's; a wait longer than twenty seconds ends. Both are told to repeat, and
  nothing was verified.

The attack: a flood of log-ins that keeps other people out or takes the memory (64 MiB a hash).
`HashQueue` is pure. Called by the servicers of log-in and of people.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from appliance.control.auth.passwords import Passwords
from appliance.core.errors import Exhausted

AT_ONCE = 2
MAX_WAITING = 64
MAX_WAIT = 20.0
NICE = 10
"""Priority of hashing: a tenth of the usual share where processors are short, all of it else."""
RETRY_SECONDS = 2.0


@dataclass(eq=False)
class HashTurn:
    """One hash that waits: for which account, from which source, what is to be done.

    `known` is whoever has proved something before.
    """

    account: str
    source: str
    work: Callable[[], Any]
    known: bool = False
    future: Future[Any] = field(default_factory=Future)


def _after_others() -> None:
    """Let everything else have a processor first: of two, two hashes would take both."""
    # Of this thread alone, on Linux (setpriority(2)).
    thread = threading.get_native_id()
    # Where a filter of system calls forbids it they compute all the same: an initializer that
    # raises would end all log-ins.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))


class HashQueue:
    """Who waits, and who is next."""

    def __init__(self, most: int = MAX_WAITING) -> None:
        self._most = most
        self._count = 0
        self._accounts: OrderedDict[str, deque[HashTurn]] = OrderedDict()
        self._sources: OrderedDict[str, deque[HashTurn]] = OrderedDict()
        self._by_source = False

    def add(self, turn: HashTurn) -> HashTurn | None:
        """Stand in line; who has to go for it, perhaps the newcomer itself."""
        self._accounts.setdefault(turn.account, deque()).append(turn)
        self._sources.setdefault(turn.source, deque()).append(turn)
        self._count += 1
        if self._count <= self._most:
            return None
        longest = max((*self._accounts.values(), *self._sources.values()), key=len)
        mine = max(len(self._accounts[turn.account]), len(self._sources[turn.source]))
        last = turn if mine == len(longest) else longest[-1]
        self.remove(last)
        return last

    def take(self) -> HashTurn | None:
        """The next one: of the account whose turn it is, then of the source, in alternation."""
        if not self._count:
            return None
        ring = self._sources if self._by_source else self._accounts
        self._by_source = not self._by_source
        lane = next(iter(ring))
        turn = ring[lane][0]
        ring.move_to_end(lane)
        self.remove(turn)
        return turn

    def __len__(self) -> int:
        return self._count

    def remove(self, turn: HashTurn) -> None:
        """Leave the line; nothing when it is not in it."""
        line = self._accounts.get(turn.account, ())
        if turn not in line:
            return
        for ring, lane in ((self._accounts, turn.account), (self._sources, turn.source)):
            ring[lane].remove(turn)
            if not ring[lane]:
                del ring[lane]
        self._count -= 1


class Hasher:
    """Hashes and verifies passwords, each in its turn; awaited from the event loop."""

    def __init__(self, passwords: Passwords, *, longest_wait: float = MAX_WAIT) -> None:
        self._passwords = passwords
        self._longest_wait = longest_wait
        self._lines = {known: HashQueue() for known in (True, False)}
        self._known_next = True
        self._lock = threading.Lock()
        self._working = 0
        self._pool = ThreadPoolExecutor(
            AT_ONCE, thread_name_prefix="hash", initializer=_after_others
        )

    async def hash(self, password: str, *, account: str, source: str, known: bool) -> str:
        """Hash a password. Raises Exhausted when its turn does not come."""
        work = partial(self._passwords.hash, password)
        return str(await self._turn(HashTurn(account, source, work, known)))

    async def verify(
        self, stored: str | None, password: str, *, account: str, source: str, known: bool
    ) -> bool:
        """Whether `password` has the hash `stored`; with None the same work, and False.

        Raises Exhausted when its turn does not come: then nothing was verified.
        """
        verify = partial(self._passwords.verify, stored, password)
        return bool(await self._turn(HashTurn(account, source, verify, known)))

    def close(self) -> None:
        """Let what is being computed end; nobody may wait any more."""
        self._pool.shutdown()

    async def _turn(self, turn: HashTurn) -> Any:  # noqa: ANN401 - what the work makes
        self._enqueue(turn)
        answer = asyncio.wrap_future(turn.future)
        try:
            done, _ = await asyncio.wait({answer}, timeout=self._longest_wait)
        except asyncio.CancelledError:
            if self._withdraw(turn):
                raise
            return await answer  # It is being computed: what is recorded is what comes of it.
        if not done and self._withdraw(turn):
            raise _busy()
        return await answer

    def _enqueue(self, turn: HashTurn) -> None:
        with self._lock:
            out = self._lines[turn.known].add(turn)
            if out is not turn and self._working < AT_ONCE:
                self._working += 1
                self._pool.submit(self._work)
            if out is not None and out.future.set_running_or_notify_cancel():
                out.future.set_exception(_busy())

    def _withdraw(self, turn: HashTurn) -> bool:
        """Leave the line; False when it is too late for that."""
        with self._lock:
            self._lines[turn.known].remove(turn)
            return turn.future.cancel()

    def _work(self) -> None:
        """Compute until nobody waits."""
        while (turn := self._next()) is not None:
            try:
                turn.future.set_result(turn.work())
            except BaseException as error:  # noqa: BLE001 - whoever waits hears of it
                turn.future.set_exception(error)

    def _next(self) -> HashTurn | None:
        with self._lock:
            first = self._known_next
            turn = self._lines[first].take() or self._lines[not first].take()
            if turn is None:
                self._working -= 1
                return None
            self._known_next = not turn.known
            # From here on it cannot be withdrawn.
            turn.future.set_running_or_notify_cancel()
            return turn


def _busy() -> Exhausted:
    return Exhausted(
        "too many people log in at this moment: try again in a few seconds",
        retry_after=RETRY_SECONDS,
    )
