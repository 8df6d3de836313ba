"""How every bench measures, judges itself and ends.

Ours and its alternatives run in turn, several rounds, medians, ratios. Machines are shared and
noisy: a single time says little; the median ratio of interleaved rounds says which is faster, and
by how much.

A bench returns its bars, each a figure and what it has to be, judged on at least `MIN_ROUNDS`
alternations, and whatever else it found. `run` gives it its time, prints the bars and writes
build/bench/NAME.json.
"""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "bench"
MIN_ROUNDS = 5
LIMITS = {
    "sealed_load": 5 * 60,
    "gateway_relay": 10 * 60,
    "prompt_pause": 10 * 60,
    "overload": 10 * 60,
    "views": 10 * 60,
    "hybrid_trainer": 30 * 60,
    "policy_change": 15 * 60,
    "hostile_text": 20 * 60,
    "redaction": 5 * 60,
    "hung_store": 15 * 60,
    "audit_start": 30 * 60,
    "state_rows": 10 * 60,
    "upload": 20 * 60,
    "download": 10 * 60,
    "cli": 5 * 60,
    "flood": 75 * 60,
}
"""Every bench, in the order in which they run, and its seconds."""
AT_MOST, AT_LEAST = "<=", ">="


@dataclass(frozen=True)
class Bar:
    """A figure that has to reach something.

    Attributes:
        name: what it is a figure of.
        value: the median of `rounds` alternations, or the worst of several such medians.
        unit: of the value.
        relation: `AT_MOST` or `AT_LEAST`.
        limit: in the same unit.
        rounds: alternations it is judged on.
        why: what stands in the way when there is no figure.
    """

    name: str
    value: float
    unit: str
    relation: str
    limit: float
    rounds: int
    why: str = ""

    @property
    def holds(self) -> bool:
        """Whether the figure is there, is of enough rounds and is what it has to be."""
        if self.why or not math.isfinite(self.value) or self.rounds < MIN_ROUNDS:
            return False
        if self.relation == AT_MOST:
            return self.value <= self.limit
        return self.value >= self.limit

    @property
    def goal(self) -> str:
        """What the figure has to be, such as `<= 2`."""
        return f"{self.relation} {self.limit:g}"

    def as_json(self) -> dict[str, object]:
        """The bar as it stands in a bench's JSON."""
        value = self.value if math.isfinite(self.value) else None
        found: dict[str, object] = {
            "name": self.name,
            "value": value,
            "unit": self.unit,
            "goal": self.goal,
            "holds": self.holds,
            "rounds": self.rounds,
        }
        return found | ({"why": self.why} if self.why else {})


@dataclass(frozen=True)
class Outcome:
    """What a bench found: its bars, and all figures for its JSON."""

    bars: Sequence[Bar]
    figures: dict[str, Any]


class TimeUp(Exception):
    """A bench has had its time."""


def run(name: str, work: Callable[[], Outcome]) -> int:
    """Run a bench within its time, print its bars, write its JSON; 1 when a bar does not hold."""
    limit_seconds = LIMITS[name]
    print(f"\n{name}: at most {limit_seconds / 60:.0f} minutes", flush=True)
    start = time.monotonic()
    try:
        with _time_limit(limit_seconds):
            outcome = work()
    except TimeUp:
        why = f"it was not done after {limit_seconds / 60:.0f} minutes"
        outcome = Outcome([did_not_end(why, limit_seconds)], {})
    result = {
        "bench": name,
        "bars": [bar.as_json() for bar in outcome.bars],
        "seconds": time.monotonic() - start,
        "machine": machine(),
        **outcome.figures,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    for bar in outcome.bars:
        print(f"  {line_of(bar.as_json())}", flush=True)
    return int(not all(bar.holds for bar in outcome.bars))


def did_not_end(why: str, limit_seconds: float) -> Bar:
    """The bar of a bench that gave no figures."""
    return Bar("ends by itself", math.nan, "s", AT_MOST, limit_seconds, MIN_ROUNDS, why)


def line_of(bar: dict[str, Any]) -> str:
    """One bar for a person."""
    value = f"{bar['value']:.4g} {bar['unit']}" if bar["value"] is not None else "none"
    verdict = "holds" if bar["holds"] else "MISSED"
    if not bar["holds"] and bar["rounds"] < MIN_ROUNDS:
        verdict += f" (of {bar['rounds']} rounds, {MIN_ROUNDS} are needed)"
    if bar.get("why"):
        verdict += f" ({bar['why']})"
    return f"{bar['name']:62}{value:>18}  {bar['goal']:12}{verdict}"


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in the main thread when the time is over, so that what was started is ended."""

    def ring(_: int, __: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def machine() -> dict[str, object]:
    """What the figures were taken on, and of which code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "processor": facts.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "avx512": "avx512f" in flags,
        "vnni": bool(flags & {"avx512_vnni", "avx_vnni"}),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "revision": _git("rev-parse", "HEAD") or None,
        "changed": _git("status", "--porcelain").splitlines(),
    }


def _git(*words: str) -> str:
    ran = subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
    )
    return ran.stdout.rstrip()


@dataclass(frozen=True)
class Contender:
    """One way to do the work; `run` returns units of work done per second."""

    name: str
    run: Callable[[], float]


def timed(work: Callable[[], object], units: float) -> Callable[[], float]:
    """Turn `work`, which does `units` of something, into a rate in units per second."""

    def rate() -> float:
        start = time.perf_counter()
        work()
        return units / (time.perf_counter() - start)

    return rate


def compare(
    name: str, unit: str, ours: Contender, *others: Contender, rounds: int = 7
) -> dict[str, Any]:
    """Run all contenders in turn for `rounds` rounds, print the table, return it.

    Higher is better. The ratio is the median over rounds of ours / other of the same round.
    """
    contenders = [ours, *others]
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for contender in contenders:  # one round that does not count: caches, first imports
        contender.run()
    for _ in range(rounds):
        for contender in contenders:
            samples[contender.name].append(contender.run())
    rows = [
        {
            "name": key,
            "median": statistics.median(values),
            "lowest": min(values),
            "highest": max(values),
            "ours_ratio": statistics.median(
                mine / theirs for mine, theirs in zip(samples[ours.name], values, strict=True)
            ),
        }
        for key, values in samples.items()
    ]
    _print(name, unit, rows)
    return {"name": name, "unit": unit, "rounds": rounds, "results": rows}


def at_least(table: dict[str, Any], other: str, limit: float) -> Bar:
    """The bar of a table of `compare`: ours is at least `limit` times as fast as another."""
    ours, *rows = table["results"]
    (row,) = (row for row in rows if row["name"] == other)
    name = f"{ours['name']} / {other}"
    return Bar(name, row["ours_ratio"], "times", AT_LEAST, limit, table["rounds"])


def _print(name: str, unit: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name} ({unit}; higher is better)")
    print(f"  {'':34}{'median':>12}{'lowest':>12}{'highest':>12}   ours is")
    for row in rows:
        figures = "".join(f"{row[key]:>12,.4g}" for key in ("median", "lowest", "highest"))
        print(f"  {row['name']!s:34}{figures}   {row['ours_ratio']:.2f}x", flush=True)
