"""How much a replica has to do, by its heartbeats and tokens: may it get more, and who waits.

Rules kept here:
* it gets as many answers as its engine works on at a time, and an eighth more, so that a slot that
  gets free is filled at once; the others wait in the gateway, where another replica can take them;
* what may wait in its queue is not late, while it works on others; the queue is first come first
  served, so an answer is known to be in work when one that was sent after it has had its first
  token.

The fault: a burst makes the waiting ones late, and a healthy replica counts as broken. Pure. Called
by `appliance.gateway.links`.
"""

from __future__ import annotations

import math

from appliance.api.inference.v1 import worker_service_pb2
from appliance.gateway.attempts import Attempt

LEAD_SHARE = 8
"""One answer more for so many slots of an engine, for its next step."""


class ReplicaLoad:
    """What is known of a replica's queue. It works on answers in the order in which they came.

    Attributes:
        slots: answers that one of its steps works on at most; 0: it does not say.
        waiting: those of all gateways that wait there, as of the last heartbeat.
        running: those that its steps work on. Where there are none, nobody waits for them.
        busy: it took none lately.
    """

    def __init__(self) -> None:
        self.slots = 0
        self.waiting = 0
        self.running = 0
        self.busy = False
        self._newest, self._came = 0, -math.inf

    def is_full(self, answers: int, most: int) -> bool:
        """Whether it gets no more than the answers it has from here."""
        if self.busy or answers >= most:
            return True
        if not self.slots:
            return False
        lead = max(1, self.slots // LEAD_SHARE)
        # Others may have filled it, or its memory holds fewer than it has slots.
        return answers >= self.slots + lead or (answers >= lead and self.waiting > lead)

    def has_slot(self, answers: int) -> bool:
        """Whether a further answer finds a free slot."""
        return not self.waiting and (not self.slots or answers < self.slots)

    def note_heartbeat(self, beat: worker_service_pb2.Heartbeat) -> None:
        """A heartbeat came."""
        self.slots, self.running = max(0, beat.slots), beat.running
        self.waiting, self.busy = max(0, beat.waiting), False

    def note_first_token(self, attempt: Attempt, now: float) -> None:
        """The first token of an answer came."""
        if attempt.id > self._newest:
            self._newest, self._came = attempt.id, now

    def may_wait(self, attempt: Attempt) -> bool:
        """Whether an answer may be one of those that wait, and no step works on it.

        One that was put back for want of memory is the first of those that wait: so it is in work
        again at the latest when one that was sent after it begins.
        """
        if not self.waiting or not self.running:
            return False
        return attempt.id > self._newest or self._came <= attempt.since
