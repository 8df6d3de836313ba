"""Composition root of the control plane: builds every part, once, and serves.

Rules kept here:
* one gate for each listener, and nothing is served beside what it guards but health;
* the server does not start when an RPC has no access rule;
* what the listeners show lives in memory alone (`own_certificate`).

Called by `python -m appliance.control` and by tests that need a whole control plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry

from appliance.control.audit.checking import AuditMetrics, Checking
from appliance.control.audit.disk_space import DiskSpaceWatch
from appliance.control.auth import cross_check
from appliance.control.bootstrap import parts
from appliance.control.bootstrap.foundation import Clock, Foundation, People
from appliance.control.bootstrap.opening import Opened, open_data
from appliance.control.bootstrap.row_checks import RowChecks, RowMetrics
from appliance.control.bootstrap.work_parts import WorkParts
from appliance.control.config import ControlConfig
from appliance.control.door.access import Access
from appliance.control.door.gate import Gate, GateLimits
from appliance.control.door.identify import ByCertificate, ByToken, Identify
from appliance.control.door.journal import RECORD_SECONDS, Journal
from appliance.control.door.resource_scopes import ResourceScopes
from appliance.control.metrics.expiry_metrics import ExpiryMetrics
from appliance.control.metrics.task_metrics import TaskMetrics
from appliance.control.metrics.work_metrics import WorkMetrics
from appliance.control.rpc.pools import TASK_THREADS, CallPool
from appliance.control.rpc.servicer import Servicer, descriptor_of, service_of
from appliance.core.errors import ApplianceError
from appliance.wire.admission import Rates, Refusals, SourceLimit
from appliance.wire.budgets import Admission
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import AccessRule, rules_of
from appliance.wire.server import Listener, Server
from appliance.wire.tls import swapped_server_credentials

logger = logging.getLogger(__name__)

DOOR_THREADS = 4
"""Threads that identify and decide: each such step is some look-ups in the database."""
HEALTH_SECONDS = 0.25


class ControlPlane:
    """A whole control plane; make it with `build` inside a running event loop."""

    def __init__(self, opened: Opened, settings: ControlConfig, clock: Clock) -> None:
        self.base = Foundation(opened, settings, clock)
        self.people = People(self.base)
        self._pool = CallPool(settings.threads)
        # Its own: whoever fills the others is still told quickly that it must wait.
        self._door_pool = ThreadPoolExecutor(DOOR_THREADS, thread_name_prefix="door")
        registry = CollectorRegistry()
        self._metrics = CallMetrics(registry)
        self._limits = _limits(settings)
        self._journal = Journal(opened.log)
        self.server = Server(
            metrics_address=settings.listen.metrics,
            metrics_setting="listen.metrics",
            registry=registry,
        )
        # A policy that cannot be made stops the start, not the first call.
        self.base.policies.current()
        self.work = WorkParts(self.base, self.people, time.monotonic)
        registry.register(TaskMetrics(self.work.tasks))
        registry.register(WorkMetrics(self.base.database, self.work.leases, clock))
        # Before an agent can call: what was under way when the last process ended.
        self.work.scheduler.recover()
        records = self.base.records
        self._checking = Checking(opened.log, records)
        self._room = DiskSpaceWatch(opened.log.folder, settings.audit.warning_bytes, records)
        registry.register(AuditMetrics(opened.log, self._checking))
        self._row_checks = RowChecks(opened.database, records)
        registry.register(RowMetrics(opened.database))
        registry.register(ExpiryMetrics(self.base.expirations, clock))
        people, machines = self._identities()
        self.api_port = self.server.bind(
            self._listener(
                "api",
                people,
                parts.api(self.base, self.people, self.work, self._pool),
            )
        )
        self.machines_port = self.server.bind(
            self._listener(
                "machines",
                machines,
                parts.machines(self.base, self.work, self._pool),
            )
        )

    @classmethod
    def build(
        cls,
        settings: ControlConfig,
        clock: Clock,
        first: Callable[[Opened], None] = lambda _: None,
    ) -> ControlPlane:
        """Open the data directory, do what comes `first`, build everything, take the ports.

        Raises FailedPrecondition, Tampered or RuleMissing with a sentence that says what to do;
        then nothing is left open.
        """
        opened = open_data(settings, clock)
        try:
            first(opened)
            return cls(opened, settings, clock)
        except BaseException:
            opened.close()
            raise

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then let running calls end.

        Raises what ended one of the tasks beside the server: without it the process would go on
        and leave jobs, records or health alone.
        """
        logger.info(
            "serving", extra={"api_port": self.api_port, "machines_port": self.machines_port}
        )
        tasks = [
            asyncio.create_task(self.work.scheduler.run(self._pool.passes, self.base.events)),
            asyncio.create_task(self.work.storage.run(self._pool.tasks, TASK_THREADS)),
            asyncio.create_task(self.work.erasures.run(self._pool.erasures, 1)),
            asyncio.create_task(self._checking.run()),
            asyncio.create_task(self.base.records.run()),
            asyncio.create_task(self._row_checks.run()),
            asyncio.create_task(self._record_refusals()),
            asyncio.create_task(self._watch_room()),
            asyncio.create_task(self.tell_health()),
            asyncio.create_task(
                cross_check.run(self.base.policies, self._pool.passes, self.base.events)
            ),
        ]
        serving = asyncio.create_task(self.server.run())
        try:
            await asyncio.wait({serving, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.server.request_stop()
            await asyncio.wait({serving})
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(serving, *tasks, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def tell_health(self) -> None:
        """Say in health whether calls can be recorded and decided, and so answered.

        Until cancelled.
        """
        serving: bool | None = None
        while True:
            trouble = self.base.opened.log.trouble or self.base.policies.trouble
            if serving is not (not trouble):
                serving = not trouble
                await self.server.set_serving(serving=serving)
                if trouble:
                    logger.critical("not serving: %s", trouble)
            await asyncio.sleep(HEALTH_SECONDS)

    async def _record_refusals(self) -> None:
        """Once a minute, and when the server has stopped."""
        try:
            while True:
                await asyncio.sleep(RECORD_SECONDS)
                await self.record_refusals()
                await asyncio.to_thread(self._note_usage)
        finally:
            await self.record_refusals()
            await asyncio.to_thread(self._note_usage)

    async def _watch_room(self) -> None:
        """At once, and once a minute."""
        while True:
            with contextlib.suppress(OSError):  # a folder that is gone closes the log
                await asyncio.to_thread(self._room.check)
            await asyncio.sleep(RECORD_SECONDS)

    async def record_refusals(self) -> None:
        """Write what was refused and counted so far into the audit log."""
        await self._journal.counted(self._limits.refusals.drain())

    def _note_usage(self) -> None:
        """A start reads more of the audit log when this cannot be done; nothing else changes."""
        try:
            self.work.usage.note()
        except ApplianceError as error:
            logger.warning("what gateways reported could not be noted: %s", error)

    async def close(self) -> None:
        """Close what `build` opened, after the server has stopped."""
        self.work.stopping.set()
        # Before state and audit log are closed: what is in work is finished.
        self._pool.shutdown()
        self._door_pool.shutdown()
        # Waits for the passwords in work.
        await asyncio.to_thread(self.people.hasher.close)
        self.base.opened.close()

    def _identities(self) -> tuple[Identify, Identify]:
        """Who calls: by token on the API, by certificate on the machine listener."""
        ring, base = self.base.keyring, self.base
        by_token = ByToken(self.people.credentials, base.database, ring.token_hmac, base.recovery)
        by_certificate = ByCertificate(ring.cluster_id, base.certificates, base.clock)
        return by_token, by_certificate

    def _listener(
        self,
        name: str,
        identify: Identify,
        servicers: Sequence[Servicer],
    ) -> Listener:
        """One address: its credentials, its gate, its services."""
        authority, settings = self.base.keyring.ca.certificate_pem, self.base.settings
        served: Mapping[str, AccessRule] = rules_of(
            [descriptor_of(type(each)) for each in servicers]
        )
        gate = Gate(
            served,
            identify=identify,
            access=Access(self.base.policies, ResourceScopes(self.base.database), self.base.clock),
            journal=self._journal,
            limits=self._limits,
            pool=self._door_pool,
            # Of this listener alone: who floods one stops nobody at the other.
            admission=Admission(settings.strangers, settings.callers),
            metrics=self._metrics,
        )
        return Listener(
            address=getattr(settings.listen, name),
            setting=f"listen.{name}",
            credentials=swapped_server_credentials(
                self.base.own_certificate.current, authority, require_client=name == "machines"
            ),
            interceptors=[gate],
            services=[service_of(each) for each in servicers],
            rules=served,
        )


def _limits(settings: ControlConfig) -> GateLimits:
    """What both listeners count together."""
    limits, callers = settings.limits, settings.callers
    per_second, burst = limits.anonymous_per_second, limits.anonymous_burst
    return GateLimits(
        strangers=SourceLimit(per_second, burst, time.monotonic),
        refused=SourceLimit(per_second, burst, time.monotonic),
        denials=Rates(callers.denials_per_second, callers.denial_burst, time.monotonic),
        refusals=Refusals(),
    )
