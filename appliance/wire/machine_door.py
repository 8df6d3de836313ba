"""The door of a server that only machines call, such as a worker.

The attack: a machine whose certificate ended, was made for something else or belongs to another
kind of machine, on a connection that was opened when all was well (gRPC looks at a certificate
once, and at neither its purpose nor its name). Rules kept here:
* identity comes from the peer's certificate on every call, and again every few seconds of a stream;
* the kinds of callers are listed; a certificate that counts no more is refused although it holds.

Made by the composition root of the server; health answers without it, to whoever passed the
handshake.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime

from appliance.core.errors import ApplianceError, Denied, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.reading import peer_identity
from appliance.wire.admission import Rates
from appliance.wire.door import RECHECK_SECONDS, Call, Door, caller
from appliance.wire.metrics import CallMetrics
from appliance.wire.rules import AccessRule

logger = logging.getLogger(__name__)

LINES_PER_SECOND, LINES_BURST = 1.0, 50
"""Refusals of one caller that are logged one by one."""


class MachineDoor(Door[Principal]):
    """The door of a server that only machines call: the certificate says who, on every call.

    Args:
        rules: of all methods of the server.
        cluster: id of the cluster the caller must belong to.
        allowed: kinds of callers that may call.
        check: raises Unauthenticated for a certificate that counts no more, though it holds; may
            read a disk.
        now: the time.
        metrics: counts calls.
        recheck_seconds: time between two judgements of a stream.
    """

    def __init__(  # noqa: PLR0913 - three facts, and four that have defaults
        self,
        rules: Mapping[str, AccessRule],
        cluster: str,
        allowed: Collection[PrincipalKind],
        *,
        check: Callable[[bytes], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        metrics: CallMetrics | None = None,
        recheck_seconds: float = RECHECK_SECONDS,
    ) -> None:
        super().__init__(rules, metrics=metrics, recheck_seconds=recheck_seconds)
        self._cluster = cluster
        self._allowed = frozenset(allowed)
        self._check = check
        self._now = now
        self._lines = Rates(LINES_PER_SECOND, LINES_BURST, time.monotonic)

    async def identify(self, call: Call) -> Principal:
        """Who calls. Raises Unauthenticated or Denied."""
        certificate = call.certificate
        if certificate is None:
            raise Unauthenticated("this server asks for a certificate of the appliance")
        principal = peer_identity(certificate, self._cluster, self._now(), need="client")
        if principal.kind not in self._allowed:
            raise Denied(f"{principal.name} may not call this server", principal=principal.name)
        await asyncio.to_thread(self._check, certificate)
        return principal

    async def enter(self, call: Call) -> Principal:
        """Whoever is identified may call everything here."""
        del call  # the certificate said it all
        return caller.get()

    async def recheck(self, call: Call, entered: Principal) -> None:
        """Identify it again."""
        if await self.identify(call) != entered:
            raise Unauthenticated("the caller changed during the call")

    async def leave(
        self, call: Call, entered: Principal | None, error: ApplianceError | None
    ) -> None:
        """Log what was refused, so many lines for each caller; the metrics count all."""
        if error is not None and not self._lines.wait(str(entered or caller.get())):
            logger.warning(
                "%s: %s",
                error.reason,
                error.message,
                extra={
                    "method": call.rule.method,
                    "peer": call.peer,
                    "principal": str(entered or caller.get()),
                },
            )
