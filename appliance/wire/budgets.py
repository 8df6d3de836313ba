"""Admission after identity: what one known caller may hold and how often it may call.

Rules kept here:
* the class of a call comes from its rule alone: what it reads, what it changes, what it sends as a
  stream, what it follows;
* each principal has its own seats and its own rate in each class, so that nobody's reads wait for
  somebody else's, and a flood of reads neither fills the audit log nor stops the caller's changes;
* machines have seats and rates of their own, large enough for everything they do by themselves;
* memory is bounded: seats are counted while they are held, rates in tables of fixed size.

The attack: one known caller holds every place, or writes the audit log full by reading. Pure but
for the clock; asked by the door once it knows who calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from enum import StrEnum

from appliance.core.errors import Exhausted
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.waiting import in_seconds
from appliance.wire.admission import CallerLimits, Rates, Shares, StrangerLimits, StrangerSlots
from appliance.wire.rules import AccessRule

MAX_SEATS = 8192
"""Seats of one class for all callers together: a far backstop, below it each has its own."""
IDENTIFYING, IDENTIFYING_PER_SOURCE = 4096, 512
"""Calls that wait to be identified, in all and of one source."""
IDENTIFIED_AT_ONCE = 2
"""Of one source: half of the threads that the control plane's door has for it."""
MACHINE_SEATS = 256
MACHINE_CALLS_PER_SECOND = 200.0
MACHINE_BURST = 2000
_MACHINES = frozenset(
    {PrincipalKind.NODE, PrincipalKind.GATEWAY, PrincipalKind.REPLICA, PrincipalKind.CONTROL}
)


class MethodClass(StrEnum):
    """What kind of work a call is, for its budget."""

    LOG_IN = "log-in"
    READ = "read"
    CHANGE = "change"
    UPLOAD = "upload"
    WATCH = "watch"


def class_of(rule: AccessRule) -> MethodClass:
    """The class of a rule's method, by what streams and whether it changes anything."""
    if rule.anonymous:
        return MethodClass.LOG_IN
    if rule.response_streaming:
        return MethodClass.WATCH
    if rule.request_streaming:
        return MethodClass.UPLOAD
    return MethodClass.READ if rule.reads else MethodClass.CHANGE


class _Class:
    """The seats and the rate of one class, by principal."""

    def __init__(
        self, name: str, seats: int, per_second: float, burst: int, clock: Callable[[], float]
    ) -> None:
        self._name = name
        self._seats = Shares(
            MAX_SEATS, seats, f"you have as many {name} calls in work as one caller may"
        )
        self._rates = Rates(per_second, burst, clock)

    @contextlib.contextmanager
    def seat(self, principal: str) -> Iterator[None]:
        # The seat first: who has none left pays nothing, and cannot starve its own later calls.
        with self._seats.place(principal):
            wait = self._rates.wait(principal)
            if wait:
                raise Exhausted(
                    f"you make more {self._name} calls than one caller may: "
                    f"wait {in_seconds(wait)}, then repeat",
                    retry_after=wait,
                )
            yield


class Seats:
    """Seats and rates of every known caller of one listener.

    Args:
        limits: of people and applications.
        clock: seconds that only rise (`time.monotonic`).
    """

    def __init__(self, limits: CallerLimits, clock: Callable[[], float]) -> None:
        rates = dict.fromkeys(MethodClass, (limits.changes_per_second, limits.change_burst)) | {
            MethodClass.READ: (limits.reads_per_second, limits.read_burst),
            # Of a few MiB each: what bounds them is the bytes.
            MethodClass.UPLOAD: (limits.parts_per_second, limits.part_burst),
        }
        self._classes = {
            kind: _Class(kind, limits.calls, *rate, clock) for kind, rate in rates.items()
        }
        self._machines = _Class(
            "machine", MACHINE_SEATS, MACHINE_CALLS_PER_SECOND, MACHINE_BURST, clock
        )

    @contextlib.contextmanager
    def seat(self, principal: Principal, kind: MethodClass) -> Iterator[None]:
        """A seat for the time of a call. Raises Exhausted when the caller's budget is used up."""
        machine = principal.kind in _MACHINES
        with (self._machines if machine else self._classes[kind]).seat(principal.name):
            yield


class IdentifyTurns:
    """Turns of callers who are being identified: so many of a source at a time, the rest in order.

    Identifying waits for us alone, so whoever waits here is served within moments; a source that
    floods with credentials waits for itself.
    """

    def __init__(self) -> None:
        self._shares = Shares(IDENTIFYING, IDENTIFYING_PER_SOURCE)
        self._gates: dict[str, tuple[asyncio.Semaphore, list[None]]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, source: str) -> AsyncIterator[None]:
        """A turn for the time of the block. Raises Exhausted when too many wait."""
        with self._shares.place(source):
            gate, users = self._gates.setdefault(
                source, (asyncio.Semaphore(IDENTIFIED_AT_ONCE), [])
            )
            users.append(None)
            try:
                async with gate:
                    yield
            finally:
                users.pop()
                if not users:
                    del self._gates[source]


class Admission:
    """Everything a door counts before and after it knows who calls.

    Args:
        strangers: limits before identity.
        callers: limits after it.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        strangers: StrangerLimits | None = None,
        callers: CallerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        strangers = strangers or StrangerLimits()
        total, per_source = strangers.waiting, strangers.waiting_per_source
        self.first_message_seconds = strangers.first_message_seconds
        # Apart: who identifies itself waits for us alone, in turn; the others wait for what a
        # stranger sends.
        self.identifying = IdentifyTurns()
        self.anonymous = StrangerSlots(total, per_source)
        self.seats = Seats(callers or CallerLimits(), clock)
