"""The services of data, models, jobs and serving, built on the foundation of the control plane.

Rules kept here: each part gets what it needs as arguments and nothing else; who needs another part
comes after it.

Called by `appliance.control.main`; `appliance.control.bootstrap.parts` asks it for its servicers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

from appliance.control.audit.system import SystemRecords
from appliance.control.background.scheduler import Scheduler
from appliance.control.background.storage_worker import StorageWorker
from appliance.control.bootstrap.foundation import Foundation, People
from appliance.control.rpc.agents import AgentRpc
from appliance.control.rpc.checkpoints import CheckpointRpc
from appliance.control.rpc.datasets import DatasetRpc
from appliance.control.rpc.downloads import DownloadRpc
from appliance.control.rpc.endpoints import EndpointRpc
from appliance.control.rpc.jobs import JobRpc
from appliance.control.rpc.models import ModelRpc
from appliance.control.rpc.pools import CallPool
from appliance.control.rpc.reports import ReportRpc
from appliance.control.rpc.routing import RoutingRpc
from appliance.control.rpc.servicer import Servicer
from appliance.control.rpc.tokenizers import TokenizerRpc
from appliance.control.rpc.tombstones import TombstoneRpc
from appliance.control.rpc.uploads import UploadRpc
from appliance.control.services.agent.agents import Agents
from appliance.control.services.agent.release import Release
from appliance.control.services.data.artifacts import Artifacts
from appliance.control.services.data.datasets import Datasets
from appliance.control.services.data.deletions import Deletions
from appliance.control.services.data.downloads import Downloads
from appliance.control.services.data.erasing import Erasing
from appliance.control.services.data.models import Models
from appliance.control.services.data.reports import Reports
from appliance.control.services.data.storage_tasks import StorageTasks, TaskKind
from appliance.control.services.data.tokenizers import Tokenizers
from appliance.control.services.data.tombstones import Tombstones
from appliance.control.services.data.upload_ids import UploadIds
from appliance.control.services.data.upload_parts import UploadParts
from appliance.control.services.data.upload_tasks import UploadTasks
from appliance.control.services.data.uploads import Uploads
from appliance.control.services.fleet.connected_agents import ConnectedAgents
from appliance.control.services.fleet.enrolment import Enrolment
from appliance.control.services.fleet.leases import Leases
from appliance.control.services.fleet.log_feeds import LogFeeds
from appliance.control.services.fleet.served_clock import ServedClock
from appliance.control.services.serving.connected_gateways import ConnectedGateways
from appliance.control.services.serving.endpoints import Endpoints
from appliance.control.services.serving.gateways import Gateways
from appliance.control.services.serving.replicas import Replicas
from appliance.control.services.serving.routing import Routing
from appliance.control.services.serving.usage import UsageRecords
from appliance.control.services.system.node_work import WorkOnNodes
from appliance.control.services.system.nodes import Nodes
from appliance.control.services.system.sweeper import Sweeper
from appliance.control.services.work.checkpoint_folders import CheckpointFolders
from appliance.control.services.work.checkpoint_tasks import CheckpointTasks
from appliance.control.services.work.checkpoints import Checkpoints
from appliance.control.services.work.drains import Drains
from appliance.control.services.work.job_edits import JobEdits
from appliance.control.services.work.job_logs import JobLogs
from appliance.control.services.work.job_queue import JobQueue
from appliance.control.services.work.jobs import Jobs
from appliance.control.services.work.live_logs import LiveLogs
from appliance.control.services.work.paused_jobs import PausedJobs
from appliance.control.services.work.pauses import Pauses
from appliance.control.services.work.registration import Registration
from appliance.control.services.work.run_recovery import RunRecovery
from appliance.control.services.work.run_reports import RunReports
from appliance.control.services.work.runs import Runs
from appliance.control.services.work.silent_nodes import SilentNodes
from appliance.control.store.objects import open_store
from appliance.core.data_directory import DataDirectory

API: tuple[type[Servicer], ...] = (
    CheckpointRpc,
    DatasetRpc,
    DownloadRpc,
    EndpointRpc,
    JobRpc,
    ModelRpc,
    ReportRpc,
    TokenizerRpc,
    TombstoneRpc,
    UploadRpc,
)
"""What people and applications call."""
MACHINES: tuple[type[Servicer], ...] = (AgentRpc, RoutingRpc)
"""What nodes and gateways call."""


class WorkParts:
    """Artifacts, jobs, replicas, and what drives them.

    Args:
        base: database, keys, policies, events.
        people: their live credentials are part of the gateways' view.
        monotonic: seconds that only rise; silence and pauses are counted on it.
    """

    def __init__(self, base: Foundation, people: People, monotonic: Callable[[], float]) -> None:
        store = self.store = open_store(base.settings.objects_url)
        signer = base.keyring.manifest_sign
        self.tasks = StorageTasks(base.database, base.events, base.clock)
        self.artifacts = Artifacts(base.database, base.keys, store, self.tasks, signer, base.clock)
        self.folders = CheckpointFolders(store, signer)
        records = base.records
        self.usage = UsageRecords(
            base.database, base.opened.log, records, people.credentials, base.clock
        )
        self.served = ServedClock(monotonic)
        self.leases = Leases(
            self.served, node_lost_seconds=base.settings.scheduling.node_lost_seconds
        )
        self.fleet = ConnectedAgents(self.served)
        self.connected_gateways = ConnectedGateways()
        self.feeds = LogFeeds(self.fleet, monotonic)
        self.logs = JobLogs(base.database, base.keys, base.clock)
        self.runs = Runs(
            base.database,
            self.artifacts,
            self.tasks,
            self.leases,
            self.fleet,
            self.logs,
            base.events,
            records,
            base.clock,
            timedelta(seconds=base.settings.scheduling.retry_seconds),
        )
        self.pauses = Pauses(
            base.database,
            self.tasks,
            self.leases,
            self.fleet,
            self.runs,
            base.events,
            base.clock,
            self.served,
        )
        self.checkpoints = CheckpointTasks(
            base.database,
            self.artifacts,
            self.folders,
            self.tasks,
            self.runs,
            base.events,
            base.clock,
            timedelta(days=base.settings.scheduling.checkpoint_days),
        )
        self.reports = RunReports(
            base.database,
            self.tasks,
            self.leases,
            self.runs,
            self.pauses,
            self.logs,
            base.events,
            base.clock,
        )
        ids = UploadIds(DataDirectory(base.settings.data).uploads)
        self.upload_tasks = UploadTasks(
            base.database, self.artifacts, self.tasks, ids, records, base.clock
        )
        self._parts = UploadParts(
            base.database,
            self.artifacts,
            ids,
            base.settings.uploads.project_bytes,
            timedelta(days=base.settings.uploads.days),
            base.clock,
        )
        self.stopping = threading.Event()
        self.deletions = Deletions(base.changes, base.policies, self.artifacts, records, base.clock)
        erasing = Erasing(base.database, store, records, base.clock, monotonic)
        self.storage = self._storage_worker(base, records, erasing, monotonic)
        self.erasures = StorageWorker(
            self.tasks,
            {TaskKind.ERASE_KEYS: erasing.erase_keys},
            base.events,
            check=lambda: None,
            first=TaskKind.ERASE_KEYS,
        )
        """Apart from the object store, which may be away."""
        self.replicas = Replicas(
            base.database, self.leases, self.fleet, base.events, base.clock, monotonic
        )
        self.agents = Agents(
            database=base.database,
            leases=self.leases,
            fleet=self.fleet,
            runs=self.runs,
            reports=self.reports,
            replicas=self.replicas,
            certificates=base.certificates,
            events=base.events,
            clock=base.clock,
            monotonic=monotonic,
        )
        self.queue = JobQueue(base.database, self.runs, base.clock)
        self.scheduler = self._scheduler(base, monotonic)
        self._base = base
        self._monotonic = monotonic
        self._people = people

    def _scheduler(self, base: Foundation, monotonic: Callable[[], float]) -> Scheduler:
        """What drives all of these."""
        return Scheduler(
            artifacts=self.artifacts,
            leases=self.leases,
            fleet=self.fleet,
            agents=self.agents,
            runs=self.runs,
            recovery=RunRecovery(
                base.database,
                self.artifacts,
                self.tasks,
                self.leases,
                base.events,
                base.clock,
            ),
            queue=self.queue,
            drains=Drains(base.database, self.pauses, self.leases, base.events, self.served),
            pauses=self.pauses,
            replicas=self.replicas,
            logs=self.logs,
            silence=SilentNodes(base.database, self.leases, base.events, base.clock),
            checkpoints=self.checkpoints,
            uploads=self.upload_tasks,
            tasks=self.tasks,
            served=self.served,
            sweeper=Sweeper(base.database, base.clock, monotonic),
        )

    def _storage_worker(
        self,
        base: Foundation,
        records: SystemRecords,
        erasing: Erasing,
        monotonic: Callable[[], float],
    ) -> StorageWorker:
        """What does each kind of work with the object store."""
        registration = Registration(
            base.database,
            self.artifacts,
            self.tasks,
            self.runs,
            base.events,
            records,
            base.clock,
            self.stopping,
            monotonic,
        )
        paused = PausedJobs(base.database, self.artifacts, self.folders, self.store, self.pauses)
        return StorageWorker(
            self.tasks,
            {
                TaskKind.REGISTER: registration.register,
                TaskKind.CHECK_CHECKPOINT: self.checkpoints.check,
                TaskKind.DELETE_CHECKPOINT: self.checkpoints.delete,
                TaskKind.DELETE_SUPERSEDED: self.checkpoints.delete_superseded,
                TaskKind.DELETE_FOLDER: erasing.delete_folder,
                TaskKind.DELETE_UNKNOWN: self.artifacts.delete_unknown,
                TaskKind.COMMIT_UPLOAD: self.upload_tasks.commit,
                TaskKind.RESUME_PAUSED: paused.resume,
            },
            base.events,
            check=self.store.check_mounted,
            first=TaskKind.DELETE_UNKNOWN,
        )

    def api(self, pool: CallPool) -> list[Servicer]:
        """One servicer for each of `API`."""
        base, events = self._base, self._base.events
        return [
            CheckpointRpc(
                Checkpoints(base.database, base.changes, self.tasks, events), pool, events
            ),
            DatasetRpc(
                Datasets(base.database, base.changes, self.artifacts, self.deletions, base.clock),
                pool,
                events,
            ),
            DownloadRpc(Downloads(base.database, self.artifacts), pool, events),
            EndpointRpc(
                Endpoints(
                    base.database, base.changes, base.policies, self.replicas, events, base.clock
                ),
                pool,
                events,
            ),
            JobRpc(
                Jobs(
                    base.database,
                    base.changes,
                    base.policies,
                    self.runs,
                    self.pauses,
                    self.logs,
                    events,
                    base.clock,
                ),
                JobEdits(
                    base.database,
                    base.changes,
                    self.artifacts,
                    self.runs,
                    self.leases,
                    events,
                    base.clock,
                ),
                LiveLogs(base.database, self.feeds, events, self._monotonic),
                pool,
                events,
            ),
            ModelRpc(
                Models(base.database, base.changes, self.artifacts, self.deletions, base.clock),
                pool,
                events,
            ),
            ReportRpc(Reports(base.database, self.artifacts, self.deletions), pool, events),
            TokenizerRpc(Tokenizers(base.database, self.deletions), pool, events),
            TombstoneRpc(
                Tombstones(base.database, base.keyring.manifest_sign.verify_key), pool, events
            ),
            UploadRpc(self.uploads(), pool, events),
        ]

    def nodes(self) -> Nodes:
        """The service behind nodes."""
        base = self._base
        on_nodes = WorkOnNodes(self.leases, base.policies)
        return Nodes(base.database, base.changes, base.policies, on_nodes, base.events, base.clock)

    def uploads(self) -> Uploads:
        """The service behind uploads by part."""
        base = self._base
        return Uploads(
            database=base.database,
            changes=base.changes,
            policies=base.policies,
            parts=self._parts,
            tasks=self.tasks,
            upload_tasks=self.upload_tasks,
            credentials=self._people.credentials,
            token_key=base.keyring.token_hmac,
            limits=base.settings.uploads,
            clock=base.clock,
        )

    def machines(self, enrolment: Enrolment, gateways: Gateways, pool: CallPool) -> list[Servicer]:
        """One servicer for each of `MACHINES`."""
        base, events = self._base, self._base.events
        release = Release(
            base.database,
            self.artifacts,
            self.checkpoints,
            self.folders,
            self.store,
            self.leases,
            base.keyring.ca,
        )
        routing = Routing(
            database=base.database,
            policies=base.policies,
            credentials=self._people.credentials,
            artifacts=self.artifacts,
            token_key=base.keyring.token_hmac,
            clock=base.clock,
        )
        return [
            AgentRpc(self.agents, release, enrolment, self.feeds, pool, events),
            RoutingRpc(routing, self.usage, gateways, self.connected_gateways, pool, events),
        ]
