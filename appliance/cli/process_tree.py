"""Processes below one process, and how to end them: by id, nothing else on the machine."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path


def descendants(root: int) -> list[int]:
    """Every process below `root`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            # pid (name, which may hold spaces and brackets) state ppid ...
            after = (entry / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(after[1]), []).append(int(entry.name))
    found, todo = [], list(children.get(root, ()))
    while todo:
        pid = todo.pop(0)
        found.append(pid)
        todo += children.get(pid, ())
    return found


def kill_below(root: int, *, keep: frozenset[int] = frozenset()) -> list[int]:
    """End everything below `root` but `keep` and what is below them; return what was ended."""
    kept = set(keep).union(*(descendants(pid) for pid in keep))
    ended = [pid for pid in descendants(root) if pid not in kept]
    for pid in ended:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return ended


def end(pid: int, seconds: float) -> bool:
    """Ask a process to end and wait for it; False when it has not ended in time."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)
