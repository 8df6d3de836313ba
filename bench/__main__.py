"""Run every bench, or those that are named: `python -m bench flood hostile_text`.

Each runs in a process of its own, ends by the limit that it prints, and is ended a little later if
it does not. At the end stands one table of all bars.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from appliance.core.process import adopt_orphans
from appliance.core.process_tree import kill_below
from bench.measure import LIMITS, RESULTS, did_not_end, line_of

GRACE_SECONDS = 60.0
"""For a bench to end what it started when its time is over."""


def main(arguments: Sequence[str]) -> int:
    """Run the named benches in order; 1 when a bar does not hold, 2 for an unknown name."""
    names = [name for text in arguments for name in re.split(r"[,\s]+", text) if name]
    unknown = sorted(set(names) - set(LIMITS))
    if unknown:
        print(f"no bench named {', '.join(unknown)}; there are: {', '.join(LIMITS)}")
        return 2
    # What a bench leaves behind becomes a child of this process, and is ended.
    adopt_orphans()
    bars = {
        name: bars_of(name, [sys.executable, "-m", f"bench.{name}"], LIMITS[name] + GRACE_SECONDS)
        for name in names or LIMITS
    }
    print(table(bars), flush=True)
    return int(not all(bar["holds"] for found in bars.values() for bar in found))


def bars_of(name: str, command: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """Run a bench for so long at most, and end all it has started.

    Its bars; one that says why there are none.
    """
    result = RESULTS / f"{name}.json"
    result.unlink(missing_ok=True)
    process = subprocess.Popen(command)
    try:
        code = process.wait(seconds)
        why = f"it ended with {code} and no figures"
    except subprocess.TimeoutExpired:
        why = "it did not end and was ended"
    finally:
        kill_below(os.getpid())
        process.wait()
    if result.exists():
        bars: list[dict[str, Any]] = json.loads(result.read_text())["bars"]
        return bars
    return [did_not_end(why, seconds).as_json()]


def table(bars: dict[str, list[dict[str, Any]]]) -> str:
    """All bars of all benches, a line each."""
    lines = [f"{name:16}{line_of(bar)}" for name, found in bars.items() for bar in found]
    missed = sum(not bar["holds"] for found in bars.values() for bar in found)
    return "\n".join(["", "all bars", *lines, f"{missed} of {len(lines)} missed"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
