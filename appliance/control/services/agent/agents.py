"""The agents' stream: who is connected, what they report, and what they are told.

Rules kept here:
* a node is what its certificate says, never what a message says;
* a report under an epoch that is over changes nothing; its sender is told to stop that work;
* a report that makes no sense, or names what is not there, fails its own work and nothing else.

The attack: a compromised node that reports for the work of others, or floods the state with reports
that cannot be true. Called by `rpc.agents`, one lot at a time for each node.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select, update

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.api.nodes.v1 import node_pb2
from appliance.control.events import NODES, QUEUE, Events
from appliance.control.services.common.caller import Caller
from appliance.control.services.fleet.certificates import EVICTED, Certificates
from appliance.control.services.fleet.connected_agents import (
    AgentSession,
    ConnectedAgents,
    NodeFacts,
)
from appliance.control.services.fleet.leases import Leases
from appliance.control.services.fleet.node_rows import LOST, READY
from appliance.control.services.fleet.run_orders import stop_order
from appliance.control.services.serving.replicas import Replicas
from appliance.control.services.work.run_reports import RunReports
from appliance.control.services.work.runs import Runs
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.addresses import is_host
from appliance.core.errors import (
    ApplianceError,
    FailedPrecondition,
    InvalidInput,
    LeaseLost,
    NotFound,
    Tampered,
    Unauthenticated,
    Unavailable,
)
from appliance.core.needs import MAX_SENTENCE

MAX_DEVICES = 1024
MAX_MEMORY = 1 << 50
MAX_RUNNING = 4096
MAX_KINDS = 64
SEEN_SECONDS = 10.0
"""How often the time a node was last heard of is written down."""

_KINDS = frozenset({"cpu", "cuda"})
_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")
Report = rpc.ReportRequest | rpc.ConnectRequest
"""What happened to work; the second is an agent's of 0.1.0."""

_node = tables.node.c
_logger = logging.getLogger(__name__)


