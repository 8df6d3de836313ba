"""Composition root of the control plane: builds every part, once, and serves.

Rules kept here:
* one gate for each listener, and nothing is served beside what it guards but health;
* the server does not start when an RPC has no access rule;
* the private key of the listeners is made at each start and lives in memory alone.

Called by `python -m appliance.control` and by tests that need a whole control plane.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry

from appliance.control import parts
from appliance.control.access import Access
from appliance.control.config import ControlConfig
from appliance.control.foundation import Clock, Foundation, People
from appliance.control.gate import Gate
from appliance.control.identify import ByCertificate, ByToken, Identify
from appliance.control.journal import Journal
from appliance.control.opening import Opened, open_data
from appliance.control.rpc.servicer import Servicer, descriptor_of, service_of
from appliance.control.services.places import Places
from appliance.control.work import Work
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.certs import CA_LIFETIME, make_csr, new_private_key
from appliance.crypto.keys import Keyring
from appliance.wire.admission import SourceLimit
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import Rule, rules_of
from appliance.wire.server import Listener, Server
from appliance.wire.tls import server_credentials

logger = logging.getLogger(__name__)

CONTROL = Principal(PrincipalKind.CONTROL, "control")


class Control:
    """A whole control plane; make it with `build` inside a running event loop."""

    def __init__(self, opened: Opened, settings: ControlConfig, clock: Clock) -> None:
        self.base = Foundation(opened, settings, clock)
        self.people = People(self.base)
        self._pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="call")
        registry = CollectorRegistry()
        self._metrics = CallMetrics(registry)
        self._limit = SourceLimit(
            settings.limits.anonymous_per_second, settings.limits.anonymous_burst, time.monotonic
        )
        self.server = Server(
            metrics_address=settings.listen.metrics,
            metrics_setting="listen.metrics",
            registry=registry,
        )
        # A policy that cannot be made stops the start, not the first call.
        self.base.policies.current()
        self.work = Work(self.base, self.people, time.monotonic)
        # Before an agent can call: what was under way when the last process ended.
        self.work.scheduler.recover()
        ring = opened.keyring
        key = new_private_key()
        certificate = _certificate(ring, key)
        people, machines = self._identities()
        self.api_port = self.server.bind(
            self._listener(
                "api",
                people,
                parts.api(self.base, self.people, self.work, self._pool),
                key,
                certificate,
            )
        )
        self.machines_port = self.server.bind(
            self._listener(
                "machines",
                machines,
                parts.machines(self.base, self.work, self._pool),
                key,
                certificate,
            )
        )

    @classmethod
    def build(cls, settings: ControlConfig, clock: Clock) -> Control:
        """Open the data directory, build everything, take the ports.

        Raises FailedPrecondition, Tampered or RuleMissing with a sentence that says what to do;
        then nothing is left open.
        """
        opened = open_data(settings, clock)
        try:
            return cls(opened, settings, clock)
        except BaseException:
            opened.close()
            raise

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then let running calls end."""
        await self.server.set_serving(serving=True)
        logger.info(
            "serving", extra={"api_port": self.api_port, "machines_port": self.machines_port}
        )
        scheduling = asyncio.create_task(self.work.scheduler.run(self._pool, self.base.events))
        try:
            await self.server.run()
        finally:
            scheduling.cancel()
            await asyncio.wait({scheduling})

    async def close(self) -> None:
        """Close what `build` opened, after the server has stopped."""
        self._pool.shutdown()
        self.base.opened.close()

    def _identities(self) -> tuple[Identify, Identify]:
        """Who calls: by token on the API, by certificate on the machine listener."""
        ring, base = self.base.keyring, self.base
        by_token = ByToken(self.people.credentials, base.database, ring.token_hmac)
        by_certificate = ByCertificate(
            ring.cluster_id, base.database, base.certificates, base.clock
        )
        return by_token, by_certificate

    def _listener(
        self,
        name: str,
        identify: Identify,
        servicers: Sequence[Servicer],
        key: bytes,
        certificate: bytes,
    ) -> Listener:
        """One address: its credentials, its gate, its services."""
        authority = self.base.keyring.ca.certificate_pem
        served: Mapping[str, Rule] = rules_of([descriptor_of(type(each)) for each in servicers])
        gate = Gate(
            served,
            identify=identify,
            access=Access(self.base.policies, Places(self.base.database), self.base.clock),
            journal=Journal(self.base.opened.log),
            limit=self._limit,
            pool=self._pool,
            metrics=self._metrics,
        )
        return Listener(
            address=getattr(self.base.settings.listen, name),
            setting=f"listen.{name}",
            credentials=server_credentials(
                key, certificate, authority, require_client=name == "machines"
            ),
            interceptors=[gate],
            services=[service_of(each) for each in servicers],
            rules=served,
        )


def _certificate(ring: Keyring, key: bytes) -> bytes:
    """The certificate of the listeners.

    It ends with the authority: a process may run as long as it likes, and its key ends with it.
    """
    return ring.ca.issue(make_csr(key), CONTROL, server=True, client=False, lifetime=CA_LIFETIME)
