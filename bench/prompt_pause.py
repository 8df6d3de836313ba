"""How long do answers stand still while somebody's prompt of 1 MiB is prepared?

Eight answers stream through a whole gateway at an engine's pace while one caller sends a prompt of
1 MiB, then four at once; as text, and as a conversation with a template. The longest gap between
two pieces of any answer is held against that of as long a time without such prompts, since on a
shared machine answers pause by themselves. Beside it, the same text is tokenized in one process, as
the gateway does it and by `encode` in the event loop, which is the alternative: the longest time in
which the loop did not turn.

The bar: the longest pause is at most `MAX_MILLISECONDS` longer than without, in the median round.
The worst round is printed beside it and has no bar: one round on a shared machine says as much of
the machine as of the gateway. So the bench shows what a pause mostly is, and no bound on every one.
"""

from __future__ import annotations

import asyncio
import pydoc_data.topics
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import ApplianceError
from appliance.gateway.tokenize import Desk, ServedModel
from bench import gateway_stand_ins as stand_ins
from bench.gateway_relay import Stage, stage
from bench.gateway_stand_ins import LONG, LONG_CONTEXT, endpoint
from bench.measure import AT_MOST, Bar, Contender, Outcome, at_least, compare, run

NAME = "prompt_pause"
ENCODE = "`encode` in the loop"
MAX_MILLISECONDS = 50.0
MEDIAN, WORST = "_median_pause_milliseconds", "_worst_pause_milliseconds"
STREAMS = 8
SIZE = 1 << 20
ROUNDS = 5
REPEATS = 5
TICK_SECONDS = 0.001
WHOLE = "\n\n".join(pydoc_data.topics.topics.values()).encode("ascii", "ignore").decode() * 4
TEXT = WHOLE[:SIZE]


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """Pauses of a gateway's answers, and of one loop."""
    table = _in_one_process()
    with stage() as running:
        figures = asyncio.run(_gaps(running))
    median = max(value for name, value in figures.items() if name.endswith(MEDIAN))
    figures["median_round_at_most_milliseconds"] = median
    figures["worst_round_milliseconds"] = max(
        value for name, value in figures.items() if name.endswith(WORST)
    )
    print(f"\n{NAME}, through a gateway")
    for name, value in figures.items():
        print(f"  {name:44}{value:>10.4g}")
    bars = [
        Bar(
            "answers pause longer by, median round",
            median,
            "ms",
            AT_MOST,
            MAX_MILLISECONDS,
            REPEATS,
        ),
        at_least(table, ENCODE, 5.0),
    ]
    return Outcome(bars, {"in_one_process": table, "figures": figures})


def _in_one_process() -> dict[str, object]:
    served = routing_service_pb2.ServedTokenizer(
        tokenizer_json=stand_ins.words().to_str().encode(), chat_template=stand_ins.TEMPLATE
    )
    desk = Desk.new()
    model, plain = ServedModel(served, desk), stand_ins.words()

    async def inside() -> None:
        plain.encode(TEXT)

    try:
        return compare(
            f"{NAME}_in_one_process",
            "1 / longest pause in seconds",
            Contender(
                "ours, in pieces",
                lambda: 1 / asyncio.run(_longest(lambda: model.prompt(TEXT, LONG_CONTEXT))),
            ),
            Contender(ENCODE, lambda: 1 / asyncio.run(_longest(inside))),
            rounds=ROUNDS,
        )
    finally:
        desk.close()


async def _longest(work: Callable[[], Awaitable[object]]) -> float:
    """Longest time in seconds between two turns of the loop while work is done."""
    longest, last = 0.0, time.perf_counter()
    task = asyncio.ensure_future(work())
    while not task.done():
        await asyncio.sleep(TICK_SECONDS)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    await task
    return longest


async def _gaps(running: Stage) -> dict[str, float]:
    """Longest gaps in milliseconds between pieces of answers, by what else is asked meanwhile."""
    found: dict[str, float] = {}
    async with running.through() as client:
        messages = [("user", TEXT)]

        async def text() -> None:
            async for _ in client.generate(endpoint(LONG), prompt=TEXT, max_tokens=1):
                pass

        async def chat() -> None:
            async for _ in client.generate(endpoint(LONG), messages=messages, max_tokens=1):
                pass

        await _ready(text)
        await chat()
        watch = Watch(running)
        await watch.start()
        for name, ask in (("text", text), ("chat", chat)):
            for count in (1, 4):
                found |= await _pause(watch, ask, f"{name}_{count}", count)
        await watch.stop()
    return found


async def _pause(
    watch: Watch, ask: Callable[[], Awaitable[None]], name: str, count: int
) -> dict[str, float]:
    """Longest gaps of rounds, each with as long a time without prompts before it."""
    quiet, loud, seconds = [], [], 1.0
    for _ in range(REPEATS):
        watch.take()
        await asyncio.sleep(seconds)
        quiet.append(watch.take())
        start = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(count)))
        seconds = time.perf_counter() - start
        loud.append(watch.take())
    return {f"{name}_seconds": seconds, **summary(name, quiet, loud)}


def summary(name: str, quiet: Sequence[float], loud: Sequence[float]) -> dict[str, float]:
    """The median round, which the bar holds, and the worst one: milliseconds."""
    pauses = [gap - usual for gap, usual in zip(loud, quiet, strict=True)]
    return {
        f"{name}_quiet_gap_milliseconds": statistics.median(quiet),
        f"{name}_gap_milliseconds": statistics.median(loud),
        f"{name}_worst_gap_milliseconds": max(loud),
        f"{name}{MEDIAN}": statistics.median(pauses),
        f"{name}{WORST}": max(pauses),
    }


async def _ready(ask: Callable[[], Awaitable[None]]) -> None:
    """Return when the long endpoint answers."""
    for _ in range(100):
        try:
            return await ask()
        except ApplianceError:
            await asyncio.sleep(0.2)
    raise SystemExit("the gateway does not serve long prompts")


class Watch:
    """Answers that stream all the time, and the longest gap in any of them."""

    def __init__(self, running: Stage) -> None:
        self._running = running
        self._longest = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin; returns when each answer streams."""
        begun = [asyncio.Event() for _ in range(STREAMS)]
        self._tasks = [asyncio.create_task(self._stream(event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        self._longest = 0.0

    def take(self) -> float:
        """Milliseconds of the longest gap since the last time."""
        longest, self._longest = self._longest, 0.0
        return 1e3 * longest

    async def stop(self) -> None:
        """End all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stream(self, begun: asyncio.Event) -> None:
        async with self._running.through() as client:
            while True:
                last = 0.0
                pieces = client.generate(endpoint("paced"), prompt="Go on.", max_tokens=4000)
                async for _ in pieces:
                    now = time.perf_counter()
                    if last:
                        self._longest = max(self._longest, now - last)
                    last = now
                    begun.set()


if __name__ == "__main__":
    sys.exit(main())
