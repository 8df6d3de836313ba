"""How often replicas have failed in a row, and when each may be started again.

In memory: after a restart of the control plane everything is tried again at once. Called by
`services.serving.replicas`, from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from appliance.control.services.serving.endpoint_state import MAX_PAUSE_SECONDS
from appliance.core.waiting import pause_after

_FIRST_PAUSE, _MAX_PAUSE = timedelta(seconds=1), timedelta(seconds=MAX_PAUSE_SECONDS)


@dataclass(frozen=True)
class Failures:
    """Failures in a row of one replica, and when to try again (monotonic seconds)."""

    count: int
    retry_at: float


class ReplicaFailures:
    """By piece of work.

    Args:
        monotonic: seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: dict[str, Failures] = {}

    def may_start(self, work: str) -> bool:
        """Whether its pause is over."""
        with self._lock:
            known = self._known.get(work)
            return known is None or self._monotonic() >= known.retry_at

    def one_more(self, work: str, *, served_well: bool) -> Failures:
        """What is known of a replica after one more; `note` makes it count."""
        with self._lock:
            before = self._known.get(work)
        count = 1 if served_well or before is None else before.count + 1
        pause = pause_after(count - 1, _FIRST_PAUSE, _MAX_PAUSE) if count > 1 else timedelta()
        return Failures(count, self._monotonic() + pause.total_seconds())

    def note(self, work: str, failures: Failures) -> None:
        """Remember."""
        with self._lock:
            self._known[work] = failures

    def forget(self, work: str) -> None:
        """The replica is gone."""
        with self._lock:
            self._known.pop(work, None)

    def fewest(self, works: Iterable[str], newest: Mapping[str, Failures]) -> int:
        """Failures in a row of the one that has the fewest; 0 without any.

        Args:
            works: of which replicas.
            newest: what is not noted yet.
        """
        with self._lock:
            found = [newest.get(work) or self._known.get(work) for work in works]
        return min((each.count if each else 0 for each in found), default=0)
