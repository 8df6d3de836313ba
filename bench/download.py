"""How fast `appliance dataset download` is against `cp`, and what it holds in memory meanwhile.

A real control plane and the real command: text of 20 and 200 MB is uploaded once, and downloaded in
turn with `cp` of the same bytes and `sync` of the copy, because a download is on the disk, and was
read back from there, when the command ends. Peaks of memory as in `bench.upload`. The bars: the
command stays below `MAX_COMMAND` at both sizes, the control plane does not grow with the bytes,
and the larger download reaches `MIN_RATE` of `cp`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.api.access.v1 import binding_service_pb2 as bindings
from appliance.api.access.v1 import binding_service_pb2_grpc as bindings_grpc
from appliance.api.projects.v1 import project_service_pb2 as projects
from appliance.api.projects.v1 import project_service_pb2_grpc as projects_grpc
from appliance.client.connection import Connection
from bench.flood.stage import ADMINISTRATOR, PROJECT, Stage, stage
from bench.measure import AT_LEAST, AT_MOST, Bar, Outcome, run
from bench.upload import MEGABYTE, copied, corpus, log_in, sampled, uploaded

NAME = "download"
SIZES = (10_000, 100_000)
"""Documents of 2 kB."""
ROUNDS = 5
MAX_COMMAND = 100.0
"""MB of the command, whatever it downloads."""
MAX_GROWTH = 32.0
"""MB that ten times the bytes may cost the control plane more."""
MIN_RATE = 0.02
"""Of `cp`: opened, checked, hashed on both sides, synced and read back, by two cores."""
ROLE = """
exporter:
  description: Takes text out.
  scopes: [project]
  permissions: [datasets.download]
"""


@dataclass(frozen=True)
class Download:
    """One download: seconds, and the peaks of the command and of the control plane in MB."""

    seconds: float
    command: float
    control: float


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """Both sizes in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        roles = folder / "roles.yaml"
        roles.write_text(ROLE)
        roles.chmod(0o644)
        with stage(folder, roles=roles) as made:
            home = log_in(made, folder / "config")
            allow(made)
            sources = [corpus(folder / f"{size}.jsonl", size) for size in SIZES]
            for source in sources:
                uploaded(made, home, source)
            copies: dict[int, list[float]] = {size: [] for size in SIZES}
            found: dict[int, list[Download]] = {size: [] for size in SIZES}
            for _ in range(ROUNDS):
                for version, (size, source) in enumerate(zip(SIZES, sources, strict=True), 1):
                    copies[size].append(copied(source, folder / "copy"))
                    found[size].append(downloaded(made, home, version, folder / "out"))
            bytes_of = {
                size: source.stat().st_size / MEGABYTE
                for size, source in zip(SIZES, sources, strict=True)
            }
    return judged(bytes_of, copies, found)


def allow(made: Stage) -> None:
    """Let the administrator download from the project."""
    with Connection(f"127.0.0.1:{made.ports['api']}", made.ca, made.session) as connection:
        stub = connection.stub(projects_grpc.ProjectServiceStub)
        request = projects.UpdateProjectRequest(
            project={"name": f"projects/{PROJECT}", "allow_downloads": True},
            update_mask={"paths": ["allow_downloads"]},
        )
        connection.call(stub.UpdateProject, request)
        wanted = bindings.CreateBindingRequest()
        wanted.binding.principal = f"users/{ADMINISTRATOR}"
        wanted.binding.role = "roles/exporter"
        wanted.binding.scope = f"projects/{PROJECT}"
        connection.call(connection.stub(bindings_grpc.BindingServiceStub).CreateBinding, wanted)


def downloaded(made: Stage, home: Path, version: int, target: Path) -> Download:
    """Download with the command."""
    shutil.rmtree(target, ignore_errors=True)
    words = ["dataset", "download", f"raw/{version}", str(target)]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.cli.main", *words],
        env={"PATH": os.environ["PATH"], "XDG_CONFIG_HOME": str(home), "LANG": "C.UTF-8"},
        stdout=subprocess.DEVNULL,
    )
    with sampled(made, process.pid) as (own, control):
        code = process.wait()
    seconds = time.perf_counter() - begin
    if code:
        raise SystemExit(f"the download ended with {code}")
    return Download(seconds, max(own) / MEGABYTE, max(control) / MEGABYTE)


def judged(
    bytes_of: dict[int, float], copies: dict[int, list[float]], found: dict[int, list[Download]]
) -> Outcome:
    """The bars, and a table of medians."""
    rows = []
    heads = ("MB/s", "cp MB/s", "of cp", "command", "control")
    print(f"{'MB':>10}" + "".join(f"{head:>9}" for head in heads))
    for size, each in found.items():
        megabytes = bytes_of[size]
        row = {
            "megabytes": megabytes,
            "rate": statistics.median(megabytes / one.seconds for one in each),
            "copy_rate": statistics.median(megabytes / one for one in copies[size]),
            "of_copy": statistics.median(
                copy / one.seconds for copy, one in zip(copies[size], each, strict=True)
            ),
            "command": statistics.median(one.command for one in each),
            "control": statistics.median(one.control for one in each),
        }
        rows.append(row)
        figures = [row[key] for key in ("rate", "copy_rate", "of_copy", "command", "control")]
        print(f"{megabytes:10.1f}" + "".join(f"{figure:9.3g}" for figure in figures))
    small, large = SIZES
    growth = statistics.median(
        after.control - before.control
        for before, after in zip(found[small], found[large], strict=True)
    )
    worst = max(row["command"] for row in rows)
    bars = [
        Bar("memory of the command, at its worst size", worst, "MB", AT_MOST, MAX_COMMAND, ROUNDS),
        Bar("control plane, ten times the bytes", growth, "MB", AT_MOST, MAX_GROWTH, ROUNDS),
        Bar("download / cp", rows[-1]["of_copy"], "times", AT_LEAST, MIN_RATE, ROUNDS),
    ]
    return Outcome(bars, {"downloads": rows})


if __name__ == "__main__":
    sys.exit(main())
