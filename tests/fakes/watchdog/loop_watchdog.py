"""Finds what blocks an event loop: callbacks that take the loop's thread for more than 50 ms.

What counts is the thread's own time: its time on a processor, and time in which it sleeps in a
system call. Time in which it could have run and did not, because the machine was busy, does not
count (`schedstat` of proc(5)), nor does waiting for a lock (futex): that is Python's own while
another thread runs. So a noisy machine makes no finding.

A thread looks each 5 ms, and keeps the stack in which most of that time was spent. Each finding is
a line of JSON in a file of this process. It is put into processes of the product by
`sitecustomize.py`, from outside. Called by that, and by tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

MAX_MS = 50
LOOK_SECONDS = 0.005
MAX_FINDINGS = 200
_NAMES = {
    0: "read", 1: "write", 2: "open", 3: "close", 4: "stat", 5: "fstat", 6: "lstat", 7: "poll",
    17: "pread", 18: "pwrite", 35: "nanosleep", 42: "connect", 45: "recvfrom", 61: "wait4",
    74: "fsync", 75: "fdatasync", 76: "truncate", 77: "ftruncate", 78: "getdents", 82: "rename",
    83: "mkdir", 84: "rmdir", 87: "unlink", 217: "getdents", 230: "nanosleep", 257: "openat",
    262: "newfstatat", 263: "unlinkat", 264: "renameat", 285: "fallocate", 316: "renameat2",
    332: "statx", 247: "waitid", 271: "ppoll",
}  # fmt: skip
"""System calls of x86-64."""
_FUTEX, _EPOLL = 202, {232, 281, 441}
DISK = frozenset(
    {"fsync", "fdatasync", "getdents", "unlink", "unlinkat", "rmdir", "rename", "renameat"}
    | {"renameat2", "fallocate", "truncate", "ftruncate", "pwrite"}
)
_SCANS = frozenset({"rmtree", "_rmtree_safe_fd", "_rmtree_safe_fd_step", "iterdir", "scandir"})
_SCANS |= {"glob", "rglob", "walk", "listdir", "iglob"}
_STARTS = frozenset({"build"})
"""What the control plane does before it serves anybody: it may wait for its disk."""


@dataclass
class _Slot:
    """What one loop does now; `number` rises with each callback."""

    thread: int
    native: int
    number: int = 0
    inside: bool = False


@dataclass
class _Watched:
    """What was seen of one callback."""

    number: int
    cpu: int
    waited: int
    at: int
    own: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    stacks: Counter[str] = field(default_factory=Counter)
    functions: Counter[str] = field(default_factory=Counter)
    told: bool = False


class Watchdog:
    """Watches every loop of this process.

    Args:
        file: gets a line for each finding.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._slots: dict[int, _Slot] = {}
        self._seen: dict[int, _Watched] = {}
        self._told = 0
        self._stop = threading.Event()
        self._run = asyncio.Handle._run
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin: every callback of asyncio goes through here, and of uvloop every step of a task,
        timer, reader and writer; what uvloop says to protocols it calls by itself."""
        run, slots = self._run, self._slots
        ident, native = threading.get_ident, threading.get_native_id

        def watched(callback: Callable[..., Any], *arguments: Any) -> Any:
            slot = slots.get(ident())
            if slot is None:
                slot = slots[ident()] = _Slot(ident(), native())
            slot.number += 1
            slot.inside = True
            try:
                return callback(*arguments)
            finally:
                slot.inside = False

        asyncio.Handle._run = lambda handle: watched(run, handle)  # type: ignore[method-assign]
        self._new_event_loop = uvloop.new_event_loop
        uvloop.new_event_loop = _watched_loop(watched)
        self._thread.start()

    def stop(self) -> None:
        """End, and leave asyncio as it was."""
        asyncio.Handle._run = self._run  # type: ignore[method-assign]
        uvloop.new_event_loop = self._new_event_loop
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            for slot in list(self._slots.values()):
                try:
                    self._look_at(slot)
                except (OSError, ValueError):
                    self._slots.pop(slot.thread, None)  # its thread is over

    def _look_at(self, slot: _Slot) -> None:
        number, inside = slot.number, slot.inside
        if not inside:
            self._finish(slot)
            return
        cpu, waited = _times(slot.native)
        now, call = time.monotonic_ns(), _call(slot.native)
        frame = sys._current_frames().get(slot.thread)
        if slot.number != number or not slot.inside:
            self._finish(slot)
            return
        seen = self._seen.get(slot.thread)
        if seen is None or seen.number != number:
            self._finish(slot)
            self._seen[slot.thread] = _Watched(number, cpu, waited, now)
            return
        used = (cpu - seen.cpu) / 1e6
        asleep = (now - seen.at - (cpu - seen.cpu) - (waited - seen.waited)) / 1e6
        # Preempted or waiting for Python's own lock: not the loop's doing.
        own = used + (max(asleep, 0.0) if call not in {"", "futex"} else 0.0)
        seen.cpu, seen.waited, seen.at = cpu, waited, now
        if frame is not None and own > 0:
            seen.own += own
            stack = traceback.extract_stack(frame)
            text = "\n".join(
                f"{each.filename}:{each.lineno} {each.name}: {each.line}" for each in stack[-25:]
            )
            # Whole microseconds, so that a counter can hold them.
            share = int(own * 1000)
            seen.stacks[text] += share
            seen.functions.update(dict.fromkeys({each.name for each in stack}, share))
            if call:
                seen.calls[call] += share

    def _finish(self, slot: _Slot) -> None:
        seen = self._seen.pop(slot.thread, None)
        if seen is None or seen.own < MAX_MS or self._told >= MAX_FINDINGS:
            return
        self._told += 1
        most, _ = seen.stacks.most_common(1)[0]
        line = {
            "ms": round(seen.own),
            "calls": {name: share / 1000 for name, share in seen.calls.items()},
            "scan_ms": max((seen.functions[name] for name in _SCANS), default=0) / 1000,
            "starts": any(seen.functions[name] for name in _STARTS),
            "stack": most.splitlines(),
        }
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _watched_loop(watched: Callable[..., Any]) -> Callable[[], uvloop.Loop]:
    """uvloop's loop, whose callbacks go through `watched`."""

    class Loop(uvloop.Loop):
        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
            return super().call_soon(watched, callback, *args, context=context)

        def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
            return super().call_soon_threadsafe(watched, callback, *args, context=context)

        def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
            return super().call_later(delay, watched, callback, *args, context=context)

        def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
            return super().call_at(when, watched, callback, *args, context=context)

        def add_reader(self, fd: Any, callback: Any, *args: Any) -> Any:
            return super().add_reader(fd, watched, callback, *args)

        def add_writer(self, fd: Any, callback: Any, *args: Any) -> Any:
            return super().add_writer(fd, watched, callback, *args)

    return Loop


