"""Faults and phases: who goes away, when, for how long, and what may be otherwise afterwards.

The same table stands in `docs/operations.md` ("What may go away"); `tests/docs` compares them, and
`tests/journeys/test_what_may_go_away.py` does what it says.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.control.services.fleet import connected_agents, leases
from appliance.core import heartbeat
from appliance.gateway import view
from appliance.node import agent

SILENT = 4 * max(
    *(agent.SILENCE_SECONDS, view.HEARD_SECONDS, view.SILENT_SECONDS),
    *(leases.UNNAMED_SECONDS, connected_agents.DEAD_SECONDS, heartbeat.SILENT_SECONDS),
)
"""Seconds: four times each time that something waits for a word of somebody else's.

But the two that are settings, `stale_view_seconds` and `node_lost_seconds`, which have tests of
their own (`test_what_has_its_time.py`). Calls for keys and tokenizers have longer ones (20 and
30 s); they are repeated and end nothing.
"""


@dataclass(frozen=True)
class Row:
    """A fault, the phase of the job in which it happens, and for how many seconds it lasts.

    Attributes:
        epoch: of the job afterwards: how often it was started.
        rank_restarts: how often its ranks were, by themselves.
        replicas: that were started again.
        answers: whether none fails.
        callers, tokens, pause: of the streams meanwhile.
    """

    fault: str
    phase: str
    seconds: float = 0.0
    epoch: int = 1
    rank_restarts: int = 0
    replicas: int = 0
    answers: bool = True
    callers: int = 2
    tokens: int = 40
    pause: float = 2.0

    @property
    def name(self) -> str:
        """Of the test."""
        return f"{self.fault}, while the job is {self.phase}"


ROWS = (
    *(
        Row(f"control plane, {how}", phase)
        for how in ("SIGTERM", "kill -9")
        for phase in ("queued", "starting", "running", "finishing")
    ),
    Row("control plane, SIGSTOP", "running", SILENT, callers=16, tokens=200, pause=0.5),
    Row("gateway, SIGTERM", "running", answers=False),
    Row("gateway, kill -9", "running", answers=False),
    Row("agent, kill -9", "running", epoch=2, replicas=1),
    Row("agent, SIGSTOP", "running", SILENT),
    Row("rank, kill -9", "running", rank_restarts=1),
    Row("replica, kill -9", "running", replicas=1),
    Row("node cut off from the control plane", "running", SILENT),
    Row("everybody cut off from the control plane", "running", SILENT),
    Row("store, ENOSPC", "finishing", 10),
    Row("store, EIO", "finishing", 10),
    Row("store hangs", "finishing", 10),
    Row("store is full", "running", 5, epoch=2),
    Row("slow disk", "running", 20),
    Row("clock jumps", "running", 10),
    # The last one: nobody goes back from it.
    Row("control plane, next version", "running"),
)
