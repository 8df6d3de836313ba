"""The work on this node: started on order, reported, stopped on order or when its lease is over.

Rules kept here:
* keys are asked for when a work starts, and only then; the control plane gives them for work that
  is leased to this node now;
* every order is carried out in a task of its own: a process that cannot be ended delays what needs
  its place, and nothing else;
* a job that is to save a checkpoint has the time that it is given, and ends then in any case;
* of one piece of work only the newest epoch runs: a newer order ends the older first;
* a start that is called off leaves no process, and no key in one;
* nothing ends because the control plane is away: work goes on until it is done or told to stop;
  what an older epoch writes lies apart from what a newer one reads
  (docs/decisions/0027-fencing-is-not-liveness.md);
* when the agent itself stops, its work ends without a word: what it no longer names starts again;
* what was said is said again on the next stream until the control plane has answered it (`outbox`);
* how far jobs are is said once in `news_seconds`, and not before what was said of it last is
  answered: however far the control plane is behind, one report of each job is on its way.

Called by the agent's streams; runs in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core.errors import ApplianceError, Exhausted, Internal, LeaseLost, Unavailable
from appliance.core.files import FULL_DISK
from appliance.crypto.certs import make_csr, new_private_key
from appliance.machine.identity import Identity
from appliance.node import documents
from appliance.node.documents import NodeEnvironment, ReplicaCredentials
from appliance.node.gateways import GatewayCertificates
from appliance.node.launcher import Launcher
from appliance.node.metrics import NodeMetrics
from appliance.node.outbox import ReportOutbox, Work
from appliance.node.replica_metrics import Source
from appliance.node.reports import JobReports, ReplicaReports
from appliance.node.running import Ended, Launch, Running
from appliance.wire.accepted import AcceptedFile

RELEASE_AGAIN_SECONDS = 0.5
SAME_SECONDS = 5.0
"""Two orders to save that end within this time of each other are one, which is repeated."""
UNSAVED_SECONDS = 5.0
"""What a job that has not saved a checkpoint in its time still has to end by itself."""

Release = Callable[[rpc.ReleaseKeysRequest], Awaitable[rpc.ReleaseKeysResponse]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commands:
    """Programs, with their first arguments, that a job's leader and a replica's worker are."""

    job: Sequence[str]
    replica: Sequence[str]


@dataclass
class _Work:
    """One piece of work under one lease."""

    work: Work
    reports: JobReports | ReplicaReports
    memory_bytes: int
    ranks: Sequence[int] = ()
    after: Sequence[asyncio.Event] = ()
    """What must be over before it may start."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    running: Running | None = None
    starting: asyncio.Task[None] | None = None
    saving: asyncio.TimerHandle | None = None
    """Ends it when it has not saved a checkpoint in time."""
    silent: bool = False

    @property
    def kind(self) -> str:
        return "job" if isinstance(self.reports, JobReports) else "replica"


