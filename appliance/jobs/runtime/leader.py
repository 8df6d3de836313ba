"""The leader: forks this node's ranks of a job, starts them again when one dies, and stops them.

Rules kept here:
* torch and the kind are imported once, then ranks are forked: a restart costs milliseconds, and
  keys reach ranks by inherited memory;
* a rank that is killed, crashes or hangs takes its gang with it; all ranks of all nodes start
  again, at most `MAX_RESTARTS` times, and resume from the newest checkpoint;
* ranks that must end are killed: they hold nothing that a checkpoint does not, and one that is
  stopped hears nothing else;
* SIGTERM tells the ranks to stop at their next fence; nothing starts again after it;
* SIGUSR1 tells the ranks to save a checkpoint and end. Whoever starts this process blocks that
  signal (`node.running`), so that one which comes early waits until it can be heard;
* the exit code is 0 only when every rank of this node has returned, with all its work done.

Called by `start`. Restarting is torch's elastic agent (torch.distributed.elastic).
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousError

from appliance.core.errors import ApplianceError, Internal, Paused, Unavailable
from appliance.core.process import signal_name
from appliance.core.process_tree import kill_children
from appliance.core.values import given
from appliance.jobs.runtime.crashes import Crash, Crashes
from appliance.jobs.runtime.flags import Flags
from appliance.jobs.runtime.kinds import load
from appliance.jobs.runtime.orders import JobOrders
from appliance.jobs.runtime.ranks import Gang, run_rank
from appliance.jobs.runtime.rendezvous import FixedRendezvous
from appliance.jobs.runtime.reporter import Reporter
from appliance.jobs.runtime.watching import GangWatch

MAX_RESTARTS = 3
MONITOR_SECONDS = 0.1
RANK_LOST = "RANK_LOST"
TORCH_PROCESSES = "torch.distributed.elastic.multiprocessing.api"
OTHERS_SECONDS = 3.0
EXIT_SECONDS = 60
"""How long the leader of a node that is done waits for the other nodes."""

logger = logging.getLogger(__name__)


class GangAgent(LocalElasticAgent):  # type: ignore[misc]  # torch's class has no types here
    """torch's elastic agent, with a watch over its ranks.

    It gives up as soon as starting again would not help. `killed` holds the ranks of this node that
    a signal has ended in the last round, and the signal.
    """

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, gang: Gang) -> None:
        super().__init__(
            spec=spec, logs_specs=logs, start_method="fork", exit_barrier_timeout=EXIT_SECONDS
        )
        self._gang = gang
        self.killed: dict[int, int] = {}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._gang.watch.begin()
        self._gang.flags.begin_round()
        self.killed = {}
        started: dict[int, Any] = super()._start_workers(worker_group)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        processes = self._pcontext.pids()
        watch, base = self._gang.watch, self._gang.orders.rank_base
        watch.check_ranks()
        self._note({base + local: _end_of(process) for local, process in processes.items()})
        if watch.cause:
            # Before torch asks them to end, and waits half a minute for one that is stopped.
            kill_children(list(processes.values()))
        # torch does not count the rounds in which this node follows another.
        left = MAX_RESTARTS + 1 - self._gang.rendezvous.round
        self._remaining_restarts: int = min(self._remaining_restarts, left)
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
            self._note(codes)
        if self._gang.flags.final:
            self._remaining_restarts = 0
        return result

    def _note(self, ends: Mapping[int, int]) -> None:
        """Ranks that have ended: exit codes, or minus the signals that killed them; 0: not at all.

        Only until there is a cause: what follows from it says nothing more.
        """
        bad = {rank: code for rank, code in ends.items() if code}
        if not bad or self._gang.watch.cause:
            return
        self.killed = {rank: -code for rank, code in bad.items() if code < 0}
        for rank, number in self.killed.items():
            logger.error("rank %s was killed by %s", rank, signal_name(number))
        self._gang.watch.ended(bad.values())

    def _shutdown(
        self,
        death_sig: signal.Signals = signal.SIGKILL,  # noqa: ARG002 - torch's signature
        timeout: int = 30,
    ) -> None:
        super()._shutdown(signal.SIGKILL, timeout)


def lead(
    document: bytes, reports: int, kinds: Mapping[str, str], outputs: Sequence[int] = ()
) -> int:
    """Run this node's ranks to their end; returns the exit code of the leader.

    Args:
        document: the orders.
        reports: descriptor of the reports pipe.
        kinds: kind of job -> `module:function`.
        outputs: descriptor of each rank for what it writes; none: they write where this one does.
    """
    report = Reporter(reports, rank=0)
    flags = Flags()
    signal.signal(signal.SIGTERM, lambda *_: flags.stop())
    signal.signal(signal.SIGUSR1, lambda *_: flags.save())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # torch would take SIGTERM over, and end the ranks instead of telling them.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    try:
        failure = _run(JobOrders.parse(document), reports, kinds, flags, outputs)
    except ApplianceError as error:
        report.error(error.reason, error.message)
        return 1
    if failure is None and flags.paused_at:
        failure = Paused.reason, Paused.at(flags.paused_at).message
    if failure is None:
        return 0
    if flags.forbid_restart():
        report.error(*failure)
    return 1


def _run(
    orders: JobOrders,
    reports: int,
    kinds: Mapping[str, str],
    flags: Flags,
    outputs: Sequence[int],
) -> tuple[str, str] | None:
    """Run the gang to its end; reason and sentence of a bad one."""
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
        outputs=outputs,
        scratch=Path.cwd(),
        flags=flags,
        rendezvous=rendezvous,
        watch=watch,
        leader=os.getpid(),
        crashes=Crashes(orders.local_ranks),
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
    # Its traces of processes that have ended push our own lines out of the end of the log.
    logging.getLogger(TORCH_PROCESSES).setLevel(logging.CRITICAL)
    agent = GangAgent(spec, DefaultLogsSpecs(log_dir=os.devnull), gang)
    try:
        if not agent.run().is_failed():
            return None
    except (RendezvousError, DistError) as error:
        logger.exception("the nodes of the job did not meet, or lost each other")
        if orders.node_rank > 0:
            # The first node's leader has ended, for a reason that it says itself.
            _let_others_speak(flags)
        before = f"; before that, {watch.cause}" if watch.cause else ""
        raise Unavailable(
            "the nodes of the job cannot reach each other: check the network between them"
            f" ({type(error).__name__}){before}"
        ) from error
    stall = watch.cause if watch.stalled else ""
    first = gang.crashes.first(rendezvous.round)
    peer = first is not None and first[1].peer
    if peer and not agent.killed and not stall and orders.node_count > 1:
        _let_others_speak(flags)
    crashed = (orders.rank_base + first[0], first[1]) if first is not None else None
    return why(agent.killed, crashed, rendezvous.round - 1, stall)


def _stall_seconds(orders: JobOrders) -> int | None:
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


def _let_others_speak(flags: Flags) -> None:
    """The rank that is missing was another node's: what that node says is the job's reason."""
    end = time.monotonic() + OTHERS_SECONDS
    while time.monotonic() < end and not flags.stopping:
        time.sleep(MONITOR_SECONDS)


def why(
    killed: Mapping[int, int], crashed: tuple[int, Crash] | None, restarts: int, stall: str = ""
) -> tuple[str, str]:
    """Reason and sentence of a gang's end. Pure.

    A rank that was killed, or lost, is worth another start elsewhere; a bug is not.

    Args:
        killed: ranks of this node that a signal has ended, and the signal.
        crashed: the first rank of this node that said that it crashed, and how.
        restarts: how often the ranks were started again before.
        stall: the sentence that says which rank has hung; empty when none has.
    """
    again = f", also after {restarts} restart{'s' if restarts > 1 else ''}" if restarts else ""
    if stall:
        return RANK_LOST, f"{stall}{again}"
    if killed:
        rank, number = min(killed.items())
        memory = ", as the kernel does when memory runs out" if number == signal.SIGKILL else ""
        return RANK_LOST, f"rank {rank} was killed by {signal_name(number)}{memory}{again}"
    if crashed is None:
        return Internal.reason, f"a rank ended without a word{again}"
    rank, crash = crashed
    return RANK_LOST if crash.peer else Internal.reason, f"rank {rank} {crash.words}{again}"
