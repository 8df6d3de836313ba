"""Twelve floods against a real control plane and a real gateway: who else notices?

Each flood comes from one process on one core, at a fixed rate, from a source of its own, over
loopback. A well-behaved caller's p99 with it and without it, in turn; audit records it causes; what
the flooded process holds when it has settled; its memory after ten rounds against that after two.
Threads of pools, which are made when they are first needed, are made before all of it.
Records that are counted by the minute come after the last flood, and have a bar of their own. The
last columns say what a caller with a token sees who shares the flooder's address: its lost calls
are named at the end and have no bar, since callers at one address share its places.
`cpu %` is the processor time of the flooded process during the flood, which other work on the
machine does not change.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.flood import flooder
from bench.flood.caller import Caller, caller_of
from bench.flood.floods import EVERY, FLOODS, Flood
from bench.flood.stage import Stage, stage
from bench.measure import AT_MOST, Bar, Outcome, run

NAME = "flood"
ROUNDS = 10
SHARED_ROUNDS = 1
QUIET_SECONDS = 1.5
SETTLE_SECONDS, MAX_SETTLE_SECONDS = 10.0, 90.0
"""Memory has settled when it has not fallen for so long. Silent connections are closed after a
minute, and hold some until then."""
CROWD = 64
"""Calls at once that make every thread of a pool."""
WARM_UP = 2
"""Rounds before those that count: memory after them is held against memory at the end."""
STRANGER, NEIGHBOUR = "127.0.0.2", "127.0.0.1"
"""The flooder's address: one of its own, or the caller's."""
MAX_RATIO, MAX_RECORDS, MAX_GROWTH, MAX_LOG = 3.0, 100, 1.1, 100_000
MAX_LATE = 10
"""Records of the minute after all floods: one for each process and source that was counted."""
SLACK = {"tasks": 2, "threads": 2, "descriptors": 2}
"""What may be more afterwards: the connection that asks, and a call that is under way."""

Row = dict[str, Any]


def main() -> int:
    """Run the floods that the command line names."""
    parser = argparse.ArgumentParser(prog="bench.flood", description="Flood an appliance.")
    parser.add_argument("floods", nargs="*", metavar="FLOOD", help="which floods; all by default")
    parser.add_argument("--listener", action="append", choices=EVERY, help="only this one")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS} by default")
    options = parser.parse_args()
    known = [flood.name for flood in FLOODS]
    unknown = sorted(set(options.floods) - set(known))
    if unknown:
        parser.error(f"no flood named {', '.join(unknown)}; there are: {', '.join(known)}")
    names, listeners = options.floods or known, options.listener or EVERY
    return run(NAME, lambda: measure(names, listeners, options.rounds))


def measure(names: Sequence[str], listeners: Sequence[str], rounds: int) -> Outcome:
    """Run floods, and print the table as it grows."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, stage(Path(folder)) as made:
        for listener in listeners:
            asyncio.run(_fill_pools(made, listener))
        made.strangers_records()
        print(f"{rounds} rounds each; milliseconds of the well-behaved caller")
        print(_line(_HEAD), flush=True)
        for flood in FLOODS:
            for listener in flood.listeners:
                if flood.name in names and listener in listeners:
                    rows.append(_flooded(made, flood, listener, rounds))
                    print(_line(_cells(rows[-1])), flush=True)
        # What is counted by the minute comes a minute later.
        time.sleep(65.0)
        late = made.strangers_records()
    missed = misses(rows, late)
    print(f"records that came in the minute after the last flood: {late}")
    print("calls lost at the flooder's address (no bar):", *(notes(rows) or ["none"]), sep="\n  ")
    print("bars missed:", *(missed or ["none"]), sep="\n  ")
    return Outcome(bars(rows, late, rounds), {"records_late": late, "rows": rows})