@dataclass
class Works:
    """All work of this node.

    Args:
        launcher: starts processes.
        commands: what it starts.
        place: of this node.
        release: asks the control plane for keys.
        identity: who this node is now.
        news_seconds: how often it is said how far jobs are, and what they measured.
        clock: seconds, monotonic.
    """

    launcher: Launcher
    commands: Commands
    place: NodeEnvironment
    release: Release
    identity: Callable[[], Identity]
    metrics: NodeMetrics
    news_seconds: float
    clock: Callable[[], float] = time.monotonic
    _entries: dict[Work, _Work] = field(default_factory=dict)
    outbox: ReportOutbox = field(default_factory=ReportOutbox)

    def __post_init__(self) -> None:
        self._news_due = self.clock()
        self._gateways = GatewayCertificates(AcceptedFile(self.place.gateways))

    def running(self) -> list[rpc.WorkEpoch]:
        """Work that this node holds: starting, started, or ended and that not heard yet."""
        held = [*self._entries, *self.outbox.unacknowledged_ends()]
        return [rpc.WorkEpoch(work=work, epoch=epoch) for work, epoch in held]

    def holds(self, work: str, epoch: int) -> bool:
        """Whether a piece of work is starting here, or has started and not ended."""
        return (work, epoch) in self._entries

    def replicas(self) -> list[Source]:
        """Replicas that are ready, and where their numbers are; from any thread."""
        reports = [entry.reports for entry in list(self._entries.values())]
        return [
            Source(each.endpoint, each.work.work.rpartition("/")[2], each.metrics)
            for each in reports
            if isinstance(each, ReplicaReports) and each.metrics
        ]

    def begin(self) -> list[rpc.ReportRequest]:
        """What is said first on a new stream.

        What a control plane must know that may have started meanwhile, and what nobody answered.
        """
        standing: list[rpc.ReportRequest] = []
        for entry in self._entries.values():
            reports = entry.reports
            if isinstance(reports, ReplicaReports) and reports.ready is not None:
                standing.append(reports.ready)
            if isinstance(reports, JobReports) and reports.checkpoint is not None:
                standing.append(rpc.ReportRequest(checkpoint=reports.checkpoint))
        return self.outbox.begin(standing)

    def drain(self) -> list[rpc.ReportRequest]:
        """What is to be said now."""
        said: list[rpc.ReportRequest] = []
        for entry in self._entries.values():
            # That a replica is ready is said on each stream anyway.
            keep = isinstance(entry.reports, JobReports)
            said += self.outbox.send(entry.reports.drain(), keep=keep)
        return said + self._news() + self.outbox.unsent_ends()

    def _news(self) -> list[rpc.ReportRequest]:
        """How far jobs are, when that is due."""
        if self.clock() < self._news_due or self.outbox.has_progress():
            return []
        jobs = [entry.reports for entry in self._entries.values()]
        asked = [reports.news() for reports in jobs if isinstance(reports, JobReports)]
        news = [report for report in asked if report is not None]
        if news:
            self._news_due = self.clock() + self.news_seconds
        return self.outbox.send(news, keep=True)

    def carry_out(self, order: rpc.ConnectResponse) -> None:
        """Carry out one order; what takes time goes on by itself."""
        match order.WhichOneof("order"):
            case "start_job":
                self._start_job(order.start_job)
            case "start_replica":
                self._start_replica(order.start_replica)
            case "stop":
                self._stop(order.stop)
            case "leases":
                self.outbox.forget([(held.work, held.epoch) for held in order.leases.work])
                if order.leases.HasField("gateways"):
                    self._gateways.hear(order.leases.gateways)
            case _:
                logger.warning("an order of an unknown kind was ignored: update this node")

    async def close(self, grace_seconds: float) -> None:
        """End all work, silently."""
        entries = list(self._entries.values())
        for entry in entries:
            self._end_silently(entry, grace_seconds)
        for entry in entries:
            await entry.over.wait()

    def _start_job(self, order: rpc.StartJob) -> None:
        entry = self._admit(order.work, JobReports(order.work), order.memory_bytes)
        if entry is not None:

            async def document() -> dict[str, Any]:
                keys = await self._keys(entry, rpc.ReleaseKeysRequest(work=order.work))
                return documents.job(order, keys, self.place)

            entry.ranks = range(order.rank_base, order.rank_base + order.local_ranks)
            self._launch(entry, self.commands.job, document)

    def _start_replica(self, order: rpc.StartReplica) -> None:
        entry = self._admit(order.work, ReplicaReports(order.work, order.endpoint), 0)
        if entry is not None:

            async def document() -> dict[str, Any]:
                key = new_private_key()
                request = rpc.ReleaseKeysRequest(
                    work=order.work, certificate_request=make_csr(key).decode()
                )
                keys = await self._keys(entry, request)
                identity = self.identity()
                credentials = ReplicaCredentials(
                    key, keys.certificate, identity.ca_pem, identity.cluster
                )
                return documents.replica(order, keys, self.place, credentials)

            self._launch(entry, self.commands.replica, document)

    def _admit(
        self, order: rpc.WorkEpoch, reports: JobReports | ReplicaReports, memory_bytes: int
    ) -> _Work | None:
        """Take an order in; None when it is not to be carried out."""
        work = (order.work, order.epoch)
        epochs = [
            epoch for name, epoch in [*self._entries, *self.outbox.ended()] if name == order.work
        ]
        if any(epoch >= order.epoch for epoch in epochs):
            logger.info("%s epoch %s was ordered before", *work)
            return None
        older = [entry for entry in self._entries.values() if entry.work[0] == order.work]
        for old in older:
            self._end_silently(old, 0)
        entry = _Work(work, reports, memory_bytes, after=[old.over for old in older])
        self._entries[work] = entry
        self.metrics.running.labels(entry.kind).inc()
        return entry

    def _launch(
        self,
        entry: _Work,
        command: Sequence[str],
        document: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        entry.starting = asyncio.create_task(self._begin(entry, command, document))
        entry.starting.add_done_callback(lambda task: self._called_off(entry, task))

    def _called_off(self, entry: _Work, task: asyncio.Task[None]) -> None:
        """A start has ended: when it was called off, nothing of it is left."""
        if task.cancelled():
            self._finish(entry, Ended(1))
        elif error := task.exception():
            logger.error("%s epoch %s could not be started", *entry.work, exc_info=error)
            self._finish(entry, Ended(1))

    async def _begin(
        self,
        entry: _Work,
        command: Sequence[str],
        document: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        name, epoch = entry.work
        for older in entry.after:
            await older.wait()
        try:
            orders = await document()
            hidden = documents.secrets(orders)
            saves = entry.kind == "job"
            launch = Launch(
                name, epoch, command, orders, entry.memory_bytes, hidden, saves, entry.ranks
            )
            entry.running = await self.launcher.start(
                launch, entry.reports.take, lambda how: self._finish(entry, how)
            )
        except LeaseLost as error:
            logger.warning("%s epoch %s is not to be started: %s", name, epoch, error)
            entry.silent = True
            self._finish(entry, Ended(1))
        except (ApplianceError, OSError) as error:
            logger.warning("%s epoch %s cannot be started: %s", name, epoch, error)
            known = error if isinstance(error, ApplianceError) else _not_started(error)
            entry.reports.take({"type": "error", "reason": known.reason, "message": known.message})
            self._finish(entry, Ended(1))
        else:
            logger.info("started %s epoch %s as process %s", name, epoch, entry.running.pid)

    async def _keys(self, entry: _Work, request: rpc.ReleaseKeysRequest) -> rpc.ReleaseKeysResponse:
        """Ask for keys, again while the control plane is away; an order to stop ends it."""
        while True:
            try:
                return await self.release(request)
            except Unavailable as error:
                logger.info("no keys for %s yet: %s", entry.work[0], error)
                # Each question is in the audit log; whoever answers says when to ask again.
                await asyncio.sleep(error.retry_after or RELEASE_AGAIN_SECONDS)

    def _finish(self, entry: _Work, how: Ended) -> None:
        """A work is over and nothing of it is left."""
        if self._entries.pop(entry.work, None) is None:
            return
        entry.over.set()
        if entry.saving is not None:
            entry.saving.cancel()
        outcome = "lost" if entry.silent else entry.reports.outcome(how)
        self.metrics.running.labels(entry.kind).dec()
        self.metrics.ended.labels(entry.kind, outcome).inc()
        logger.info("%s epoch %s ended with code %s", *entry.work, how.code)
        if not entry.silent:
            self.outbox.end(entry.work, [*entry.reports.rest(), entry.reports.ended(how)])

    def _stop(self, order: rpc.StopWork) -> None:
        entry = self._entries.get((order.work.work, order.work.epoch))
        if entry is None:
            return
        if order.save and entry.running is not None:
            self._save(entry, entry.running, order.grace_seconds)
            return
        why = "it had not begun" if order.save else "the node was told to stop this work"
        self._end(entry, order.grace_seconds, why)

    def _save(self, entry: _Work, running: Running, grace_seconds: float) -> None:
        """Let a job save a checkpoint and end.

        The order is repeated with what is left of the time; one that leaves another time is a new
        one, and the newest counts.
        """
        loop = asyncio.get_running_loop()
        end, before = loop.time() + grace_seconds, entry.saving
        if before is None:
            running.save()
        elif before.when() <= loop.time() or abs(before.when() - end) < SAME_SECONDS:
            return
        else:
            before.cancel()
        why = f"none was saved within {grace_seconds:.0f} s"
        entry.saving = loop.call_at(end, self._end, entry, UNSAVED_SECONDS, why)

    def _end(self, entry: _Work, grace_seconds: float, why: str) -> None:
        """End a work; what it says itself about its end counts no more."""
        entry.reports.take({"type": "error", "reason": LeaseLost.reason, "message": why})
        self._stop_or_cancel(entry, grace_seconds)

    def _end_silently(self, entry: _Work, grace_seconds: float) -> None:
        entry.silent = True
        self._stop_or_cancel(entry, grace_seconds)

    def _stop_or_cancel(self, entry: _Work, grace_seconds: float) -> None:
        if entry.running is not None:
            entry.running.stop(grace_seconds)
        elif entry.starting is not None and not entry.starting.cancelling():
            # Once: told again, it would not wait for what is being removed.
            entry.starting.cancel()


def _not_started(error: OSError) -> ApplianceError:
    """Why a work has no process, without a path of this server."""
    if error.errno in FULL_DISK:
        return Exhausted("the disk of the node is full: free some space there, then start it again")
    return Internal(
        f"its process could not be started on the node: {error.strerror or 'no reason given'}"
    )