class Agents:
    """Takes in what agents say."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        database: Database,
        leases: Leases,
        fleet: ConnectedAgents,
        runs: Runs,
        reports: RunReports,
        replicas: Replicas,
        certificates: Certificates,
        events: Events,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._leases = leases
        self._fleet = fleet
        self._runs = runs
        self._reports = reports
        self._replicas = replicas
        self._certificates = certificates
        self._events = events
        self._clock = clock
        self._monotonic = monotonic
        self._noted = -SEEN_SECONDS
        self._gateways: rpc.GatewayCertificates | None = None

    @staticmethod
    def facts_of(caller: Caller, first: rpc.ConnectRequest) -> NodeFacts:
        """What the first message of a stream says of the calling node. Raises InvalidInput."""
        if first.WhichOneof("report") != "hello":
            raise InvalidInput("the first message of an agent must be its hello")
        hello = first.hello
        fits = (
            1 <= hello.devices <= MAX_DEVICES
            and hello.device_kind in _KINDS
            and 0 < hello.memory_bytes <= MAX_MEMORY
            and is_host(hello.address)
            and len(hello.agent_version) <= 64
            and _are_capabilities(hello.capabilities)
        )
        if not fits:
            raise InvalidInput(
                "the hello of the agent makes no sense: it names devices (1 or more), their kind "
                "(cpu or cuda), memory in bytes, the address of the node and what it can run"
            )
        return NodeFacts(
            caller.principal.id,
            hello.devices,
            hello.device_kind,
            hello.memory_bytes,
            hello.address,
            hello.agent_version,
            _lacks(hello.capabilities),
            hello.sends_logs,
        )

    def connect(self, caller: Caller, hello: rpc.Hello, session: AgentSession) -> None:
        """An agent is there: note what it is and take up what it still runs."""
        node, facts = caller.principal.id, session.facts
        with self._database.write() as transaction:
            changed = transaction.run(
                update(tables.node)
                .where(_node.id == node, _node.state != EVICTED)
                .values(
                    state=READY,
                    seen_time=self._clock(),
                    facts={
                        "devices": facts.devices,
                        "device_kind": facts.device_kind,
                        "memory_bytes": facts.memory_bytes,
                        "address": facts.address,
                        "agent_version": facts.agent_version,
                        "lacks": facts.lacks,
                    },
                )
            )
            if not changed:
                raise Unauthenticated(f"{caller.principal.name} was evicted; join again")
            # Before the row is: the end of the stream before, if it is heard now, changes nothing.
            self._fleet.enter(session, hello.free_ports)
        running = _running(hello.running)
        self._renew(node, running, sequence=0, is_new=True)
        self._replicas.restart_missing_replicas(node, running)
        self._events.publish(NODES, QUEUE)

    def leave(self, session: AgentSession) -> None:
        """The stream of an agent has ended."""
        if not self._fleet.leave(session):
            return
        node = session.facts.node
        silence = timedelta(seconds=self._fleet.silent_for(node))
        with self._database.write() as transaction:
            if self._fleet.facts(node) is not None:  # It has connected again meanwhile.
                return
            transaction.run(
                update(tables.node)
                .where(_node.id == node, _node.state == READY)
                .values(state=LOST, seen_time=self._clock() - silence)
            )
        self._events.publish(NODES)

    def heartbeat(self, node: str, heartbeat: rpc.AgentHeartbeat) -> None:
        """Note that a node is there and what it holds; it is told which leases it has.

        Nothing is written: a write that waits must not make a node look silent.
        """
        self._fleet.note_heard(node)
        self._renew(node, _running(heartbeat.running), heartbeat.sequence)
        self._fleet.offer(node, heartbeat.free_ports)

    def note_seen(self) -> None:
        """Write down, every ten seconds, who is heard of."""
        now = self._monotonic()
        if now - self._noted < SEEN_SECONDS:
            return
        self._noted = now
        heard = [facts.node for facts in self._fleet.nodes()]
        with self._database.write() as transaction:
            transaction.run(
                update(tables.node).where(_node.id.in_(heard)).values(seen_time=self._clock())
            )

    def note_gateways(self) -> None:
        """Look up which certificates of gateways count; each node hears it with its leases."""
        self._gateways = self._certificates.at_replicas()

    def check_connected(self, node: str) -> None:
        """Raise Unavailable unless the agent of a node has said hello and is still there."""
        if self._fleet.facts(node) is None:
            raise Unavailable("this node is not connected: it says hello first")

    def take(self, node: str, lot: Sequence[Report]) -> None:
        """Take in what happened to pieces of work; it counts when this returns.

        All progress comes first, in one transaction, so that it is there before what it led to; but
        what is said of a work after its end comes after it. The rest is taken in in its order.
        Raises InvalidInput for a message out of order, and what means that the state cannot be
        written; the stream ends then, and the agent says it again.
        """
        self._fleet.note_heard(node)
        progress: list[rpc.JobProgress] = []
        late: list[rpc.JobProgress] = []
        others: list[tuple[str, Report]] = []
        ended: set[tuple[str, int]] = set()
        for report in lot:
            kind = report.WhichOneof("report")
            if kind is None or kind == "hello":
                raise InvalidInput("an agent says hello once, and no message is empty")
            work = getattr(report, kind).work
            if kind == "job_progress":
                is_late = (work.work, work.epoch) in ended
                (late if is_late else progress).append(report.job_progress)
                continue
            others.append((kind, report))
            if kind == "job_ended":
                ended.add((work.work, work.epoch))
        self._progress(node, progress)
        for kind, report in others:
            self._take_one(node, kind, report)
        self._progress(node, late)

    def _progress(self, node: str, reports: Sequence[rpc.JobProgress]) -> None:
        if not reports:
            return
        for work, error in self._reports.progress(node, reports):
            self._failed(node, work, error)

    def _take_one(self, node: str, kind: str, report: Report) -> None:
        try:
            self._dispatch(node, kind, report)
        except (LeaseLost, InvalidInput, Tampered, FailedPrecondition, NotFound) as error:
            self._failed(node, getattr(report, kind).work, error)

    def _failed(self, node: str, work: rpc.WorkEpoch, error: ApplianceError) -> None:
        """A report about a piece of work does not count: it ends, if it is the node's own."""
        if isinstance(error, LeaseLost):
            self._fleet.send(node, stop_order(work.work, work.epoch, 0.0))
            return
        _logger.warning("a report of %s about %s is refused: %s", node, work.work, error.message)
        self._refuse(node, work, error)

    def mark_all_disconnected(self) -> None:
        """At start: nobody is connected yet."""
        with self._database.write() as transaction:
            transaction.run(update(tables.node).where(_node.state == READY).values(state=LOST))

    def disconnect_evicted_nodes(self) -> None:
        """Cut off nodes that were evicted or deleted, with their leases, and end silent streams."""
        self._fleet.end_silent()
        known = {*self._leases.nodes(), *self._fleet.connected()}
        with self._database.read() as state:
            rows = state.all(select(_node.id, _node.state))
        may_call = {row.id for row in rows if row.state != EVICTED}
        for node in sorted((known | {row.id for row in rows}) - may_call):
            self._leases.evict(node)
            self._fleet.drop(node)

    def _dispatch(self, node: str, kind: str, message: Report) -> None:
        match kind:
            case "checkpoint":
                self._reports.checkpoint(node, message.checkpoint)
            case "job_ended":
                self._reports.ended(node, message.job_ended)
            case "replica_changed":
                self._replicas.changed(node, message.replica_changed)

    def _refuse(self, node: str, work: rpc.WorkEpoch, error: ApplianceError) -> None:
        """End the work whose report cannot be right, if it is the node's own."""
        try:
            self._leases.check(work.work, work.epoch, node)
        except LeaseLost:
            self._fleet.send(node, stop_order(work.work, work.epoch, 0.0))
            return
        why = f"what node {node} reported is refused: {error.message}"
        if "/" in work.work:
            self._replicas.lost(work.work, work.epoch, why)
        else:
            self._runs.give_up(work.work, work.epoch, error.reason, why)

    def _renew(
        self, node: str, running: list[tuple[str, int]], sequence: int, *, is_new: bool = False
    ) -> None:
        """Note what runs; tell the node what it holds and what it must stop."""
        for work, epoch in self._leases.renew(node, running, is_new=is_new):
            self._fleet.send(node, stop_order(work, epoch, 0.0))
        held = [rpc.WorkEpoch(work=work, epoch=epoch) for work, epoch in self._leases.of_node(node)]
        leases = rpc.Leases(
            work=held,
            seconds=self._leases.node_lost_seconds,
            sequence=sequence,
            gateways=self._gateways,
        )
        self._fleet.send(node, rpc.ConnectResponse(leases=leases))


def _running(works: Iterable[rpc.WorkEpoch]) -> list[tuple[str, int]]:
    found = [(work.work, work.epoch) for work in works]
    if len(found) > MAX_RUNNING:
        raise InvalidInput(f"a node runs at most {MAX_RUNNING} pieces of work")
    return found


def _are_capabilities(said: Sequence[node_pb2.Capability]) -> bool:
    """Whether a node says what it can run in few and plain words: people read them."""
    return len(said) <= MAX_KINDS and all(
        _KIND.fullmatch(each.kind)
        and len(each.reason) <= MAX_SENTENCE
        and each.reason.isprintable()
        for each in said
    )


def _lacks(said: Sequence[node_pb2.Capability]) -> dict[str, str] | None:
    """Kind of work -> what the node lacks for it; None of an agent that does not say."""
    unsaid = "its agent does not say why"
    found = {each.kind: "" if each.available else each.reason or unsaid for each in said}
    return found or None
