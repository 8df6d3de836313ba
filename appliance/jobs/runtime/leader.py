"""The leader: forks this node's ranks of a job, starts them again when one dies, and stops them.

Rules kept here:
* torch and the kind are imported once, then ranks are forked: a restart costs milliseconds, and
  keys reach ranks by inherited memory;
* a rank that is killed or crashes takes its gang with it; all ranks of all nodes start again, at
  most `MAX_RESTARTS` times, and resume from the newest checkpoint;
* SIGTERM tells the ranks to stop at their next fence; nothing starts again after it;
* the exit code is 0 only when every rank of this node has returned.

Called by `start`. Restarting is torch's elastic agent (torch.distributed.elastic).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousError

from appliance.core.errors import ApplianceError, Internal, Unavailable
from appliance.jobs.runtime.flags import Flags
from appliance.jobs.runtime.kinds import load
from appliance.jobs.runtime.orders import Orders
from appliance.jobs.runtime.ranks import Gang, run_rank
from appliance.jobs.runtime.rendezvous import FixedRendezvous
from appliance.jobs.runtime.reporter import Reporter

MAX_RESTARTS = 3
MONITOR_SECONDS = 0.1
RANK_LOST = "RANK_LOST"
EXIT_SECONDS = 60
"""How long the leader of a node that is done waits for the other nodes."""

logger = logging.getLogger(__name__)


class GangAgent(LocalElasticAgent):  # type: ignore[misc]  # torch's class has no types here
    """torch's elastic agent, which gives up as soon as starting again would not help."""

    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, flags: Flags) -> None:
        super().__init__(
            spec=spec, logs_specs=logs, start_method="fork", exit_barrier_timeout=EXIT_SECONDS
        )
        self._flags = flags

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if self._flags.final:
            self._remaining_restarts = 0
        return result


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
        result = _run(Orders.parse(document), reports, kinds, flags)
    except ApplianceError as error:
        report.error(error.reason, error.message)
        return 1
    except RendezvousError as error:
        logger.exception("the nodes of the job did not meet")
        failure = Unavailable(
            "the nodes of the job cannot reach each other: check the network between them"
            f" ({type(error).__name__})"
        )
        report.error(failure.reason, failure.message)
        return 1
    if result.is_failed():
        if flags.settle():
            report.error(*_crashed(result.failures))
        return 1
    return 0


def _run(orders: Orders, reports: int, kinds: Mapping[str, str], flags: Flags) -> RunResult:
    rendezvous = FixedRendezvous(
        f"{orders.uid}-{orders.epoch}",
        orders.rendezvous,
        orders.node_rank,
        orders.node_count,
        rounds=MAX_RESTARTS + 1,
    )
    gang = Gang(
        orders=orders,
        run=load(orders.kind, kinds),
        reports=reports,
        scratch=Path.cwd(),
        flags=flags,
        rendezvous=rendezvous,
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
    return GangAgent(spec, DefaultLogsSpecs(log_dir=os.devnull), flags).run()


def _crashed(failures: Mapping[int, Any]) -> tuple[str, str]:
    """Reason and sentence. A killed rank is worth another start elsewhere, a bug is not."""
    ended = next(iter(failures.values()), None)
    again = f", also after {MAX_RESTARTS} restarts; the log of this job on its node says where"
    if ended is not None and ended.exitcode < 0:
        return RANK_LOST, f"a rank was killed by {signal.Signals(-ended.exitcode).name}{again}"
    return Internal.reason, f"a rank crashed{again}"
