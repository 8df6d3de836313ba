"""What is asked of replicas, and how far the answer is. Pure.

Made by `appliance.gateway.pipeline`; carried by `router` from replica to replica.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.api.inference.v1 import generation_pb2
from appliance.gateway.links import Submit
from appliance.gateway.snapshot import ANY_VERSION, Pool, ReplicaAddress, ServedVersion

STOP = generation_pb2.FINISH_REASON_STOP
LENGTH = generation_pb2.FINISH_REASON_LENGTH
GOING_ON = generation_pb2.FINISH_REASON_UNSPECIFIED
_SEED_BITS = 63


class OtherVersionError(Exception):
    """Not an error of anybody: replicas of another version can answer, and those of this one not.

    The prompt has to be made for that one.
    """


@dataclass
class Ask:
    """What is asked of a replica, and how far the answer is.

    Attributes:
        prompt: token ids.
        sampling: without stop texts; `max_tokens` is at least 1 and fits the context.
        ends: token ids that end the answer.
        vocabulary: token ids there are; others that a replica answers with are left out.
        version: that the prompt was made for.
        caller: takes turns with others.
        until: moment, on the router's clock, at which the call has had its time.
        patience: moment until which it waits for its turn, while it has no token.
        check: raises when the call may not go on; asked while it waits, also for a token.
        turned_away: is called when it makes way for another, before it hears of it itself.
        generated: token ids so far.
        continuations: times it went on with another replica.
    """

    endpoint: str
    prompt: list[int]
    sampling: generation_pb2.Sampling
    ends: list[int]
    vocabulary: int
    version: ServedVersion = ANY_VERSION
    caller: str = ""
    until: float = math.inf
    patience: float = math.inf
    check: Callable[[], None] = field(default=lambda: None, repr=False)
    turned_away: Callable[[], None] = field(default=lambda: None, repr=False)
    generated: list[int] = field(default_factory=list)
    continuations: int = 0
    retries: int = 0
    tried: set[ReplicaAddress] = field(default_factory=set)

    @property
    def pool(self) -> Pool:
        """The replicas that can answer it."""
        return Pool(self.endpoint, self.version)

    @property
    def begun(self) -> bool:
        """Whether there are tokens of it."""
        return bool(self.generated)

    def finished(self) -> generation_pb2.FinishReason:
        """How the answer ended, by what was generated so far."""
        if not self.begun:
            return GOING_ON
        if self.generated[-1] in self.ends and not self.sampling.ignore_end:
            return STOP
        return LENGTH if len(self.generated) >= self.sampling.max_tokens else GOING_ON

    def submit(self) -> Submit:
        """The order for the rest of the answer."""
        sampling = generation_pb2.Sampling()
        sampling.CopyFrom(self.sampling)
        sampling.max_tokens -= len(self.generated)
        if self.begun and sampling.HasField("seed"):
            sampling.seed = seed_at(sampling.seed, len(self.generated))
        return Submit(
            prompt_token_ids=[*self.prompt, *self.generated],
            sampling=sampling,
            end_token_ids=self.ends,
        )


def seed_at(seed: int, position: int) -> int:
    """The seed for the rest of an answer: random numbers of its beginning must not come again."""
    digest = hashlib.sha256(f"{seed}/{position}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)
