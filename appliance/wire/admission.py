"""Admission before anybody is known: shares, rates and counted refusals, by source.

Used by every listener, gRPC and HTTPS, before a caller has proved who it is; what comes after that
is `appliance.wire.budgets`. Rules kept here:
* a source is an IPv4 address or an IPv6 /64; an IPv4 address written as IPv6 is the same source;
* one source holds a share of the places, never all; who waits for nothing holds none, and who lets
  itself be waited for goes for who comes;
* a refusal is counted in a table of fixed size and recorded once a minute and source, so that
  neither the memory nor the audit log grows with what strangers send;
* nothing of a request is kept: method names and reasons come from our own tables, and the caller
  of `Refusals.count` passes no text of a stranger.

The attacks: hold every place with calls that say nothing; fill the audit log, the disk or the
memory with refusals, also from many addresses of one network; take everybody's turn from one
address. Pure: values and a clock in, decisions out; made by the composition root of each process.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from appliance.core.config import doc
from appliance.core.errors import Exhausted
from appliance.core.waiting import in_seconds

MAX_SOURCES = 10_000
"""Sources whose rate is remembered; a forgotten one starts with a full bucket."""
MAX_COUNTED_SOURCES = 64
"""Rows of refusals in a minute; the next ones share a row."""
MAX_COUNTED_NAMES = 12
"""Reasons, and methods, told apart in a row; the next ones share a name."""
OTHERS = "others"
MAX_WAIT_SECONDS = 3600.0
"""Longest time that anybody is told to wait."""
RETRY_SECONDS = 1.0
"""When to come back after a full share: places are given back within moments."""

_PEER = re.compile(r"ipv[46]:(?:\[|%5B)?([0-9A-Fa-f.:]+?)(?:%[^\]]*)?(?:\]|%5D)?:[0-9]+")


@functools.lru_cache(maxsize=4096)
def source_of(peer: str) -> str:
    """The source to count for, of a gRPC peer (`ipv4:10.0.0.7:5312`) or of a plain address.

    IPv4 address, IPv6 /64 network, or the text itself when it is neither (a local socket).
    """
    found = _PEER.fullmatch(peer)
    try:
        address = ipaddress.ip_address(found.group(1) if found else peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


class Shares:
    """Places for calls that wait, for all sources and for each.

    Args:
        total: places in all.
        per_source: places one source may hold.
        sentence: what a caller is told when there is none.
    """

    def __init__(
        self,
        total: int,
        per_source: int,
        sentence: str = "too many calls wait here at this moment",
    ) -> None:
        self._total = total
        self._per_source = per_source
        self._sentence = sentence
        self._held: Counter[str] = Counter()
        self._all = 0

    @property
    def held(self) -> int:
        """Places taken now."""
        return self._all

    def take(self, source: str) -> None:
        """Take a place. Raises Exhausted when the source, or all together, hold their share."""
        if self._all >= self._total or self._held[source] >= self._per_source:
            raise Exhausted(
                f"{self._sentence}: wait {in_seconds(RETRY_SECONDS)}, then repeat",
                retry_after=RETRY_SECONDS,
            )
        self._held[source] += 1
        self._all += 1

    def release(self, source: str) -> None:
        """Give a place back that was taken."""
        self._held[source] -= 1
        self._all -= 1
        if not self._held[source]:
            del self._held[source]

    @contextlib.contextmanager
    def place(self, source: str) -> Iterator[None]:
        """A place for the time of the block. Raises Exhausted like `take`."""
        self.take(source)
        try:
            yield
        finally:
            self.release(source)


class StrangerSlot:
    """A place of a call that waits for its caller; `end` takes it away from it."""

    def __init__(self, source: str, end: Callable[[], None]) -> None:
        self.source = source
        self.end = end


class StrangerSlots:
    """Places for strangers who are waited for: who waits longest goes for who comes.

    In a full share, and when all places are taken, the call that has waited longest ends, of the
    source that holds the most: a caller who says at once what it wants is there for a moment only,
    so silence keeps nobody out, from however many addresses it comes.

    Args:
        total: places in all.
        per_source: places one source may hold.
        sentence: what a caller is told when it has to go, or when nobody else can.
    """

    def __init__(
        self,
        total: int,
        per_source: int,
        sentence: str = "too many calls wait here at this moment",
    ) -> None:
        self._total = total
        self._per_source = per_source
        self._sentence = sentence
        self._held: dict[str, dict[StrangerSlot, None]] = {}
        """Every place by source, the oldest first."""
        self._settled: set[StrangerSlot] = set()
        self._count = 0

    def __len__(self) -> int:
        """Places taken now."""
        return self._count

    def enter(self, source: str, end: Callable[[], None]) -> StrangerSlot:
        """A place for a call; whoever has to go for it is ended.

        Raises Exhausted when every place that could be given is one that stays.
        """
        leaving: StrangerSlot | None = None
        if len(self._held.get(source, ())) >= self._per_source:
            leaving = self._oldest(source)
            is_full = True
        else:
            is_full = self._count >= self._total
            if is_full:
                leaving = self._oldest(max(self._held, key=self._waiting))
        if leaving is not None:
            self.leave(leaving)
            leaving.end()
        elif is_full:
            raise self.refusal()
        place = StrangerSlot(source, end)
        self._held.setdefault(source, {})[place] = None
        self._count += 1
        return place

    def keep_for_good(self, place: StrangerSlot) -> None:
        """The call has said what it wants: from now on it goes for nobody."""
        self._settled.add(place)

    def leave(self, place: StrangerSlot) -> None:
        """The call is over, or was ended; said twice, it is over once."""
        mine = self._held.get(place.source, {})
        if place not in mine:
            return
        del mine[place]
        self._settled.discard(place)
        self._count -= 1
        if not mine:
            del self._held[place.source]

    def refusal(self) -> Exhausted:
        """What a caller hears for whom there is no place, or no longer."""
        return Exhausted(
            f"{self._sentence}: wait {in_seconds(RETRY_SECONDS)}, then repeat",
            retry_after=RETRY_SECONDS,
        )

    def _waiting(self, source: str) -> int:
        return sum(place not in self._settled for place in self._held[source])

    def _oldest(self, source: str) -> StrangerSlot | None:
        mine = self._held[source]
        return next((place for place in mine if place not in self._settled), None)


class Rates:
    """Token buckets by key; memory is bounded, the keys unused longest are forgotten first.

    Args:
        per_second: calls that may come in the long run.
        burst: calls that may come at once.
        clock: seconds that only rise (`time.monotonic`).
    """

    def __init__(
        self,
        per_second: float,
        burst: int,
        clock: Callable[[], float],
        *,
        max_keys: int = MAX_SOURCES,
    ) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._max_keys = max_keys
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Keys that are remembered."""
        return len(self._buckets)

    def wait(self, key: str) -> float:
        """Take one call of `key`: 0.0 when it had one left, otherwise the seconds until it has."""
        now = self._clock()
        with self._lock:
            left, since = self._buckets.pop(key, (self._burst, now))
            left = min(self._burst, left + max(0.0, now - since) * self._per_second)
            allowed = left >= 1.0
            self._buckets[key] = (left - 1.0 if allowed else left, now)
            while len(self._buckets) > self._max_keys:
                self._buckets.popitem(last=False)
        if allowed:
            return 0.0
        # Also for a rate of nothing, by which a site closes a way.
        return min(MAX_WAIT_SECONDS, (1.0 - left) / max(self._per_second, 1e-9))


