"""How fast `appliance dataset upload` is against `cp`, and what it holds in memory meanwhile.

A real control plane and the real command upload 1, 10 and 100 thousand documents of about 2 kB, as
one .jsonl file, in turn with `cp` of that file and `sync` of the copy, because an upload is on the
disk when it is answered. At each size the peak memory of the command is what the kernel said last;
that of the control plane is the largest that its metrics said during the upload.

Beside it a folder of 100 thousand small text files, which cost the command a name each. All files
are in the page cache. The bars: the command stays below `MAX_COMMAND` at every size, the control
plane does not grow with the documents, and the largest upload reaches `MIN_RATE` of `cp`.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.api.data.v1 import dataset_service_pb2 as datasets
from appliance.api.data.v1 import dataset_service_pb2_grpc as datasets_grpc
from appliance.client.connection import Connection
from appliance.client.profiles import Profile, Profiles
from bench.flood.stage import ADMINISTRATOR, PROJECT, Stage, stage
from bench.measure import AT_LEAST, AT_MOST, Bar, Outcome, run

NAME = "upload"
SIZES = (1_000, 10_000, 100_000)
FILES = 100_000
TEXT = 2_000
ROUNDS = 5
MAX_COMMAND = 100.0
"""MB of the command, whatever it uploads."""
MAX_GROWTH = 32.0
"""MB that ten times the documents may cost the control plane more; four parts come at a time."""
MIN_RATE = 0.02
"""Of `cp`: a copy that is checked, sealed, synced part by part and recorded, by one core."""
MEGABYTE = 1e6
SAMPLE_SECONDS = 0.02
FOLDER = "files"


@dataclass(frozen=True)
class Upload:
    """One upload: seconds, and the peaks of the command and of the control plane in MB."""

    seconds: float
    command: float
    control: float


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """All sizes in turn, in folders of their own."""
    with tempfile.TemporaryDirectory() as name, stage(Path(name)) as made:
        folder = Path(name)
        sources = {str(size): corpus(folder / f"{size}.jsonl", size) for size in SIZES}
        sources[FOLDER] = files(folder / FOLDER)
        home = log_in(made, folder / "config")
        copies: dict[str, list[float]] = {key: [] for key in sources}
        uploads: dict[str, list[Upload]] = {key: [] for key in sources}
        for _ in range(ROUNDS):
            for key, source in sources.items():
                if key != FOLDER:
                    copies[key].append(copied(source, folder / "copy"))
                uploads[key].append(uploaded(made, home, source))
        sizes = {key: source.stat().st_size for key, source in sources.items() if key != FOLDER}
    return judged(sizes, copies, uploads)


def judged(
    sizes: dict[str, int], copies: dict[str, list[float]], uploads: dict[str, list[Upload]]
) -> Outcome:
    """The bars, and a table of medians."""
    rows = []
    heads = ("MB/s", "cp MB/s", "of cp", "command", "control")
    print(f"{'documents':>10}{'MB':>8}" + "".join(f"{head:>9}" for head in heads))
    for key, found in uploads.items():
        size = sizes.get(key, 0) / MEGABYTE
        row = {
            "documents": key,
            "megabytes": size,
            "rate": statistics.median(size / each.seconds for each in found),
            "copy_rate": statistics.median(size / each for each in copies[key]) if size else 0.0,
            "of_copy": statistics.median(
                was / each.seconds for was, each in zip(copies[key], found, strict=True)
            )
            if size
            else 0.0,
            "seconds": statistics.median(each.seconds for each in found),
            "command": statistics.median(each.command for each in found),
            "control": statistics.median(each.control for each in found),
        }
        rows.append(row)
        figures = (row["rate"], row["copy_rate"], row["of_copy"], row["command"], row["control"])
        print(f"{key:>10}{size:8.1f}" + "".join(f"{figure:9.3g}" for figure in figures))
    small, large = str(SIZES[1]), str(SIZES[-1])
    growth = statistics.median(
        after.control - before.control
        for before, after in zip(uploads[small], uploads[large], strict=True)
    )
    worst = max(float(str(row["command"])) for row in rows)
    rate = next(float(str(row["of_copy"])) for row in rows if row["documents"] == large)
    bars = [
        Bar("memory of the command, at its worst size", worst, "MB", AT_MOST, MAX_COMMAND, ROUNDS),
        Bar(
            "control plane, 100,000 documents more than 10,000",
            growth,
            "MB",
            AT_MOST,
            MAX_GROWTH,
            ROUNDS,
        ),
        Bar("upload of 100,000 documents / cp", rate, "times", AT_LEAST, MIN_RATE, ROUNDS),
    ]
    return Outcome(bars, {"uploads": rows})


def corpus(path: Path, count: int) -> Path:
    """A .jsonl file of documents."""
    words = "the quick brown fox jumps over the lazy dog and comes back again "
    text = (words * (TEXT // len(words) + 1))[:TEXT]
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"id": f"document-{number}", "text": f"{number} {text}"}) + "\n")
    return path


def files(folder: Path) -> Path:
    """A folder of text files, a hundred to a folder below it."""
    for number in range(FILES):
        below = folder / f"{number // 100:04d}"
        if not number % 100:
            below.mkdir(parents=True)
        (below / f"{number}.txt").write_text(f"text {number}")
    return folder


def log_in(made: Stage, home: Path) -> Path:
    """A configuration folder of the command, and the dataset."""
    address = f"127.0.0.1:{made.ports['api']}"
    profiles = Profiles(home / "appliance")
    profile = Profile("bench", address, made.ca.decode(), project=PROJECT, user=ADMINISTRATOR)
    profiles.put(profile)
    profiles.keep_token(profile, made.session)
    with Connection(address, made.ca, made.session) as connection:
        request = datasets.CreateDatasetRequest(parent=f"projects/{PROJECT}", dataset_id="raw")
        stub = connection.stub(datasets_grpc.DatasetServiceStub)
        connection.call(stub.CreateDataset, request)
    return home


def copied(source: Path, target: Path) -> float:
    """Seconds that `cp` of a file takes until the copy is on the disk."""
    target.unlink(missing_ok=True)
    begin = time.perf_counter()
    subprocess.run(["cp", str(source), str(target)], check=True)
    subprocess.run(["sync", str(target)], check=True)
    return time.perf_counter() - begin


def uploaded(made: Stage, home: Path, source: Path) -> Upload:
    """Upload with the command."""
    command = [sys.executable, "-m", "appliance.cli.main", "dataset", "upload", "raw", str(source)]
    begin = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={"PATH": os.environ["PATH"], "XDG_CONFIG_HOME": str(home), "LANG": "C.UTF-8"},
        stdout=subprocess.DEVNULL,
    )
    with sampled(made, process.pid) as (own, control):
        code = process.wait()
    seconds = time.perf_counter() - begin
    if code:
        raise SystemExit(f"the upload ended with {code}")
    return Upload(seconds, max(own) / MEGABYTE, max(control) / MEGABYTE)


@contextlib.contextmanager
def sampled(made: Stage, command: int) -> Iterator[tuple[list[int], list[int]]]:
    """The memory of the command (its peak) and of the control plane, again and again."""
    own, control, over = [0], [made.held("control")["resident_bytes"]], threading.Event()
    status = Path(f"/proc/{command}/status")

    def look() -> None:
        while not over.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError):
                _, there, peak = status.read_text().partition("VmHWM:")
                own.append(int(peak.split()[0]) * 1024 if there else 0)
            control.append(made.held("control")["resident_bytes"])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield own, control
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
