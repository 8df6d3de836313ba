"""One answer, or the rest of one, in one replica: what its link writes and its router reads.

Called by `appliance.gateway.links` and `appliance.gateway.router`.
"""

from __future__ import annotations

import asyncio

from appliance.api.inference.v1 import generation_pb2
from appliance.core.errors import ApplianceError


class Attempt:
    """One answer, or the rest of one, in one replica. Moments are seconds of the link's clock.

    Attributes:
        id: of the order, on this stream.
        sent: when it was.
        since: when its time began, which stands still while it is queued.
        patience: until when it may wait there for its turn.
        first: it has had no token yet.
        tokens: ids that came and were not taken.
        finish, refused, lost: how it ended: well, by the replica's word, or with the stream.
        busy: the replica has as many as it may, and did not take it.
        expired: its turn did not come in time.
        late: it is in work, and its next token takes too long.
        looked: when who waits was last woken for the sake of time.
        waiter: set when there is something to look at.
    """

    __slots__ = (
        "busy",
        "expired",
        "finish",
        "first",
        "id",
        "late",
        "looked",
        "lost",
        "patience",
        "refused",
        "sent",
        "since",
        "tokens",
        "waiter",
    )

    def __init__(self, identifier: int, now: float, patience: float) -> None:
        self.id = identifier
        self.sent = self.looked = now
        self.patience = patience
        self.busy = False
        self.expired = False
        self.tokens: list[int] = []
        self.finish = generation_pb2.FINISH_REASON_UNSPECIFIED
        self.refused = ""
        self.lost: ApplianceError | None = None
        self.late = False
        self.first = True
        self.since = now
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Let who waits look again."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    @property
    def ended(self) -> bool:
        """Whether the replica says no more of it."""
        return bool(self.finish or self.refused or self.busy or self.lost is not None)

    async def wait(self) -> None:
        """Wait until there is something to look at; returns at once when there is already."""
        if self.tokens or self.ended or self.late or self.expired:
            return
        self.waiter = asyncio.get_running_loop().create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    def take(self) -> list[int]:
        """Everything that came since the last time."""
        taken, self.tokens = self.tokens, []
        return taken
