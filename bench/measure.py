"""How every bench measures: ours and its alternatives in turn, several rounds, medians, ratios.

Machines are shared and noisy. A single time says little; the median ratio of interleaved rounds
says which is faster, and by how much. Each bench prints a table and writes build/bench/NAME.json.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "build" / "bench"


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
) -> dict[str, object]:
    """Run all contenders in turn for `rounds` rounds, print the table, write the JSON, return it.

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
    result: dict[str, object] = {"bench": name, "unit": unit, "rounds": rounds, "results": rows}
    _print(name, unit, rows)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _print(name: str, unit: str, rows: list[dict[str, object]]) -> None:
    print(f"\n{name} ({unit}; higher is better)")
    print(f"  {'':34}{'median':>12}{'lowest':>12}{'highest':>12}   ours is")
    for row in rows:
        figures = "".join(f"{row[key]:>12,.4g}" for key in ("median", "lowest", "highest"))
        print(f"  {row['name']!s:34}{figures}   {row['ours_ratio']:.2f}x")