class SourceLimit:
    """How often a source may call without having said who it is, or saying it wrongly.

    A call pays when it is anonymous or its credential was refused; who has identified itself is
    never slowed down by somebody else at the same address.
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float]) -> None:
        self._rates = Rates(per_second, burst, clock)

    def take(self, peer: str) -> None:
        """Take one call of a peer's source. Raises Exhausted with the seconds to wait."""
        wait = self._rates.wait(source_of(peer))
        if wait:
            raise Exhausted(
                "too many calls without an identity from this address: "
                f"wait {in_seconds(wait)}, then repeat",
                retry_after=wait,
            )


@dataclass(frozen=True)
class StrangerLimits:
    """What callers may hold while nobody knows who they are; part of a process' configuration."""

    waiting: Annotated[int, Meta(ge=0)] = field(
        default=512, metadata=doc("calls without a known caller at a time, of all addresses")
    )
    waiting_per_source: Annotated[int, Meta(ge=0)] = field(
        default=32,
        metadata=doc("such calls of one address, or of one IPv6 /64"),
    )
    first_message_seconds: Annotated[float, Meta(gt=0)] = field(
        default=10.0, metadata=doc("time for a call's first message to come, whole")
    )


@dataclass(frozen=True)
class CallerLimits:
    """How much one known caller may ask for; part of a process' configuration."""

    calls: Annotated[int, Meta(ge=0)] = field(
        default=64,
        metadata=doc("calls of one caller in work at a time, for reads, changes, uploads, watches"),
    )
    reads_per_second: Annotated[float, Meta(ge=0)] = field(
        default=10.0, metadata=doc("reads of one caller in the long run")
    )
    read_burst: Annotated[int, Meta(ge=0)] = field(
        default=600, metadata=doc("reads of one caller that may come at once")
    )
    changes_per_second: Annotated[float, Meta(ge=0)] = field(
        default=5.0, metadata=doc("changes and watches of one caller in the long run")
    )
    change_burst: Annotated[int, Meta(ge=0)] = field(
        default=400, metadata=doc("such calls of one caller that may come at once")
    )
    parts_per_second: Annotated[float, Meta(ge=0)] = field(
        default=50.0, metadata=doc("parts of uploads of one caller in the long run")
    )
    part_burst: Annotated[int, Meta(ge=0)] = field(
        default=400, metadata=doc("parts of uploads of one caller that may come at once")
    )
    denials_per_second: Annotated[float, Meta(ge=0)] = field(
        default=2.0,
        metadata=doc("refused calls of one caller with a record each; more are counted"),
    )
    denial_burst: Annotated[int, Meta(ge=0)] = field(
        default=200, metadata=doc("such records that may come at once")
    )