def bars(rows: Sequence[Row], late: int, rounds: int) -> list[Bar]:
    """The worst row of each figure, and the records that came late."""
    found = []
    figures: tuple[tuple[str, str, float, Callable[[Row], float]], ...] = (
        ("p99 of others, with / without it", "times", MAX_RATIO, lambda row: row["ratio"]),
        ("calls of others lost", "calls", 0, lambda row: row["lost"]),
        ("records", "records", MAX_RECORDS, lambda row: row["records"]),
        ("memory afterwards / before", "times", MAX_GROWTH, lambda row: row["growth"]),
        ("log", "bytes", MAX_LOG, lambda row: row["log_bytes"]),
        *((f"{name} more", name, slack, partial(_more, name)) for name, slack in SLACK.items()),
    )
    for what, unit, limit, value in figures:
        worst = max(rows, key=value)
        place = f"{what}: {worst['flood']} {worst['listener']}"
        found.append(Bar(place, value(worst), unit, AT_MOST, limit, rounds))
    # Counted once for all floods, over all their rounds.
    found.append(Bar("records of the minute after", late, "records", AT_MOST, MAX_LATE, rounds))
    return found


def _more(name: str, row: Row) -> float:
    return float(row["after"][name] - row["before"][name])


def misses(rows: Sequence[Row], late: int) -> list[str]:
    """All bars that are missed: those of the rows, and that of the records that came late."""
    found = [f"{row['flood']} {row['listener']}: {bar}" for row in rows for bar in row["missed"]]
    if late > MAX_LATE:
        found.append(f"{late} records in the minute after the last flood")
    return found


def notes(rows: Sequence[Row]) -> list[str]:
    """What callers lost who share the flooder's address."""
    return [
        f"{row['flood']} {row['listener']}: {row['shared_lost']} of {row['shared_calls']}"
        for row in rows
        if row["shared_lost"]
    ]


def _flooded(made: Stage, flood: Flood, listener: str, rounds: int) -> Row:
    """One row of the table."""
    process = made.process_of(listener)
    with _flooder(made, flood, listener) as link:
        for _ in range(WARM_UP):
            asyncio.run(_round(made, flood, listener, link, STRANGER))
        before = _settled(made, process)
        records, log = made.strangers_records(), made.log_bytes()
        quiet: list[float] = []
        loud: list[float] = []
        lost: list[str] = []
        memory = [before["resident_bytes"]]
        tally: dict[str, float] = {}
        for _ in range(rounds):
            found = asyncio.run(_round(made, flood, listener, link, STRANGER))
            quiet += found[0]
            loud += found[1]
            lost += found[2]
            tally = {key: tally.get(key, 0) + value for key, value in found[3].items()}
            memory.append(made.held(process)["resident_bytes"])
        after = _settled(made, process)
        records, log = made.strangers_records(), made.log_bytes() - log
        shared = [
            asyncio.run(_round(made, flood, listener, link, NEIGHBOUR))
            for _ in range(SHARED_ROUNDS)
        ]
        made.strangers_records()  # What the neighbour is told is not counted.
    row: Row = {
        "flood": flood.name,
        "listener": listener,
        "acts_per_second": tally["acts"] / tally["seconds"],
        "cpu_share": tally["cpu"] / tally["seconds"],
        "memory": memory,
        "tally": tally,
        "samples": [len(quiet), len(loud)],
        "quiet_p99": 1e3 * _p99(quiet),
        "flooded_p99": 1e3 * _p99(loud),
        "flooded_p50": 1e3 * statistics.median(loud),
        "lost": len(lost),
        "why_lost": sorted(set(lost))[:5],
        "records": records,
        "log_bytes": log,
        "before": before,
        "after": after,
        "growth": after["resident_bytes"] / before["resident_bytes"],
        "shared_p99": 1e3 * _p99([each for found in shared for each in found[1]]),
        "shared_lost": sum(len(found[2]) for found in shared),
        "shared_calls": sum(len(found[1]) for found in shared),
    }
    return {**row, "ratio": row["flooded_p99"] / row["quiet_p99"], "missed": _missed(row)}


