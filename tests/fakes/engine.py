"""An engine that makes the tokens a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from appliance.worker.outputs import EngineActivity, Output
from appliance.worker.requests import EngineLimits, EngineRequest


class FakeEngine:
    def __init__(self) -> None:
        self.activity = EngineActivity()
        self.limits = EngineLimits(sequence_length=100, vocabulary=50, slots=4)
        self.sinks: dict[str, Callable[[Output], None]] = {}
        self.aborted: list[str] = []
        self._changed = asyncio.Event()

    async def submit(
        self, identifier: int, request: EngineRequest, sink: Callable[[Output], None]
    ) -> None:
        self.sinks[identifier] = sink
        self._changed.set()

    async def abort(self, identifiers: list[str]) -> None:
        self.aborted += identifiers
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until orders have come that make it true."""
        async with asyncio.timeout(5):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def step(self, made: dict[str, Output]) -> None:
        """One engine step: an output for each of these answers."""
        self.activity.note_step(len(made), 0)
        for identifier, output in made.items():
            self.sinks[identifier](output)
