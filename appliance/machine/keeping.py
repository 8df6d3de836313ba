"""The identity of a machine while it runs: renewed when it is a day old, replaced when refused.

Rules kept here:
* of two at once the older could stay, so one new identity is got at a time;
* a renewal that fails is tried again each minute; until the certificate ends nothing is lost by it;
* whoever holds connections is told of each new identity, and opens them anew.

Called by the agent and the gateway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from appliance.core.errors import ApplianceError, Unauthenticated
from appliance.core.waiting import Backoff
from appliance.machine.identity import Identity
from appliance.machine.joining import FIRST_PAUSE, MAX_PAUSE, Joining

RENEW_AGAIN_SECONDS = 60.0
SETTLED_SECONDS = 3600.0

logger = logging.getLogger(__name__)


class Keeper:
    """Holds the identity.

    Args:
        joining: gets a new identity when this one is refused; its store renews it.
        identity: who this machine is.
        changed: told of each new identity.
    """

    def __init__(
        self, joining: Joining, identity: Identity, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.joining = joining
        self.store = joining.store
        self.changed = changed
        self._identity = identity
        self._changing = asyncio.Lock()
        self._backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)

    @property
    def identity(self) -> Identity:
        """Who this machine is now."""
        return self._identity

    async def run(self) -> None:
        """Renew for ever."""
        while True:
            left = (self._identity.renew_at - self.store.now()).total_seconds()
            await asyncio.sleep(min(max(left, 0), RENEW_AGAIN_SECONDS))
            if self.store.now() < self._identity.renew_at:
                continue
            renewed = await self.renew()
            # Under a clock that is far ahead the new one is due at once.
            await asyncio.sleep(SETTLED_SECONDS if renewed else RENEW_AGAIN_SECONDS)

    async def renew(self) -> bool:
        """Renew now; whether that went well, and why not in the log."""
        try:
            async with self._changing:
                self._identity = await self.store.renew(self._identity)
        except (ApplianceError, OSError) as error:
            logger.warning("the certificate could not be renewed: %s", error)
            return False
        logger.info("renewed the certificate of %s", self._identity.name)
        self.changed()
        return True

    async def try_again(self, why: str) -> bool:
        """Whether the machine got a new identity, by proof of its key or with a token.

        Args:
            why: the one before is not taken, as a sentence.
        """
        refused = self._identity
        async with self._changing:
            if self._identity is not refused:
                return True  # Renewed meanwhile.
            joined = await self.joining.try_again(refused, why)
            if joined is not None:
                self._identity = joined
        if joined is not None:
            self.changed()
        return joined is not None

    def why_refused(self, error: ApplianceError) -> str:
        """Why nobody takes this identity, when that is what made a call fail; empty if not."""
        if isinstance(error, Unauthenticated):
            return str(error)
        # Asked all the same: it is this clock that may be wrong.
        return self.store.useless(self._identity)

    async def recover_from(self, error: ApplianceError) -> None:
        """After a call that failed: get another identity, if that is why; wait before the next.

        Longer and longer while nobody takes this one, but not longer than until there is a token.
        """
        why = self.why_refused(error)
        if not why or await self.try_again(why):
            self._backoff.reset()
            await asyncio.sleep(FIRST_PAUSE)
        else:
            await self.joining.wait(self._backoff.failed())