def _settled(made: Stage, process: str) -> dict[str, int]:
    """What a process holds when its memory falls no more."""
    end = time.monotonic() + MAX_SETTLE_SECONDS
    held = made.held(process)
    while True:
        time.sleep(SETTLE_SECONDS)
        later = made.held(process)
        fallen = later["resident_bytes"] < 0.99 * held["resident_bytes"]
        held = later
        if not fallen or time.monotonic() > end:
            return held


async def _fill_pools(made: Stage, listener: str) -> None:
    caller = caller_of(made, listener)
    for _ in range(2):
        calls = (caller.call(fresh=False) for _ in range(CROWD))
        await asyncio.gather(*calls, return_exceptions=True)
    await caller.close()


def _missed(row: Row) -> list[str]:
    """The bars that a row misses."""
    ratio = row["flooded_p99"] / row["quiet_p99"]
    bars = {
        f"p99 {ratio:.1f} times": ratio > MAX_RATIO,
        f"{row['lost']} calls lost": row["lost"] > 0,
        f"{row['records']} records": row["records"] > MAX_RECORDS,
        f"memory {row['growth']:.2f} times": row["growth"] > MAX_GROWTH,
        f"{row['log_bytes']} bytes of log": row["log_bytes"] > MAX_LOG,
    }
    for name, slack in SLACK.items():
        bars[f"{name} {row['before'][name]} to {row['after'][name]}"] = (
            row["after"][name] > row["before"][name] + slack
        )
    return [bar for bar, is_missed in bars.items() if is_missed]


async def _round(
    made: Stage, flood: Flood, listener: str, link: Connection, source: str
) -> tuple[list[float], list[float], list[str], dict[str, float]]:
    """Times without the flood and with it, what was lost in it, and what the flooder says."""
    caller: Caller = caller_of(made, listener)
    # A pause of this process to search its memory is none of the server's.
    gc.collect()
    gc.disable()
    try:
        quiet = await caller.measure(QUIET_SECONDS)
        if caller.lost:
            raise SystemExit(f"calls are lost without any flood: {caller.lost[0]}")
        link.send(("start", source))
        taken = made.cpu_seconds(made.process_of(listener))
        loud = await caller.measure(flood.seconds)
        taken = made.cpu_seconds(made.process_of(listener)) - taken
        link.send(("stop",))
        tally = {**await asyncio.to_thread(link.recv), "cpu": taken}
        await asyncio.sleep(0.5)
    finally:
        gc.enable()
        await caller.close()
    return quiet, loud, caller.lost, tally


@contextmanager
def _flooder(made: Stage, flood: Flood, listener: str) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (made.target(listener), flood.act, flood.rate, flood.most, there)
    process = context.Process(target=flooder.serve, args=arguments)
    process.start()
    try:
        yield here
        here.send(("end",))
        process.join(10)
    finally:
        process.kill()
        process.join()


def _p99(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


_HEAD = (
    *("flood", "listener", "acts/s", "cpu %", "quiet p99", "flooded", "ratio", "lost", "records"),
    *("log kB", "tasks", "fds", "threads", "memory", "shared p99", "lost"),
)
_WIDTHS = (20, 9, 8, 7, 10, 9, 7, 6, 9, 8, 12, 12, 9, 8, 11, 9)


def _cells(row: Row) -> tuple[str, ...]:
    def change(name: str) -> str:
        return f"{row['before'][name]}>{row['after'][name]}"

    return (
        row["flood"],
        row["listener"],
        f"{row['acts_per_second']:.0f}",
        f"{100 * row['cpu_share']:.0f}",
        f"{row['quiet_p99']:.1f}",
        f"{row['flooded_p99']:.1f}",
        f"{row['ratio']:.2f}",
        str(row["lost"]),
        str(row["records"]),
        f"{row['log_bytes'] / 1e3:.1f}",
        change("tasks"),
        change("descriptors"),
        change("threads"),
        f"{row['growth']:.2f}",
        f"{row['shared_p99']:.1f}",
        f"{row['shared_lost']}/{row['shared_calls']}",
    )


def _line(cells: Sequence[str]) -> str:
    return "".join(
        cell.ljust(width) if number < 2 else cell.rjust(width)
        for number, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    )
