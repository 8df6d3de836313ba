"""Process trees as the kernel shows them, and how to end one whole.

Rules kept here:
* a process is known by its number and its start time: a number that was given to another process is
  never signalled;
* a tree is the session of its root, the root's descendants, and everything that was seen in the
  tree before: a process that left the session and lost its parent is still found;
* to end a tree is to kill until none is left.

Called by the launcher. Reads proc(5).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
KILL_SECONDS = 10.0
_ROUND_SECONDS = 0.02


@dataclass(frozen=True)
class Process:
    """A process: its number and when it started, in clock ticks since boot."""

    pid: int
    started: int


@dataclass(frozen=True)
class _Entry:
    process: Process
    parent: int
    session: int
    state: str


def _entry(pid: int) -> _Entry | None:
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name stands in parentheses and may hold anything, also parentheses.
    fields = stat.rpartition(")")[2].split()
    return _Entry(Process(pid, int(fields[19])), int(fields[1]), int(fields[3]), fields[0])


def _entries() -> list[_Entry]:
    found = (_entry(int(path.name)) for path in PROC.iterdir() if path.name.isdigit())
    return [entry for entry in found if entry is not None]


def tree(root: int, known: Iterable[Process] = ()) -> set[Process]:
    """All live processes of the tree of session leader `root`.

    The root must not have been collected. Those `known` that still live are among them.
    """
    entries = {entry.process.pid: entry for entry in _entries()}
    before = set(known)
    members = {
        pid
        for pid, entry in entries.items()
        if root in {entry.session, pid} or entry.process in before
    }
    grown = True
    while grown:
        children = {pid for pid, entry in entries.items() if entry.parent in members}
        grown = not children <= members
        members |= children
    return {entries[pid].process for pid in members if entries[pid].state not in "ZX"}


def kill_tree(root: int, known: Iterable[Process] = ()) -> bool:
    """Kill a tree and everything `known` of it.

    Returns whether none of it is left; blocks for a moment.
    """
    end = time.monotonic() + KILL_SECONDS
    members = set(known)
    while True:
        alive = tree(root, members)
        if not alive:
            return True
        members |= alive
        for process in alive:
            _kill(process)
        _reap(members, root)
        if time.monotonic() > end:
            return False
        time.sleep(_ROUND_SECONDS)


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        try:
            # The descriptor holds the process that has the number now; only then is it compared.
            entry = _entry(process.pid)
            if entry is not None and entry.process == process:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _reap(members: Iterable[Process], root: int) -> None:
    """Collect adopted orphans; the root itself is collected by whoever started it."""
    for process in members:
        if process.pid != root:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
