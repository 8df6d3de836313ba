"""How long the audit log takes to open, and how much memory, with up to five million records.

Logs are written here as the log itself writes them, but without a sync for each record. Each is
opened in a process of its own, which says how long `AuditLog.open` took and by how much its memory
grew. Beside it, in turn: the whole chain verified against every checkpoint that is kept, of a log
that is small enough for that; version 0.1.0 did that at each start, with more checkpoints. All
files are in the page cache.

Most logs have an open segment of 10,000 records, so that what differs is their age. One has the
longest open segment there is, with a checkpoint for each record, which a calm appliance makes.

Prints a table; `logs` in the JSON has its rows.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.control.audit.record import AuditEntry, line_of, prepare
from appliance.control.audit.segments import SEGMENT_RECORDS
from appliance.crypto.chain import CHECKPOINTS, FIRST_PREVIOUS, segment_name
from appliance.crypto.merkle import Tree, leaf_hash
from appliance.crypto.proofs import PROOF_SUFFIX, SegmentProof
from appliance.crypto.signing import SignedNote, SigningKey
from bench.measure import AT_LEAST, AT_MOST, ROOT, Bar, Outcome, run

NAME = "audit_start"
KEY = SigningKey(b"\x07" * 32)
ORIGIN = "appliance/bench/audit"
ENTRY = AuditEntry(
    "result",
    request_id="0a1b2c3d4e5f60718293a4b5c6d7e8f9",
    principal="users/alice",
    method="/appliance.api.jobs.v1.JobService/GetJob",
    resource="projects/demo/jobs/train-1",
    outcome="OK",
    source="127.0.0.1:41234",
    details={"policy_version": 12, "intent": 123456},
)
TAIL = 10_000
NOTES = 100_000
ROUNDS = 5
LONGEST, FLAT, FASTER = 5.0, 0.2, 50.0
"""Seconds; seconds; times."""
_OPEN = """
import json, sys, time
from datetime import UTC, datetime
from pathlib import Path
from appliance.control.audit.log import AuditLog
from appliance.crypto.signing import SigningKey
def kibibytes(name):
    text = Path("/proc/self/status").read_text()
    return int(text.split(name + ":", 1)[1].split()[0])
# The peak of what was imported does not count.
Path("/proc/self/clear_refs").write_text("5")
before = kibibytes("VmRSS")
begin = time.perf_counter()
log = AuditLog.open(
    Path(sys.argv[1]), SigningKey(bytes([7]) * 32), sys.argv[2], lambda: datetime.now(UTC)
)
seconds = time.perf_counter() - begin
mebibytes = (kibibytes("VmHWM") - before) / 1024
print(json.dumps({"seconds": seconds, "mebibytes": mebibytes, "records": log.size}))
log.close()
"""
_VERIFY = """
import json, sys, time
from pathlib import Path
from appliance.cli.audit_folder import AuditParts
from appliance.crypto.signing import SigningKey
begin = time.perf_counter()
parts = AuditParts()
parts.add_folder(Path(sys.argv[1]))
found, _ = parts.verify(SigningKey(bytes([7]) * 32).verify_key, None)
print(json.dumps({"seconds": time.perf_counter() - begin, "records": found.size}))
"""


@dataclass(frozen=True)
class Log:
    """A log to make: closed segments, records after them, notes of each segment and after them."""

    name: str
    closed: int
    tail: int
    notes: int
    tail_notes: int

    @property
    def records(self) -> int:
        """All of them."""
        return self.closed * SEGMENT_RECORDS + self.tail


YOUNG = Log("10 thousand", 0, TAIL, 0, 40)
LOGS = (
    YOUNG,
    Log("75 thousand", 1, TAIL, 256, 40),
    Log("1 million", 15, TAIL, 256, 40),
    Log("5 million", 76, TAIL, 256, 40),
)
COMPARED = LOGS[2]
WORST = Log(
    "5 million, 100,000 notes",
    76,
    SEGMENT_RECORDS - 1,
    (NOTES - SEGMENT_RECORDS + 1) // 76 + 1,
    SEGMENT_RECORDS - 1,
)
"""The longest open segment, each of whose records has a checkpoint."""


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """All of it, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [*LOGS, WORST]
        folders = {
            log.name: make(Path(folder) / str(number), log) for number, log in enumerate(logs)
        }
        opened: dict[str, list[dict[str, float]]] = {log.name: [] for log in logs}
        before: list[float] = []
        for _ in range(ROUNDS):
            for log in logs:
                said = child(_OPEN, folders[log.name])
                assert said["records"] == log.records
                opened[log.name].append(said)
            before.append(child(_VERIFY, folders[COMPARED.name])["seconds"])
    return judged(opened, before)