@dataclass(frozen=True)
class Refused:
    """Refusals of one source, or of one known principal, since the table was last emptied.

    Attributes:
        source: from `source_of`, or `others` for those that found no row.
        principal: resource name of a known caller, of whose refusals not each has a record; empty
            for strangers.
        count: refused calls.
        reasons, methods: how many of them had which reason, and were for which method.
    """

    source: str
    principal: str
    count: int
    reasons: Mapping[str, int]
    methods: Mapping[str, int]


@dataclass
class _Row:
    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)


class Refusals:
    """Counts refused calls in a table of fixed size; emptied once a minute into the audit log.

    Args:
        max_rows: sources and principals told apart; all others share one row more.
    """

    def __init__(self, max_rows: int = MAX_COUNTED_SOURCES) -> None:
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], _Row] = {}
        self._others = _Row()

    def count(self, source: str, reason: str, method: str, *, principal: str = "") -> None:
        """Count a refused call of a source, or of a known principal wherever it calls from.

        `reason` and `method` are names of ours; a method that nobody has is `unknown`.
        """
        key = ("" if principal else source, principal)
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                if len(self._rows) < self._max_rows:
                    row = self._rows[key] = _Row()
                else:
                    row = self._others
            row.count += 1
            _add(row.reasons, reason)
            _add(row.methods, method)

    def drain(self) -> list[Refused]:
        """Every row since the last time, in the order in which they began; the table is empty."""
        with self._lock:
            rows, self._rows = self._rows, {}
            others, self._others = self._others, _Row()
        if others.count:
            rows[OTHERS, ""] = others
        return [
            Refused(source, principal, row.count, dict(row.reasons), dict(row.methods))
            for (source, principal), row in rows.items()
        ]


def _add(names: Counter[str], name: str) -> None:
    known = name in names or len(names) < MAX_COUNTED_NAMES
    names[name if known else OTHERS] += 1
