"""How long the command takes to answer a person: help, a list, a completion.

Each is held against `python -c pass` in turn: what the interpreter itself needs. The list and the
completion of names call a server on loopback that answers at once; what they take is the command's.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.client.profiles import Profile, Profiles
from bench.measure import AT_MOST, Bar, Outcome, run
from tests.fakes.control_api import FakeApi, serving_api

NAME = "cli"
ROUNDS = 15
JOBS = 50
MAX_RATIO = {"help": 4.0, "completion of options": 5.0, "list": 10.0, "completion of names": 12.0}
"""Times that of `python -c pass`."""
PROGRAM = Path(sys.executable).with_name("appliance")


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """Medians of each, and their ratios to the interpreter alone."""
    with serving_api() as api, tempfile.TemporaryDirectory() as home:
        _log_in(api, Path(home))
        environment = {**os.environ, "XDG_CONFIG_HOME": home}
        seconds = _alternated(_commands(), environment)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    alone = seconds["python"]
    ratios = {
        name: statistics.median(one / base for one, base in zip(times, alone, strict=True))
        for name, times in seconds.items()
    }
    for name, median in medians.items():
        print(f"  {name:24}{median * 1000:8.0f} ms {ratios[name]:8.1f} x")
    bars = [
        Bar(f"{name}, against python -c pass", ratios[name], "x", AT_MOST, limit, ROUNDS)
        for name, limit in MAX_RATIO.items()
    ]
    return Outcome(bars, {"seconds": medians, "ratios": ratios})


def _commands() -> dict[str, tuple[Sequence[str], Mapping[str, str]]]:
    """Command line and variables of each."""

    def completing(words: str) -> Mapping[str, str]:
        return {
            "_APPLIANCE_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }

    return {
        "python": ((sys.executable, "-c", "pass"), {}),
        "help": ((str(PROGRAM), "--help"), {}),
        "completion of options": ((str(PROGRAM),), completing("appliance job list --fi")),
        "list": ((str(PROGRAM), "job", "list"), {}),
        "completion of names": ((str(PROGRAM),), completing("appliance job get job-1")),
    }


def _log_in(api: FakeApi, home: Path) -> None:
    profiles = Profiles(home / "appliance")
    profile = Profile("here", api.address, api.ca_pem.decode(), project="demo", user="alice")
    profiles.put(profile)
    profiles.keep_token(profile, "token")
    api.answers["JobService.ListJobs"] = job_service_pb2.ListJobsResponse(
        jobs=[
            job_pb2.Job(name=f"projects/demo/jobs/job-{number}", state="STATE_RUNNING")
            for number in range(JOBS)
        ]
    )


def _alternated(
    commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], environment: Mapping[str, str]
) -> dict[str, list[float]]:
    """Seconds of each in turn; the first round, which fills caches, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(ROUNDS + 1):
        for name, (words, more) in commands.items():
            begin = time.perf_counter()
            done = subprocess.run(
                words, env={**environment, **more}, capture_output=True, check=True, timeout=60
            )
            if number:
                seconds[name].append(time.perf_counter() - begin)
            if name != "python" and not done.stdout:
                raise RuntimeError(f"{name} printed nothing: {done.stderr!r}")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
