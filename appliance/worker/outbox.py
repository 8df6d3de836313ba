"""What a stream has yet to send to its gateway: at most one entry for each answer.

A gateway that reads slowly gets fewer, longer outputs: tokens of the same answer are joined while
they wait. So what is held is bounded by the answers in work and their length, and a slow stream
never delays the engine or another stream. Called by `appliance.worker.service`; pure.
"""

from __future__ import annotations

import asyncio

from appliance.api.inference.v1 import generation_pb2, worker_service_pb2
from appliance.core.errors import ApplianceError

BUSY = "the replica has as many answers in work as it may: repeat the request later"
"""For gateways that take it for a refusal."""


class StreamOutbox:
    """Outputs that wait, in the order in which their answers first had one."""

    def __init__(self) -> None:
        self._waiting: dict[int, worker_service_pb2.StepOutput] = {}
        self._failure: ApplianceError | None = None
        self.filled = asyncio.Event()

    def tokens(
        self, identifier: int, tokens: list[int], finish: generation_pb2.FinishReason
    ) -> None:
        """Add tokens of an answer."""
        entry = self._waiting.get(identifier)
        if entry is None:
            entry = self._waiting[identifier] = worker_service_pb2.StepOutput(id=identifier)
            self.filled.set()
        entry.token_ids.extend(tokens)
        entry.finish_reason = finish

    def refuse(self, identifier: int, sentence: str) -> None:
        """Add that an answer is refused, or has failed."""
        self._waiting[identifier] = worker_service_pb2.StepOutput(id=identifier, refused=sentence)
        self.filled.set()

    def busy(self, identifier: int) -> None:
        """Add that an answer is not taken because there are as many as there may be."""
        self.refuse(identifier, BUSY)
        self._waiting[identifier].busy = True

    def forget(self, identifier: int) -> None:
        """Drop what waits of an answer."""
        self._waiting.pop(identifier, None)

    def fail(self, error: ApplianceError) -> None:
        """End the stream with an error, before anything else of it is sent."""
        self._failure = error
        self.filled.set()

    def take(self) -> list[worker_service_pb2.StepOutput]:
        """Everything that waits. Raises the error that ends the stream."""
        if self._failure is not None:
            raise self._failure
        taken = list(self._waiting.values())
        self._waiting.clear()
        self.filled.clear()
        return taken