def judged(opened: dict[str, list[dict[str, float]]], before: list[float]) -> Outcome:
    """The bars, and a table of medians."""

    def median(name: str, what: str) -> float:
        return statistics.median(said[what] for said in opened[name])

    rows = [
        {"log": name, "seconds": median(name, "seconds"), "mebibytes": median(name, "mebibytes")}
        for name in opened
    ]
    print(f"{'log':28}{'seconds':>10}{'MiB':>10}")
    for row in rows:
        print(f"{row['log']:28}{row['seconds']:10.3f}{row['mebibytes']:10.1f}")
    print(f"{COMPARED.name + ', all of it':28}{statistics.median(before):10.3f}")
    oldest = LOGS[-1].name
    ages = [
        a["seconds"] - b["seconds"] for a, b in zip(opened[oldest], opened[YOUNG.name], strict=True)
    ]
    faster = [was / now["seconds"] for was, now in zip(before, opened[COMPARED.name], strict=True)]
    bars = [
        Bar(
            "5 million records, 100,000 notes",
            median(WORST.name, "seconds"),
            "s",
            AT_MOST,
            LONGEST,
            ROUNDS,
        ),
        Bar(
            "what 5 million cost more than 10,000",
            statistics.median(ages),
            "s",
            AT_MOST,
            FLAT,
            ROUNDS,
        ),
        Bar(
            f"times faster than all of it at {COMPARED.name}",
            statistics.median(faster),
            "x",
            AT_LEAST,
            FASTER,
            ROUNDS,
        ),
    ]
    return Outcome(bars, {"logs": rows, "before": before})


def make(folder: Path, log: Log) -> Path:
    """Write a log."""
    folder.mkdir(mode=0o700)
    record, tree, previous = prepare(ENTRY, datetime.now(UTC)), Tree(), FIRST_PREVIOUS
    notes: list[bytes] = []
    for number in range(log.closed + 1):
        first, closed = number * SEGMENT_RECORDS, number < log.closed
        count, wanted = (SEGMENT_RECORDS, log.notes) if closed else (log.tail, log.tail_notes)
        every = max(1, count // max(wanted, 1))
        notes = notes[-1:]
        path = folder / segment_name(first)
        with path.open("wb") as file:
            for sequence in range(first, first + count):
                line = line_of(record, sequence, previous, sequence)
                file.write(line + b"\n")
                leaf = leaf_hash(line)
                tree.append(leaf)
                previous = leaf.hex()
                if not (sequence - first + 1) % every or sequence == first + count - 1:
                    notes.append(SignedNote(ORIGIN, tree.size, tree.root()).sign(KEY))
        if closed:
            kept = notes if number == 0 else notes[1:]
            proof = SegmentProof.of(first, path.stat().st_size, tree, kept)
            path.with_suffix(PROOF_SUFFIX).write_bytes(proof.dumps())
    (folder / CHECKPOINTS).write_bytes(b"".join(note + b"\n" for note in notes))
    for path in folder.iterdir():
        path.chmod(0o600)
    return folder


def child(code: str, folder: Path) -> dict[str, float]:
    """What a process says of a log."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), ORIGIN],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    said: dict[str, float] = json.loads(done.stdout)
    return said


if __name__ == "__main__":
    sys.exit(main())
