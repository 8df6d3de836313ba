"""The leader: forks this node's ranks of a job, starts them again when one dies, and stops them.

Rules kept here:
* torch and the kind are imported once, then ranks are forked: a restart costs milliseconds, and
  keys reach ranks by inherited memory;
* a rank that is killed, crashes or hangs takes its gang with it; all ranks of all nodes start
  again, at most `MAX_RESTARTS` times, and resume from the newest checkpoint;
* ranks that must end are killed: they hold nothing that a checkpoint does not, and one that is
  stopped hears nothing else;
* SIGTERM tells the ranks to stop at their next fence; nothing starts again after it;
* the exit code is 0 only when every rank of this node has returned.

Called by `start`. Restarting is torch's elastic agent (torch.distributed.elastic).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousError

from appliance.core.errors import ApplianceError, Internal, Unavailable
from appliance.core.values import given
from appliance.jobs.runtime.flags import Flags
from appliance.jobs.runtime.kinds import load
from appliance.jobs.runtime.orders import Orders
from appliance.jobs.runtime.ranks import Gang, run_rank
from appliance.jobs.runtime.rendezvous import FixedRendezvous
from appliance.jobs.runtime.reporter import Reporter
from appliance.jobs.runtime.watching import GangWatch

MAX_RESTARTS = 3
MONITOR_SECONDS = 0.1
RANK_LOST = "RANK_LOST"
EXIT_SECONDS = 60
"""How long the leader of a node that is done waits for the other nodes."""

logger = logging.getLogger(__name__)


class GangAgent(LocalElasticAgent):  # type: ignore[misc]  # torch's class has no types here
    """torch's elastic agent, with a watch over its ranks.

    It gives up as soon as starting again would not help.
    """

    def __init__(
        self, spec: WorkerSpec, logs: DefaultLogsSpecs, flags: Flags, watch: GangWatch
    ) -> None:
        super().__init__(
            spec=spec, logs_specs=logs, start_method="fork", exit_barrier_timeout=EXIT_SECONDS
        )
        self._flags = flags
        self._watch = watch

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._watch.begin()
        started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ranks = list(self._pcontext.pids().values())
        self._watch.look()
        self._watch.ended(filter(None, map(_end_of, ranks)))
        if self._watch.cause:
            # Before torch asks them to end, and waits half a minute for one that is stopped.
            _kill(ranks)
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            self._watch.ended(failure.exitcode for failure in result.failures.values())
        if self._flags.final:
            self._remaining_restarts = 0
        return result

    def _shutdown(
        self,
        death_sig: signal.Signals = signal.SIGKILL,  # noqa: ARG002 - torch's signature
        timeout: int = 30,
    ) -> None:
        super()._shutdown(signal.SIGKILL, timeout)


def lead(document: bytes, reports: int, kinds: Mapping[str, str]) -> int:
    """Run this node's ranks to their end; returns the exit code of the leader.

    Args:
        document: the orders.
        reports: descriptor of the reports pipe.
        kinds: kind of job -> `module:function`.
    """
    report = Reporter(reports, rank=0)
    flags = Flags()
    signal.signal(signal.SIGTERM, lambda *_: flags.stop())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # torch would take SIGTERM over, and end the ranks instead of telling them.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    try:
        result, watch = _run(Orders.parse(document), reports, kinds, flags)
    except ApplianceError as error:
        report.error(error.reason, error.message)
        return 1
    if result.is_failed():
        if flags.settle():
            report.error(*_why(watch))
        return 1
    return 0


def _run(
    orders: Orders, reports: int, kinds: Mapping[str, str], flags: Flags
) -> tuple[RunResult, GangWatch]:
    rendezvous = FixedRendezvous(
        f"{orders.uid}-{orders.epoch}",
        orders.rendezvous,
        orders.node_rank,
        orders.node_count,
        rounds=MAX_RESTARTS + 1,
    )
    watch = GangWatch(orders, _stall_seconds(orders), rendezvous, Reporter(reports, rank=0))
    gang = Gang(
        orders=orders,
        run=load(orders.kind, kinds),
        reports=reports,
        scratch=Path.cwd(),
        flags=flags,
        rendezvous=rendezvous,
        watch=watch,
        leader=os.getpid(),
    )
    spec = WorkerSpec(
        role="rank",
        local_world_size=orders.local_ranks,
        entrypoint=run_rank,
        args=(gang,),
        rdzv_handler=rendezvous,
        max_restarts=MAX_RESTARTS,
        monitor_interval=MONITOR_SECONDS,
    )
    try:
        return GangAgent(spec, DefaultLogsSpecs(log_dir=os.devnull), flags, watch).run(), watch
    except (RendezvousError, DistError) as error:
        logger.exception("the nodes of the job did not meet, or lost each other")
        before = f"; before that, {watch.cause}" if watch.cause else ""
        raise Unavailable(
            "the nodes of the job cannot reach each other: check the network between them"
            f" ({type(error).__name__}){before}"
        ) from error


def _stall_seconds(orders: Orders) -> int | None:
    """The limit of the kinds that have one: those with several ranks."""
    known = "stall_seconds" in orders.spec.DESCRIPTOR.fields_by_name
    return int(given(orders.spec, "stall_seconds")) if known else None


def _end_of(rank: int) -> int:
    """How a child process has ended: its exit code, or minus the signal that killed it.

    0 when it has not ended. It is not collected.
    """
    try:
        found = os.waitid(os.P_PID, rank, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    if found is None:
        return 0
    return int(found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)


def _kill(ranks: Sequence[int]) -> None:
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)


def _why(watch: GangWatch) -> tuple[str, str]:
    """Reason and sentence. A rank that was lost is worth another start elsewhere, a bug is not."""
    again = f"{watch.cause}, also after {MAX_RESTARTS} restarts; the log of this job on its node"
    if watch.lost:
        return RANK_LOST, f"{again} says more"
    return Internal.reason, f"{again} says where"
