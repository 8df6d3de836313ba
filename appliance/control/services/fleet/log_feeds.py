"""Lines of works on their way from nodes to whoever reads them; nothing of them is stored.

A feed is the part of one start on one node. Rules kept here:
* a node sends only while somebody reads; all readers of a part share one stream from its node,
  which is ended when the last of them has left;
* a feed holds the newest `FEED_BYTES` in memory, and nobody is waited for: a reader who is slower
  than the node finds that lines are gone, and the node and the other readers do not notice;
* `MAX_FEEDS` at a time; a node fills only the feed that it was asked for, with ranks of its own;
* a node that was away is asked again for what comes after the newest line that is here.

The attacks: a node that sends lines for the work of another, or as ranks that it does not have; one
that sends as fast as it can. Used by `services.work.live_logs` (readers) and `rpc.agents` (nodes);
everything here runs in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.control.services.fleet.connected_agents import ConnectedAgents, NodeFacts
from appliance.core.errors import Exhausted, InvalidInput

FEED_BYTES = 1 << 19
MAX_FEEDS = 128
ASK_AGAIN_SECONDS = 5.0
MAX_LINES = 1 << 14
"""Of one message of a node."""
_LAST_SECOND = 253_402_300_799
"""Of the year 9999, in seconds since 1970: no later time is written as text."""
_LINE_BYTES = 64
"""What a line takes beside its text, about."""


MAX_LINE = 120_000
"""Characters of a line, of up to 4 bytes each; nodes send about as many at most."""


class FeedState(Enum):
    """What is known of the lines of a feed."""

    WAITING = auto()
    """The node has not answered yet."""
    AWAY = auto()
    """The node is not connected."""
    TOO_OLD = auto()
    """The agent of the node sends no lines."""
    SENDING = auto()
    """More lines are on their way."""
    CAUGHT_UP = auto()
    """Nothing more has been written up to now."""
    NOT_KEPT = auto()
    """The node has no log of it."""
    ENDED = auto()
    """These are all lines there will be."""


_SAID = {
    rpc.SendLogRequest.STATE_UNSPECIFIED: FeedState.SENDING,
    rpc.SendLogRequest.STATE_CAUGHT_UP: FeedState.CAUGHT_UP,
    rpc.SendLogRequest.STATE_ENDED: FeedState.ENDED,
    rpc.SendLogRequest.STATE_NOT_KEPT: FeedState.NOT_KEPT,
}
FINAL = frozenset({FeedState.TOO_OLD, FeedState.NOT_KEPT, FeedState.ENDED})
"""States after which no line comes."""


@dataclass(frozen=True)
class Part:
    """The part of a start on one node: which work, under which lease, and which ranks it has."""

    work: str
    epoch: int
    node: str
    first_rank: int
    ranks: int


@dataclass
class Feed:
    """The newest lines of a part, oldest first."""

    part: Part
    state: FeedState = FeedState.WAITING
    newest: int = 0
    """Number of the newest line that came."""
    lines: deque[rpc.LogLine] = field(default_factory=deque)
    readers: set[asyncio.Event] = field(default_factory=set)
    read: str = ""
    """Names the stream that may fill it."""
    stream: asyncio.Event | None = None
    """Of the stream that fills it; set when that is to end."""
    _bytes: int = 0
    _asked: NodeFacts | None = None
    _asked_at: float = 0.0

    def take(self, message: rpc.SendLogRequest) -> None:
        """Take what its node sends. Raises InvalidInput for what cannot be."""
        if len(message.lines) > MAX_LINES:
            raise InvalidInput(f"a node sends at most {MAX_LINES} lines at a time")
        part = self.part
        for line in message.lines:
            rank = line.rank if line.HasField("rank") else part.first_rank
            if not part.first_rank <= rank < part.first_rank + part.ranks:
                raise InvalidInput(f"rank {rank} is not on this node")
            if line.number <= self.newest:
                raise InvalidInput("the numbers of lines rise")
            # Whoever shows it makes a date of it.
            read = line.create_time
            if not (0 <= read.seconds <= _LAST_SECOND and 0 <= read.nanos < 1_000_000_000):
                raise InvalidInput("a line was read at no time that there is")
            self.newest = line.number
            if len(line.text) > MAX_LINE:
                line.text = line.text[:MAX_LINE]
            self.lines.append(line)
            self._bytes += _size(line)
        while self._bytes > FEED_BYTES and len(self.lines) > 1:
            self._bytes -= _size(self.lines.popleft())
        # What a newer agent says beside these is no end.
        self.set_state(_SAID.get(message.state, FeedState.SENDING))
        if message.lines:
            self._wake()

    def after(self, number: int) -> list[rpc.LogLine]:
        """The lines after one, as far as they are here."""
        found = []
        for line in reversed(self.lines):
            if line.number <= number:
                break
            found.append(line)
        return found[::-1]

    def set_state(self, state: FeedState) -> None:
        """Its readers wake when this is news."""
        if state != self.state:
            self.state = state
            self._wake()

    def needs_order(self, facts: NodeFacts, now: float) -> bool:
        """Whether its node is to be asked, now that it is connected."""
        is_new = self._asked is not facts
        if not is_new and (self.stream or now - self._asked_at < ASK_AGAIN_SECONDS):
            return False
        self._asked, self._asked_at = facts, now
        return True

    def end_stream(self) -> None:
        """The stream that fills it ends."""
        if self.stream is not None:
            self.stream.set()
            self.stream = None

    def _wake(self) -> None:
        for reader in self.readers:
            reader.set()


def _size(line: rpc.LogLine) -> int:
    """Bytes of memory, about."""
    return line.ByteSize() + _LINE_BYTES


class LogFeeds:
    """The feeds that somebody reads.

    Args:
        fleet: the connected agents.
        clock: seconds, monotonic.
    """

    def __init__(self, fleet: ConnectedAgents, clock: Callable[[], float]) -> None:
        self._fleet = fleet
        self._clock = clock
        self._feeds: dict[Part, Feed] = {}
        self._reads: dict[str, Feed] = {}

    @contextlib.contextmanager
    def reading(self, parts: Sequence[Part], wake: asyncio.Event) -> Iterator[list[Feed]]:
        """The feeds of these parts, for the time of the block; `wake` is set when one has news.

        Raises Exhausted when too many are read already.
        """
        new = [part for part in parts if part not in self._feeds]
        if len(self._feeds) + len(new) > MAX_FEEDS:
            raise Exhausted(
                f"the output of {MAX_FEEDS} nodes at most is read at a time, and {len(self._feeds)}"
                " are: name fewer ranks, or try again later"
            )
        feeds = [self._feeds.setdefault(part, Feed(part)) for part in parts]
        for feed in feeds:
            feed.readers.add(wake)
        try:
            yield feeds
        finally:
            for feed in feeds:
                feed.readers.discard(wake)
                if not feed.readers:
                    self._close(feed)

    def keep(self, feed: Feed) -> None:
        """See to it that the lines of a feed come, as far as its node can be asked."""
        if feed.state in FINAL:
            return
        facts = self._fleet.facts(feed.part.node)
        if facts is None:
            feed.set_state(FeedState.AWAY)
        elif not facts.sends_logs:
            feed.set_state(FeedState.TOO_OLD)
        elif feed.needs_order(facts, self._clock()):
            self._ask(feed)

    @contextlib.contextmanager
    def receiving(self, node: str, read: str) -> Iterator[tuple[Feed, asyncio.Event] | None]:
        """The feed that a stream of a node fills, and what is set when that stream is to end.

        None when nobody reads it, or not any more.
        """
        feed = self._reads.get(read)
        if feed is None or feed.part.node != node or feed.stream is not None:
            yield None
            return
        over = feed.stream = asyncio.Event()
        try:
            yield feed, over
        finally:
            if feed.stream is over:
                feed.stream = None

    def _ask(self, feed: Feed) -> None:
        """Order the lines that are not here; a stream that an older order began counts no more."""
        feed.end_stream()
        self._reads.pop(feed.read, None)
        feed.read = secrets.token_hex(16)
        self._reads[feed.read] = feed
        feed.set_state(FeedState.WAITING)
        order = rpc.ReadLog(
            work=rpc.WorkEpoch(work=feed.part.work, epoch=feed.part.epoch),
            read=feed.read,
            after=feed.newest,
            max_bytes=FEED_BYTES,
        )
        if not self._fleet.send(feed.part.node, rpc.ConnectResponse(read_log=order)):
            feed.set_state(FeedState.AWAY)

    def _close(self, feed: Feed) -> None:
        del self._feeds[feed.part]
        self._reads.pop(feed.read, None)
        feed.end_stream()
