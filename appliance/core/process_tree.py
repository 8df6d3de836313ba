"""Process trees as the kernel shows them, and how to end processes: by number, nothing else.

Rules kept here:
* a process is known by its number and its start time, and is signalled through a descriptor of
  itself (pidfd_open(2)): a number that was given to another process is never signalled;
* `descendants` are all below a process; a `tree` is the session of its root, the root's
  descendants, and everything that was seen in the tree before: a process that left the session and
  lost its parent is still found;
* to end a tree is to kill until none is left.

Nothing here asks for a process by name. Reads proc(5), Linux only. Called by the launcher of the
agent, the supervisor and `down` of the command, workers, leaders of jobs, and the benches.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
KILL_SECONDS = 10.0
_ROUND_SECONDS = 0.02
_ENDED = "ZX"


@dataclass(frozen=True)
class Process:
    """A process: its number and when it started, in clock ticks since boot."""

    pid: int
    started: int


@dataclass(frozen=True)
class _Stat:
    process: Process
    parent: int
    session: int
    ended: bool


def _stat(pid: int) -> _Stat | None:
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name stands in parentheses and may hold anything, also parentheses.
    fields = stat.rpartition(")")[2].split()
    return _Stat(Process(pid, int(fields[19])), int(fields[1]), int(fields[3]), fields[0] in _ENDED)


def _stats() -> dict[int, _Stat]:
    found = (_stat(int(path.name)) for path in PROC.iterdir() if path.name.isdecimal())
    return {stat.process.pid: stat for stat in found if stat is not None}


def children(parent: int) -> list[int]:
    """Processes that `parent` has started and not collected, in the order of their numbers."""
    return sorted(pid for pid, stat in _stats().items() if stat.parent == parent)


def session(leader: int) -> list[int]:
    """Live processes of the session of `leader`, in the order of their numbers."""
    return sorted(
        pid for pid, stat in _stats().items() if stat.session == leader and not stat.ended
    )


def descendants(root: int) -> list[int]:
    """Every process below `root`, parents before children, also what nobody has collected."""
    return [process.pid for process in _below([root], _stats())]


def _below(roots: Iterable[int], stats: dict[int, _Stat]) -> list[Process]:
    """Everything below some processes that is not one of them."""
    started: dict[int, list[Process]] = {}
    for stat in stats.values():
        started.setdefault(stat.parent, []).append(stat.process)
    todo = list(roots)
    seen, found = set(todo), []
    while todo:
        for process in started.get(todo.pop(0), ()):
            if process.pid not in seen:
                seen.add(process.pid)
                found.append(process)
                todo.append(process.pid)
    return found


def kill_below(root: int, *, keep: frozenset[int] = frozenset()) -> list[int]:
    """Kill everything below `root` but `keep` and what is below them; return what was killed."""
    stats = _stats()
    kept = keep | {process.pid for process in _below(keep, stats)}
    ended = [process for process in _below([root], stats) if process.pid not in kept]
    for process in ended:
        _signal(process, signal.SIGKILL)
    return [process.pid for process in ended]


def end(pid: int, seconds: float, number: signal.Signals = signal.SIGTERM) -> bool:
    """Ask a process to end and wait for it; False when it has not ended in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def kill_children(pids: Iterable[int]) -> None:
    """Kill children of this process; those that it has collected already are left alone."""
    for pid in pids:
        # Of one that was collected, somebody else may have the number by now.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            os.kill(pid, signal.SIGKILL)


def tree(root: int, known: Iterable[Process] = ()) -> set[Process]:
    """All live processes of the tree of session leader `root`.

    The root must not have been collected. Those `known` that still live are among them.
    """
    stats = _stats()
    before = set(known)
    members = {
        pid for pid, stat in stats.items() if root in {stat.session, pid} or stat.process in before
    }
    members |= {process.pid for process in _below(members, stats)}
    return {stats[pid].process for pid in members if not stats[pid].ended}


def kill_tree(root: int, known: Iterable[Process] = ()) -> bool:
    """Kill a tree and everything `known` of it.

    Returns whether none of it is left; blocks for a moment.
    """
    end_at = time.monotonic() + KILL_SECONDS
    members = set(known)
    while True:
        alive = tree(root, members)
        if not alive:
            return True
        members |= alive
        for process in alive:
            _signal(process, signal.SIGKILL)
        _reap(members, root)
        if time.monotonic() > end_at:
            return False
        time.sleep(_ROUND_SECONDS)


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        try:
            # The descriptor holds the process that has the number now; only then is it compared.
            stat = _stat(process.pid)
            if stat is not None and stat.process == process:
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _reap(members: Iterable[Process], root: int) -> None:
    """Collect adopted orphans; the root itself is collected by whoever started it."""
    for process in members:
        if process.pid != root:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
