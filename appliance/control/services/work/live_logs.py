"""What the ranks of a job write, line by line, for whoever may read it.

Lines come from the nodes while somebody reads (`services.fleet.log_feeds`); nothing is stored here.
Rules kept here:
* it begins with the newest start, or with the one that is asked for; with `follow` it goes on over
  later starts until the job has ended;
* whatever is not there is said in its place: lines that were left out, a node that is away, one
  whose agent sends no lines, one that keeps none any more;
* so many readers, of one caller and in all; memory does not depend on how many there are;
* a reader is judged again like every stream; whoever may no longer read hears no further line.

The attack: open thousands of streams and take nothing from any. Called by `rpc.jobs`; runs in the
event loop, and reads the state in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_log_pb2
from appliance.api.jobs.v1 import job_service_pb2 as rpc
from appliance.control.events import Events
from appliance.control.services.fleet.log_feeds import FINAL, Feed, FeedState, LogFeeds, Part
from appliance.control.services.work import job_events, job_rows
from appliance.control.store.database import Database
from appliance.core import names
from appliance.core.errors import InvalidInput
from appliance.core.jobs import LEASED, TERMINAL
from appliance.core.names import Name
from appliance.core.problems import Problems
from appliance.wire.admission import Shares

MAX_READERS, MAX_READERS_OF_CALLER = 256, 16
MAX_NAMED = 4096
MESSAGE_BYTES = 1 << 16
MESSAGES = 8
"""From one node, before the others of the job have their turn."""
LOOK_SECONDS = 1.0
"""How often it is looked whether nodes are there."""
STATE_SECONDS = 5.0
"""How often a reader of a start looks whether that is over."""
ANSWER_SECONDS = 10.0
"""A node that does not answer for so long is not waited for by who does not follow."""
OVER_SECONDS = 30.0
"""For so long after a start is over its nodes are waited for."""
TAIL_SECONDS = 3.0
"""A node that writes without a pause has no newest lines; those of this moment are taken."""
_Kind = job_log_pb2.JobLogNotice
Look = Callable[..., Awaitable["JobStart"]]


@dataclass(frozen=True)
class JobStart:
    """A start of a job as its rows say: its parts, none when there was no start."""

    name: str
    epoch: int
    parts: tuple[Part, ...]
    is_over: bool
    ended: bool
    """The job has ended, so that there is no later start."""


@dataclass
class _Cursor:
    """How far one reader is with one feed."""

    feed: Feed
    ranks: frozenset[int]
    number: int
    tail: int | None
    began: float
    said: set[FeedState] = field(default_factory=set)

    @property
    def behind(self) -> bool:
        """Whether there are lines that were not told."""
        return self.number < self.feed.newest

    def news(self, now: float) -> Iterator[rpc.ReadJobLogsResponse]:
        """What there is to tell now, a part of it when it is much: others have a turn too."""
        state = self.feed.state
        if state != FeedState.AWAY:
            self.said.discard(FeedState.AWAY)
        if self.tail is not None and (
            state in (FeedState.CAUGHT_UP, *FINAL)
            or (self.feed.lines and now - self.began >= TAIL_SECONDS)
        ):
            self._skip_to(self.tail)
        if self.tail is None:
            for _ in range(MESSAGES):
                if lines := self.feed.after(self.number):
                    yield from self._told(lines)
        if (notice := _NOTICES.get(state)) and state not in self.said:
            self.said.add(state)
            kind, text = notice
            yield self._notice(kind, text.format(node=self.feed.part.node))

    def _skip_to(self, tail: int) -> None:
        """The newest `tail` lines are all that is wanted of what there is."""
        wanted = [line for line in self.feed.lines if self._wants(line)]
        before = len(wanted) - tail
        if before > 0:
            self.number = wanted[before - 1].number
        elif self.feed.lines:
            self.number = self.feed.lines[0].number - 1
        self.tail = None

    def _told(self, lines: Sequence[agent.LogLine]) -> Iterator[rpc.ReadJobLogsResponse]:
        """Some of the lines, and before them that some are missing."""
        missing = lines[0].number - self.number - 1
        if missing:
            text = f"{missing} lines were left out"
            yield self._notice(_Kind.KIND_LEFT_OUT, text, lines=missing)
        told = rpc.ReadJobLogsResponse()
        size = 0
        for line in lines:
            if size > MESSAGE_BYTES or (line is not lines[0] and line.number > self.number + 1):
                break
            self.number = line.number
            size += len(line.text)
            if self._wants(line):
                told.lines.append(self._line(line))
        if told.lines:
            yield told

    def _line(self, line: agent.LogLine) -> job_log_pb2.JobLogLine:
        part = self.feed.part
        made = job_log_pb2.JobLogLine(
            node=names.node(part.node), epoch=part.epoch, number=line.number, text=line.text
        )
        if line.HasField("rank"):
            made.rank = line.rank
        if line.HasField("create_time"):
            made.create_time.CopyFrom(line.create_time)
        return made

    def _wants(self, line: agent.LogLine) -> bool:
        return not self.ranks or (line.HasField("rank") and line.rank in self.ranks)

    def _notice(
        self, kind: job_log_pb2.JobLogNotice.Kind, text: str, lines: int = 0
    ) -> rpc.ReadJobLogsResponse:
        part = self.feed.part
        return _notice(kind, text, part.epoch, names.node(part.node), lines)

    def is_done(self, now: float, *, follow: bool, is_over: bool) -> bool:
        """Whether nothing is to be waited for."""
        state = self.feed.state
        if self.tail is None and self.behind:
            return False
        if state in FINAL:
            return True
        if follow:
            return is_over and state == FeedState.AWAY
        patient = state in (FeedState.WAITING, FeedState.SENDING)
        return not (patient and now - self.began < ANSWER_SECONDS)


_NOTICES = {
    FeedState.AWAY: (
        _Kind.KIND_NODE_AWAY,
        "node {node} is not connected: its lines go on when it is again",
    ),
    FeedState.TOO_OLD: (
        _Kind.KIND_AGENT_TOO_OLD,
        "the agent of node {node} is of a release that sends no lines: update the node",
    ),
    FeedState.NOT_KEPT: (
        _Kind.KIND_NOT_KEPT,
        "node {node} keeps no output of this start: it keeps that of its last 50 runs",
    ),
}


class LiveLogs:
    """Streams lines.

    Args:
        database: the state.
        feeds: where lines come from.
        events: wake-ups.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        database: Database,
        feeds: LogFeeds,
        events: Events,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._feeds = feeds
        self._events = events
        self._clock = clock
        self._seats = Shares(
            MAX_READERS, MAX_READERS_OF_CALLER, "as many outputs of jobs are read as may at a time"
        )

    def seat(self, caller: str) -> AbstractContextManager[None]:
        """A place for one reader. Raises Exhausted when there is none."""
        return self._seats.place(caller)

    async def read(
        self, request: rpc.ReadJobLogsRequest, look: Look
    ) -> AsyncIterator[rpc.ReadJobLogsResponse]:
        """Lines and notices.

        Args:
            request: which.
            look: runs a function of the state in a thread.

        Raises:
            NotFound: there is no such job.
            InvalidInput: a number cannot be, or there was no such start.
            Exhausted: too many nodes are read.
        """
        name, first = Name.parse(request.name, "job"), _checked(request)
        epoch, is_first = first, True
        with self._events.watch(str(name)) as changes:
            while True:
                start = await look(self._start, name, epoch)
                if start.parts:
                    async for answer in self._read_start(request, start, look, is_first=is_first):
                        yield answer
                    epoch, is_first = start.epoch + 1, False
                    start = await look(self._start, name, epoch)
                if not request.follow or (start.ended and not start.parts):
                    if is_first:
                        text = "no start of the job is known: its state says why"
                        yield _notice(_Kind.KIND_NO_START, text, 0)
                    return
                if not start.parts:
                    await changes.wait(STATE_SECONDS)

    async def _read_start(
        self, request: rpc.ReadJobLogsRequest, start: JobStart, look: Look, *, is_first: bool
    ) -> AsyncIterator[rpc.ReadJobLogsResponse]:
        """All of one start that is to be told."""
        ranks, wake = frozenset(request.ranks), asyncio.Event()
        parts = [part for part in start.parts if not ranks or ranks & set(_ranks(part))]
        if all(place.epoch != start.epoch for place in request.after):
            begins = _notice(_Kind.KIND_START, _where(start), start.epoch)
            begins.notice.ranks = sum(part.ranks for part in start.parts)
            yield begins
        after = {(each.node, each.epoch): each.number for each in request.after}
        tail = request.tail_lines if request.HasField("tail_lines") else None
        with self._feeds.reading(parts, wake) as feeds:
            began = looked = self._clock()
            over_since = began if start.is_over else None
            cursors = [
                _Cursor(
                    feed,
                    ranks,
                    after.get((names.node(feed.part.node), feed.part.epoch), 0),
                    tail if is_first and not after else None,
                    began,
                )
                for feed in feeds
            ]
            while cursors:
                wake.clear()
                now = self._clock()
                for cursor in cursors:
                    self._feeds.keep(cursor.feed)
                    for answer in cursor.news(now):
                        yield answer
                if over_since is None and now - looked >= STATE_SECONDS:
                    looked = now
                    current = await look(self._start, Name.parse(start.name, "job"), start.epoch)
                    over_since = now if current.is_over or current.epoch != start.epoch else None
                if over_since is not None and now - over_since >= OVER_SECONDS:
                    return
                is_over = over_since is not None
                cursors = [
                    each
                    for each in cursors
                    if not each.is_done(now, follow=request.follow, is_over=is_over)
                ]
                if cursors and not any(each.tail is None and each.behind for each in cursors):
                    await _wait(wake, LOOK_SECONDS)

    def _start(self, name: Name, epoch: int) -> JobStart:
        """The start of an epoch, or the next after it; the newest for 0."""
        with self._database.read() as state:
            row = job_rows.by_name(state, name)
            if epoch > row.epoch + 1:
                wrong = f"there was no start {epoch}: the newest is {row.epoch}"
                raise InvalidInput(f"epoch: {wrong}", fields={"epoch": wrong})
            wanted = epoch or job_events.newest_start(state, row.uid) or row.epoch
            event = job_events.start_of(state, row.uid, wanted)
        if event is not None:
            found, shares = event.epoch, event.shares
        else:
            # Of a job that is older than the history.
            found, shares = row.epoch, row.placement if wanted <= row.epoch else []
        parts = [
            Part(row.uid, found, share["node"], share["rank_base"], len(share["devices"]))
            for share in shares
        ]
        is_over = row.epoch != found or row.state not in LEASED
        return JobStart(str(name), found, tuple(parts), is_over, row.state in TERMINAL)


