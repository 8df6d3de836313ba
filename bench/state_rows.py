"""What it costs that rows of the state are believed only with a MAC.

Two databases with the same 50,000 sessions and 50,000 bindings, one protected and one not, asked in
turn: a session looked up by key, all bindings, and a transaction that changes a session. Beside
them: how long the start takes to verify every row, and the memory that it keeps, in a process of
its own.

Prints a table; `seconds` in the JSON has its rows.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance.control.store import migrate, tables
from appliance.control.store.database import Database
from appliance.control.store.rows import RowMacs
from bench.measure import AT_MOST, ROOT, Bar, Outcome, run

NAME = "state_rows"
KEY = b"r" * 32
ROWS = 50_000
ROUNDS = 7
LOOKUPS, CHANGES = 500, 20
LOOKUP, CHANGE, START, MEMORY = 2.0, 2.0, 3.0, 100.0
"""Times; times; seconds; MiB."""
_LOAD = """
import json, sys, time
from pathlib import Path
from appliance.control.store import migrate
from appliance.control.store.database import Database
from appliance.control.store.rows import RowMacs
def kibibytes(name):
    text = Path("/proc/self/status").read_text()
    return int(text.split(name + ":", 1)[1].split()[0])
before, begin = kibibytes("VmRSS"), time.perf_counter()
found = migrate.check(Database(Path(sys.argv[1])), RowMacs(b"r" * 32), "bench", signed=True)
seconds = time.perf_counter() - begin
print(json.dumps({"seconds": seconds, "mebibytes": (kibibytes("VmRSS") - before) / 1024}))
assert not found
"""


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """All of it, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = _made(Path(folder, "ours"), True), _made(Path(folder, "plain"), False)
        seconds: dict[str, dict[str, float]] = {}
        for name, work in (
            ("a session by key", _look_up),
            ("all bindings", _read_all),
            ("a change of a session, committed", _change),
        ):
            seconds[name] = _in_turn(work, ours, plain)
        ours.close()
        plain.close()
        starts = [_load(ours.path) for _ in range(ROUNDS)]
    start = statistics.median(each["seconds"] for each in starts)
    memory = statistics.median(each["mebibytes"] for each in starts)
    for name, row in seconds.items():
        print(
            f"{name:<36}{1e3 * row['ours']:>10.3f} ms{1e3 * row['plain']:>10.3f} ms plain"
            f"{row['ratio']:>8.2f} times"
        )
    print(f"{2 * ROWS:,} rows verified at the start{start:>14.2f} s{memory:>10.1f} MiB")
    lookup, change = (
        seconds[name]["ratio"] for name in ("a session by key", "a change of a session, committed")
    )
    bars = [
        Bar("a session by key, protected / not", lookup, "times", AT_MOST, LOOKUP, ROUNDS),
        Bar("a committed change, protected / not", change, "times", AT_MOST, CHANGE, ROUNDS),
        Bar(f"a start with {2 * ROWS:,} rows", start, "s", AT_MOST, START, ROUNDS),
        Bar(f"memory for {2 * ROWS:,} rows", memory, "MiB", AT_MOST, MEMORY, ROUNDS),
    ]
    figures = {"rows": 2 * ROWS, "seconds": seconds, "start": start, "mebibytes": memory}
    return Outcome(bars, figures)


def _made(folder: Path, protected: bool) -> Database:  # noqa: FBT001 - one of two
    folder.mkdir()
    now = datetime.now(UTC)
    database = Database(folder / "state.db")
    migrate.create(database, RowMacs(KEY), "bench", now)
    if not protected:
        database.close()
        database = Database(database.path)
    with database.write() as transaction:
        transaction.run(tables.user.insert().values(id="u", password_hash="h", create_time=now))
        for number in range(ROWS):
            transaction.run(
                tables.session.insert().values(
                    id=f"s{number}",
                    user="u",
                    digest=b"d" * 32,
                    step="COMPLETE",
                    create_time=now,
                    expire_time=now + timedelta(hours=12),
                    seen_time=now,
                    source="ipv4:127.0.0.1:4000",
                )
            )
            transaction.run(
                tables.binding.insert().values(
                    id=f"b{number}",
                    subject=f"user:u{number}",
                    role="viewer",
                    domain="demo",
                    creator="users/root",
                    create_time=now,
                )
            )
    return database


def _in_turn(
    work: Callable[[Database, int], float], ours: Database, plain: Database
) -> dict[str, float]:
    """Medians of one call each, and of their ratio."""
    pairs = [(work(ours, number), work(plain, number)) for number in range(ROUNDS)]
    return {
        "ours": statistics.median(one for one, _ in pairs),
        "plain": statistics.median(other for _, other in pairs),
        "ratio": statistics.median(one / other for one, other in pairs),
    }


def _look_up(database: Database, number: int) -> float:
    wanted = [
        tables.session.select().where(tables.session.c.id == f"s{number * LOOKUPS + each}")
        for each in range(LOOKUPS)
    ]
    begin = time.perf_counter()
    for statement in wanted:
        with database.read() as state:
            assert state.first(statement) is not None
    return (time.perf_counter() - begin) / LOOKUPS


def _read_all(database: Database, _number: int) -> float:
    begin = time.perf_counter()
    with database.read() as state:
        assert len(state.all(tables.binding.select())) == ROWS
    return time.perf_counter() - begin


def _change(database: Database, number: int) -> float:
    session = tables.session
    begin = time.perf_counter()
    for each in range(CHANGES):
        with database.write() as transaction:
            this = session.c.id == f"s{number * CHANGES + each}"
            transaction.run(session.update().where(this).values(failures=number + 1))
    return (time.perf_counter() - begin) / CHANGES


def _load(path: Path) -> dict[str, float]:
    command = [sys.executable, "-c", _LOAD, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
