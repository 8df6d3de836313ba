"""When a call that failed is made again, and when not; decides only, so that both clients share it.

Rules kept here:
* what may pass by itself (a server that cannot be reached, a limit that says when to come back) is
  waited for, with full jitter, until the call's time is over; everything else is said at once;
* a call that could be done twice is never repeated: only reads, changes with a request id, which is
  the same each time, and changes that are the same when done again;
* an identity that was refused is tried once more when its token file holds another token: it is
  refused before anything is done, so whatever the call is. A stream whose identity ends in its
  middle has done something, and is no exception to the next rule;
* a stream is begun again before its first message alone, or when every message of it is the whole
  state of a thing.

Called by `calls` and `async_calls`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from appliance.core.errors import (
    ApplianceError,
    Exhausted,
    Unauthenticated,
    Unavailable,
    Untrusted,
)
from appliance.core.waiting import Backoff

FIRST_PAUSE, MAX_PAUSE = 0.2, 5.0
PATIENCE = 60.0
"""Seconds for which a server may be away, where the caller gives no other time."""


class Tries:
    """The tries of one call.

    Args:
        timeout: seconds for all of them; None: each as long as it takes, and `patience` without an
            answer.
        repeatable: whether the call may be made twice.
        patience: see `timeout`.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        timeout: float | None,
        *,
        repeatable: bool,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._end = None if timeout is None else clock() + timeout
        self._repeatable = repeatable
        self._renewed = False
        self._said_a_part = False
        self._patience = patience
        self._since: float | None = None
        self._backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)

    @property
    def left(self) -> float | None:
        """Seconds that are left; None: no limit."""
        return None if self._end is None else max(self._end - self._clock(), 0.0)

    def answered(self, *, whole: bool) -> None:
        """A message of a stream came; `whole`: it says everything that those before have said."""
        self._since = None
        self._renewed = False
        self._said_a_part = not whole
        self._backoff.reset()
        self._repeatable = self._repeatable and whole

    def pause(self, error: ApplianceError, renew: Callable[[], bool]) -> float:
        """Seconds to wait before the same again.

        Args:
            error: how the try ended; it is raised when there must not be another.
            renew: gets the newest token, and says whether it is another than the refused one.
        """
        refused = isinstance(error, Unauthenticated) and not self._said_a_part
        if refused and not self._renewed and renew():
            self._renewed = True
            return 0.0
        seconds = self._wait(error) if self._repeatable else None
        if seconds is None:
            raise error
        now = self._clock()
        self._since = now if self._since is None else self._since
        end = self._since + self._patience if self._end is None else self._end
        if now + seconds >= end:
            raise error
        return seconds

    def _wait(self, error: ApplianceError) -> float | None:
        """Seconds after which it may be otherwise; None: waiting does not help."""
        if isinstance(error, Untrusted):
            return None
        if isinstance(error, Unavailable):
            return self._backoff.failed()
        if isinstance(error, Exhausted) and error.retry_after is not None:
            # After the time that was said; all who were told it do not come back at once.
            return error.retry_after + self._backoff.failed()
        return None