def _checked(request: rpc.ReadJobLogsRequest) -> int:
    """The epoch to begin with, 0 for the newest. Raises InvalidInput."""
    problems = Problems()
    problems.take(request)
    problems.raise_if_any()
    if max(len(request.ranks), len(request.after)) > MAX_NAMED:
        raise InvalidInput(f"a request names at most {MAX_NAMED} ranks or places")
    numbers = [*request.ranks, request.epoch]
    numbers += [number for place in request.after for number in (place.epoch, place.number)]
    if min(numbers) < 0:
        raise InvalidInput("ranks, epochs and numbers of lines are counted from zero")
    return max([place.epoch for place in request.after], default=request.epoch)


def _ranks(part: Part) -> range:
    return range(part.first_rank, part.first_rank + part.ranks)


def _where(start: JobStart) -> str:
    nodes = ", ".join(part.node for part in start.parts[:8])
    more = f" and {len(start.parts) - 8} more" if len(start.parts) > 8 else ""
    return f"start {start.epoch} on {nodes}{more}"


def _notice(
    kind: job_log_pb2.JobLogNotice.Kind, text: str, epoch: int, node: str = "", lines: int = 0
) -> rpc.ReadJobLogsResponse:
    notice = job_log_pb2.JobLogNotice(kind=kind, text=text, epoch=epoch, node=node, lines=lines)
    return rpc.ReadJobLogsResponse(notice=notice)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
