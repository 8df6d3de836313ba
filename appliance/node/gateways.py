"""Which certificates of gateways count: heard with the leases, kept in the file that workers read.

Written when they change, and every ten seconds, so that the time in it is not much older than what
was heard. A disk that is full or slow delays the file alone: the next leases say it again.

Called by `works`.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, timedelta

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core.errors import ApplianceError
from appliance.wire.accepted import AcceptedFile, AcceptedSerials

REFRESH = timedelta(seconds=10)

logger = logging.getLogger(__name__)


class GatewayCertificates:
    """Keeps the file; one for each agent."""

    def __init__(self, file: AcceptedFile) -> None:
        self._file = file
        self._written: AcceptedSerials | None = None
        self._writing: asyncio.Task[None] | None = None

    def hear(self, said: rpc.GatewayCertificates) -> None:
        """Take in what counts now; the file follows."""
        accepted = AcceptedSerials(frozenset(said.serials), said.as_of.ToDatetime(UTC))
        if self._writing is None and self._is_news(accepted):
            self._writing = asyncio.create_task(self._write(accepted))

    def _is_news(self, accepted: AcceptedSerials) -> bool:
        last = self._written
        if last is None or last.serials != accepted.serials:
            return True
        # Also when the clock of the control plane was set back.
        return not timedelta() <= accepted.as_of - last.as_of < REFRESH

    async def _write(self, accepted: AcceptedSerials) -> None:
        try:
            await asyncio.to_thread(self._file.write, accepted)
            self._written = accepted
        except (ApplianceError, OSError) as error:
            logger.warning("replicas do not hear which gateways count: %s", error)
        finally:
            self._writing = None
