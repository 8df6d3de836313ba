"""Ten times more callers than slots, beside a dead endpoint and a healthy one: who suffers?

A whole gateway between a stand-in control plane and stand-in replicas, times scaled down: `busy`
has two replicas of eight slots and 160 callers, whose answers take longer than a first token may;
`dead` has callers and no replica that comes; `well` has a replica and few callers. Whoever is told
429 or 503 comes back, as clients do. Counted in each round: breakers of healthy replicas that
opened, answers that broke off after their first token, and what callers of `well` were refused.

In turn with it the same without the change: time counts from sending, each lost answer is a
failure, nobody waits for a place, and places are for whoever comes first, as in version 0.1.0.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from appliance.client.inference import AsyncInference
from appliance.core.errors import ApplianceError, Exhausted
from appliance.gateway import pipeline
from appliance.gateway.ask import Ask
from appliance.gateway.breaker import Breaker, BreakerState
from appliance.gateway.config import GatewayLimits
from appliance.gateway.load import ReplicaLoad
from appliance.gateway.slots import ReplicaSlots
from bench.measure import AT_MOST, MIN_ROUNDS, Bar, Outcome, run
from tests.fakes.gateway import QUICK, Stage, stage
from tests.fakes.wire import authority
from tests.fakes.worker import Script, Worker

NAME = "overload"
ROUNDS = MIN_ROUNDS
SECONDS = 8.0
SLOTS = 8
STEP_SECONDS = 0.02
BUSY, DEAD, WELL = (f"projects/p/endpoints/{name}" for name in ("busy", "dead", "well"))
CALLERS = {BUSY: 10 * 2 * SLOTS, DEAD: 60, WELL: 6}
TOKENS = {BUSY: 150, DEAD: 10, WELL: 20}
PEOPLE = 16
PAUSE = 0.5
ROUTING = dataclasses.replace(
    QUICK,
    wait_seconds=3.0,
    queue_seconds=4.0,
    first_token_seconds=1.0,
    between_tokens_seconds=1.0,
    silent_seconds=5.0,
    stall_seconds=5.0,
    retry_share=0.1,
)
LIMITS = GatewayLimits(calls=192, calls_per_caller=64)
OURS, BEFORE = "with it", "without it"
COUNTS = ("breakers opened", "answers cut", "well: refused", "well: answered", "busy: answered")


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    logging.disable(logging.ERROR)
    return run(NAME, measure)


def measure() -> Outcome:
    """Rounds in turn; the worst of ours counts."""
    rounds: dict[str, list[Counter[str]]] = {OURS: [], BEFORE: []}
    for _ in range(ROUNDS):
        for name, found in rounds.items():
            with ExitStack() as changes:
                if name == BEFORE:
                    changes.enter_context(as_before())
                found.append(asyncio.run(one_round()))
    print(f"\n{NAME}, sums of {ROUNDS} rounds of {SECONDS:.0f} s")
    print(f"  {'':24}{OURS:>14}{BEFORE:>14}")
    sums = {name: sum(found, Counter[str]()) for name, found in rounds.items()}
    for what in (*COUNTS, "busy: 429", "busy: 503", "dead: 429", "dead: 503"):
        print(f"  {what:24}{sums[OURS][what]:>14}{sums[BEFORE][what]:>14}", flush=True)
    bars = [
        Bar(f"{what}, worst round", worst(rounds[OURS], what), "", AT_MOST, 0, ROUNDS)
        for what in COUNTS[:3]
    ]
    return Outcome(bars, {"rounds": {name: list(map(dict, each)) for name, each in rounds.items()}})


def worst(rounds: list[Counter[str]], what: str) -> int:
    """The largest count of all rounds."""
    return max(found[what] for found in rounds)


async def one_round() -> Counter[str]:
    """Everybody asks for so long; what happened."""
    counts = Counter[str]()
    busy = [Worker(name, Script(seconds=STEP_SECONDS, slots=SLOTS)) for name in "ab"]
    well = Worker("w", Script(seconds=STEP_SECONDS / 4, slots=SLOTS))
    with tempfile.TemporaryDirectory() as folder, counting(counts):
        made = stage(Path(folder), *busy, routing=ROUTING, limits=LIMITS)
        async with made as found:
            await well.start()
            found.control.serve(*busy, endpoint=BUSY)
            found.control.serve(well, endpoint=WELL)
            found.control.serve(endpoint=DEAD)
            found.control.view.routes[-1].replicas.add(id="x", state="STATE_STARTING", epoch=1)
            tokens = [found.control.issue(f"serviceAccounts/p{n}") for n in range(PEOPLE)]
            found.control.publish()
            await found.ready(5)
            await ask_for(found, tokens, counts)
        await well.stop()
    return counts


async def ask_for(found: Stage, tokens: list[str], counts: Counter[str]) -> None:
    """All callers, until the time is over."""
    address = f"127.0.0.1:{found.gateway.grpc_port}"
    async with ExitStackOf(address, tokens) as clients:
        callers = [
            asyncio.create_task(keep_asking(clients[number % PEOPLE], endpoint, counts))
            for endpoint, many in CALLERS.items()
            for number in range(many)
        ]
        await asyncio.sleep(SECONDS)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


class ExitStackOf:
    """A client for each token, all closed at the end."""

    def __init__(self, address: str, tokens: list[str]) -> None:
        ca = authority().certificate_pem
        self._clients = [AsyncInference(address, ca, token) for token in tokens]

    async def __aenter__(self) -> list[AsyncInference]:
        """Open them."""
        return [await client.__aenter__() for client in self._clients]

    async def __aexit__(self, *_: object) -> None:
        """Close them."""
        for client in self._clients:
            await client.__aexit__(None, None, None)


async def keep_asking(client: AsyncInference, endpoint: str, counts: Counter[str]) -> None:
    """Ask again and again; come back after a pause when told so."""
    name, wanted = endpoint.rpartition("/")[2], TOKENS[endpoint]
    while True:
        made = 0
        try:
            pieces = client.generate(endpoint, prompt="Hallo", max_tokens=wanted)
            async for piece in pieces:
                made += len(piece.token_ids)
        except ApplianceError as error:
            counts["answers cut"] += bool(made)
            code = "429" if isinstance(error, Exhausted) else "503"
            counts[f"{name}: {code}"] += 1
            counts[f"{name}: refused"] += 1
            await asyncio.sleep(PAUSE)
        else:
            counts[f"{name}: answered"] += 1


@contextmanager
def counting(counts: Counter[str]) -> Iterator[None]:
    """Count the breakers that open; every replica here is healthy."""
    failed = Breaker.failed

    def counted(breaker: Breaker, now: float, sent: float) -> bool:
        opened = failed(breaker, now, sent)
        counts["breakers opened"] += opened
        return opened

    with patch.object(Breaker, "failed", counted):
        yield


@contextmanager
def as_before() -> Iterator[None]:
    """The rules of version 0.1.0 in the places where they were."""

    def failed(breaker: Any, now: float, _: float) -> bool:  # noqa: ANN401 - a breaker
        if breaker.state is not BreakerState.CLOSED:
            return False
        breaker._failures += 1  # noqa: SLF001 - as it was
        if breaker._failures < breaker._most:  # noqa: SLF001
            return False
        breaker.state = BreakerState.OPEN
        breaker._due = now + breaker._pause  # noqa: SLF001
        return True

    check_room = ReplicaSlots._check_room  # noqa: SLF001 - what it was before is put in its place

    def full(places: Any, ask: Ask, line: Any) -> None:  # noqa: ANN401 - what it was
        if places._fleet.has_ready(ask.endpoint):  # noqa: SLF001
            raise Exhausted("every replica has as many answers as it may", retry_after=1.0)
        check_room(places, ask, line)

    with ExitStack() as stack:
        for owner, name, rule in (
            (Breaker, "failed", failed),
            (ReplicaLoad, "may_wait", lambda *_: False),
            (ReplicaLoad, "is_full", lambda _, answers, most: answers >= most),
            (ReplicaLoad, "has_slot", lambda *_: True),
            (ReplicaSlots, "_check_room", full),
            (ReplicaSlots, "make_way", lambda *_, **__: False),
            (pipeline, "may_enter", lambda held, _, __, places: sum(held.values()) < places),
        ):
            stack.enter_context(patch.object(owner, name, rule))
        yield


if __name__ == "__main__":
    sys.exit(main())
