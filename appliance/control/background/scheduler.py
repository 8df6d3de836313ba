"""The scheduler: what is queued or lost gets devices, what is lost on its node starts elsewhere.

One pass looks at everything again, so a wake-up that is lost costs a second and nothing else. Rules
kept here:
* all ranks of a job are placed, or none; the oldest job first, but a smaller one may pass a job
  that does not fit now; replicas before jobs, because somebody waits for their answers;
* only connected nodes get work that are not cordoned, only kinds of work that they can run, and
  only what no lease holds is free;
* a pass reads and writes rows, and never the object store;
* a pass that fails is logged and repeated; it never takes the control plane down.

The decisions are pure and elsewhere (`core.placement`, `core.jobs`, `services.fleet.leases`); what
they cause is in `services.work.runs` and `services.serving.replicas`. Called by the composition
root, which runs one for each appliance.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor

from appliance.control.events import NODES, QUEUE, Events
from appliance.control.services.agent.agents import Agents
from appliance.control.services.data.artifacts import Artifacts
from appliance.control.services.data.storage_tasks import StorageTasks
from appliance.control.services.data.upload_tasks import UploadTasks
from appliance.control.services.fleet.connected_agents import ConnectedAgents
from appliance.control.services.fleet.leases import SAID_SECONDS, Leases
from appliance.control.services.fleet.served_clock import ServedClock
from appliance.control.services.serving.replicas import Replicas
from appliance.control.services.system.sweeper import Sweeper
from appliance.control.services.work.checkpoint_tasks import CheckpointTasks
from appliance.control.services.work.drains import Drains
from appliance.control.services.work.job_logs import JobLogs
from appliance.control.services.work.job_queue import JobQueue
from appliance.control.services.work.pauses import Pauses
from appliance.control.services.work.run_recovery import RunRecovery
from appliance.control.services.work.runs import Runs
from appliance.control.services.work.silent_nodes import SilentNodes
from appliance.core.errors import Exhausted
from appliance.core.placement import place

PASS_SECONDS = 1.0
_logger = logging.getLogger(__name__)


class Scheduler:
    """Runs passes until it is cancelled."""

    def __init__(  # noqa: PLR0913  # the parts of the control plane it drives
        self,
        artifacts: Artifacts,
        leases: Leases,
        fleet: ConnectedAgents,
        agents: Agents,
        runs: Runs,
        recovery: RunRecovery,
        queue: JobQueue,
        drains: Drains,
        pauses: Pauses,
        replicas: Replicas,
        logs: JobLogs,
        silence: SilentNodes,
        checkpoints: CheckpointTasks,
        uploads: UploadTasks,
        tasks: StorageTasks,
        served: ServedClock,
        sweeper: Sweeper,
    ) -> None:
        self._artifacts = artifacts
        self._leases = leases
        self._fleet = fleet
        self._agents = agents
        self._runs = runs
        self._recovery = recovery
        self._queue = queue
        self._drains = drains
        self._pauses = pauses
        self._replicas = replicas
        self._logs = logs
        self._silence = silence
        self._checkpoints = checkpoints
        self._uploads = uploads
        self._tasks = tasks
        self._served = served
        self._sweeper = sweeper
        self._cut_off = False

    def recover(self) -> None:
        """At start, before any agent is let in: take up what was under way, drop what was cut."""
        self._agents.mark_all_disconnected()
        self._tasks.unlock_all()
        self._recovery.drop_stale_versions()
        self._artifacts.drop_uploads()
        self._uploads.recover()
        self._replicas.restore_leases()
        self._silence.restore()
        self._recovery.restore_leases()

    def run_pass(self) -> None:
        """One pass."""
        self._served.tick()
        self._agents.disconnect_evicted_nodes()
        self._agents.note_seen()
        self._agents.note_gateways()
        for lost in self._leases.lost():
            if "/" in lost.work:
                self._replicas.lost(lost.work, lost.epoch, lost.why)
            else:
                self._runs.lost(lost.work, lost.epoch, lost.why)
        self._drains.run_pass()
        self._pauses.run_pass()
        self._say_silent()
        self._replicas.reconcile_all()
        self._place_replicas()
        self._place_jobs()
        # First what needs no space in the object store, and makes some.
        self._sweeper.sweep_when_due()
        self._uploads.sweep()
        self._logs.sweep()
        self._checkpoints.sweep()

    async def run(self, pool: Executor, events: Events) -> None:
        """Pass after pass: when something changed, and every second."""
        loop = asyncio.get_running_loop()
        with events.watch(QUEUE, NODES) as watch:
            while True:
                try:
                    await loop.run_in_executor(pool, self.run_pass)
                except Exception:
                    # Whatever it was, the next pass reads everything anew.
                    _logger.exception("a pass of the scheduler failed; the next one follows")
                await watch.wait(PASS_SECONDS)

    def _say_silent(self) -> None:
        """Say with each job which of its nodes is not heard of, and once that most are not."""
        cut_off = self._leases.is_cut_off()
        if cut_off != self._cut_off:
            self._cut_off = cut_off
            if cut_off:
                _logger.error(
                    "more than half of the nodes are silent: none is given up; look at the network"
                    " of this server"
                )
            else:
                _logger.warning("more than half of the nodes are heard of again")
        self._silence.report(self._leases.silent(SAID_SECONDS))

    def _place_replicas(self) -> None:
        for wanted in self._replicas.wanted():
            try:
                placement = self._replicas.choose(wanted, self._runs.capacities())
            except Exhausted as error:
                self._replicas.wait(wanted, error.message)
                continue
            self._replicas.start(wanted, placement)

    def _place_jobs(self) -> None:
        for row, demand in self._queue.waiting():
            try:
                placements = place(demand, self._runs.capacities())
            except Exhausted as error:
                self._runs.wait(row, error.message)
                continue
            self._runs.start(row, demand, placements)
