"""Find the processes of a piece of work from outside, as `ps` shows them."""

from __future__ import annotations

from pathlib import Path


def ranks_of(job_uid: str) -> list[int]:
    """Process ids of the ranks of a job: what its leader has forked."""
    found = _with_arguments("appliance.jobs", job_uid)
    parents = _parents()
    return sorted(pid for pid in found if parents.get(pid) in found)


def workers_of(endpoint_uid: str) -> list[int]:
    """Process ids of the workers of an endpoint: what the node started, without their engines."""
    found = _with_arguments("appliance.worker", endpoint_uid)
    parents = _parents()
    return sorted(pid for pid in found if parents.get(pid) not in found)


def _with_arguments(*words: str) -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if all(word in arguments for word in words):
            found.add(int(folder.name))
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    return parents
