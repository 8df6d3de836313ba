"""After each change of rights: make the whole policy anew in the background, and compare.

Rules kept here:
* many changes in a row are checked once, soon after the last and not much later than the first;
* a version that was checked is not checked again;
* a check that could not be made is made again with the next change, and never stops the process.

The attack: a change that went into memory and not into the tables, or the other way round. Run by
the composition root; what a difference leads to is `auth.policy`'s business.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor

from appliance.control.auth.policy import PolicyStore
from appliance.control.events import ACCESS, Events

logger = logging.getLogger(__name__)

QUIET_SECONDS = 1.0
"""Without a change for so long, the check begins."""
LATEST_SECONDS = 10.0
"""After the first of many changes, it begins at the latest."""


async def run(
    policies: PolicyStore,
    pool: Executor,
    events: Events,
    *,
    quiet: float = QUIET_SECONDS,
    latest: float = LATEST_SECONDS,
) -> None:
    """Check for ever."""
    loop = asyncio.get_running_loop()
    with events.watch(ACCESS) as watch:
        while True:
            await watch.wait()
            end = loop.time() + latest
            while loop.time() < end and await watch.wait(quiet):
                pass
            try:
                await loop.run_in_executor(pool, policies.cross_check)
            except Exception:
                logger.exception("the policy could not be checked; the next change is followed")