def _times(thread: int) -> tuple[int, int]:
    """Nanoseconds on a processor, and ready to be on one, of a thread of this process."""
    text = Path(f"/proc/self/task/{thread}/schedstat").read_text()
    cpu, waited, _ = text.split()
    return int(cpu), int(waited)


def _call(thread: int) -> str:
    """The system call in which a thread is; empty for none, or one that waits for events."""
    try:
        text = Path(f"/proc/self/task/{thread}/syscall").read_text()
    except PermissionError:
        # Closed to whoever may not trace it; what waits for a disk is in state D (proc(5)).
        stat = Path(f"/proc/self/task/{thread}/stat").read_text()
        return "disk" if stat.rpartition(")")[2].split()[0] == "D" else ""
    word = text.split()[0]
    if not word.isdecimal() or int(word) in _EPOLL:
        return ""
    return "futex" if int(word) == _FUTEX else _NAMES.get(int(word), word)


def watch(folder: str) -> None:
    """Watch this process; its findings lie in a file of its own in a folder."""
    name = next((each for each in sys.orig_argv if each.startswith("appliance.")), "process")
    Watchdog(Path(folder) / f"{name}.{os.getpid()}.jsonl").start()


def findings(folder: Path) -> list[dict[str, Any]]:
    """What was found by all processes, with their names."""
    return [
        {"process": path.name, **json.loads(line)}
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def is_of_disk(found: dict[str, Any]) -> bool:
    """Whether a scan, a deletion or a disk took more than 50 ms of it."""
    slept = sum(ms for name, ms in found["calls"].items() if name in DISK or name == "disk")
    return not found["starts"] and max(slept, found["scan_ms"]) > MAX_MS
