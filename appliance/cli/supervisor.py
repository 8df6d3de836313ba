"""Runs the processes of an appliance on one machine: starts, watches, restarts, ends them.

Rules kept here: control plane and gateway stay up whatever a node does; one of these two that ends
before it ever served ends everything, with its last words; a node that does, and whatever ends
later, is started again after 1, 2, 4 ... 30 s; what the supervisor started ends with it, whole
trees and also when it is killed; nothing else is touched.

The control plane is asked at its first start to give node and gateway what they need to call; what
it says that it has done is passed on.

`appliance up` runs it in the terminal; `up --detach` runs `python -m appliance.cli.supervisor` in a
session of its own and reads from a pipe how the start goes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from appliance.cli.local import Local, Program, cut_log, log_file
from appliance.client.health import check
from appliance.core.addresses import check_free
from appliance.core.errors import ApplianceError, FailedPrecondition, Unavailable, Untrusted
from appliance.core.files import open_private
from appliance.core.process import adopt_orphans, die_with_parent, leave_no_core, signal_name
from appliance.core.process_tree import descendants, kill_below
from appliance.core.waiting import grown

START_SECONDS = 120.0
NODE_SECONDS = 45.0
"""Time that a start waits for a node; without it the appliance is up too."""
GRACE_SECONDS = 20.0
LOG_SECONDS = 60.0
"""Time between two looks at how large the logs are."""
STEADY_SECONDS = 60.0
FIRST_PAUSE, MAX_PAUSE = 1.0, 30.0
SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Say = Callable[[str], None]


class Stopped(Exception):
    """Somebody asked the supervisor to end."""


@dataclass
class Child:
    """A program and its process."""

    program: Program
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    restart_at: float | None = None
    ended: int | None = field(default=None)

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.ended is None


class Supervisor:
    """Runs one appliance, with or without its node; `say` gets a line for what happens."""

    def __init__(self, local: Local, say: Say, *, node: bool = True) -> None:
        self._local = local
        self._say = say
        self._children = [Child(program) for program in local.programs(node=node)]

    def run(self, on_ready: Callable[[], None]) -> None:
        """Start everything, call `on_ready`, go on until a signal asks to end.

        Raises:
            FailedPrecondition: it runs already, a port is taken, or a vital process ended at its
                start.
            Unavailable: a vital process did not serve in time; Untrusted when something else
                answered in its place. In every case nothing is left running.
        """
        with self._local.only_one():
            for child in self._children:
                for address, setting in child.program.listens:
                    check_free(address, setting)
            adopt_orphans()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                self._start_all()
                on_ready()
                self._watch()
            except Stopped:
                self._say("stopping")
            finally:
                self._end_all()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _start_all(self) -> None:
        control, *others = self._children
        with os.fdopen(os.memfd_create("answer"), "w+b") as answer:
            wanted = [f"--prepare={child.program.name}" for child in others]
            self._start(control, wanted, answer)
            self._wait_until_serving(control, START_SECONDS)
            self._pass_on(answer)
        for child in others:
            self._start(child)
        for child in sorted(others, key=lambda child: not child.program.vital):
            try:
                self._wait_until_serving(
                    child, START_SECONDS if child.program.vital else NODE_SECONDS
                )
            except ApplianceError as error:
                if child.program.vital:
                    raise
                self._say(f"the rest of the appliance is up, but {error.message}")

    def _pass_on(self, answer: BinaryIO) -> None:
        """Say what the control plane has done for the others."""
        answer.seek(0)
        for line in answer:
            # Libraries may print too.
            with contextlib.suppress(ValueError, TypeError, KeyError):
                for done in json.loads(line)["prepared"]:
                    self._say(done)

    def _start(
        self, child: Child, more: Iterable[str] = (), answer: BinaryIO | None = None
    ) -> None:
        """Start it, with `more` arguments; what it prints goes to `answer` or its log."""
        program = child.program
        arguments = [sys.executable, "-P", "-m", f"appliance.{program.name}", *more]
        with log_file(self._local.log(program.name)) as log:
            child.process = subprocess.Popen(
                [*arguments, "--config", str(program.config)],
                cwd=self._local.path,
                stdin=subprocess.DEVNULL,
                stdout=answer or log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                preexec_fn=_as_child(os.getpid()),  # noqa: PLW1509 - there is one thread
            )
        child.started, child.ended, child.restart_at = time.monotonic(), None, None
        pid_file = self._local.run / f"{program.name}.pid"
        with os.fdopen(open_private(pid_file, os.O_WRONLY | os.O_TRUNC), "w") as file:
            file.write(str(child.process.pid))

    def _wait_until_serving(self, child: Child, seconds: float) -> None:
        """Wait until it serves, and say so; raises as `run` does."""
        ca = child.program.ca.read_bytes() if child.program.ca else None
        end = time.monotonic() + seconds
        while True:
            self._wait_for_signal(0.3)
            if child.ended is not None:
                raise FailedPrecondition(self._last_words(child))
            try:
                check(child.program.health, ca, server=child.program.server, timeout=2.0)
            except Untrusted as error:
                raise Untrusted(
                    f"{child.program.name} serves, but is not the one that {child.program.ca} "
                    f"vouches for: {error}"
                ) from error
            except Unavailable as error:
                if time.monotonic() > end:
                    log = self._local.log(child.program.name)
                    raise Unavailable(
                        f"{child.program.name} does not serve after {seconds:.0f} s: "
                        f"{_last_line(log)} (see {log})"
                    ) from error
            else:
                self._say(f"{child.program.name} serves on {child.program.health}")
                return

    def _watch(self) -> None:
        while True:
            for child in self._children:
                if child.ended is not None and child.restart_at is None:
                    self._plan_restart(child)
                elif child.restart_at is not None and child.restart_at <= time.monotonic():
                    self._start(child)
                    self._say(f"{child.program.name} was started again")
            for name in ("supervisor", *(child.program.name for child in self._children)):
                cut_log(self._local.log(name))
            times = [child.restart_at for child in self._children if child.restart_at is not None]
            pause = max(0.0, min(times) - time.monotonic()) if times else LOG_SECONDS
            self._wait_for_signal(min(pause, LOG_SECONDS))

    def _plan_restart(self, child: Child) -> None:
        # What a dead process leaves behind becomes a child of ours.
        kill_below(os.getpid(), keep=self._running())
        steady = time.monotonic() - child.started > STEADY_SECONDS
        child.failures = 0 if steady else child.failures + 1
        pause = grown(max(child.failures, 1), FIRST_PAUSE, MAX_PAUSE)
        child.restart_at = time.monotonic() + pause
        self._say(f"{self._last_words(child)}; starting it again in {pause:.0f} s")

    def _wait_for_signal(self, seconds: float) -> None:
        """Wait; notice which processes have ended. Raises Stopped when asked to end."""
        info = signal.sigtimedwait(SIGNALS, seconds)
        received = info.si_signo if info is not None else signal.SIGCHLD
        self._reap()
        if received != signal.SIGCHLD:
            raise Stopped

    def _reap(self) -> None:
        by_pid = {child.process.pid: child for child in self._children if child.process}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in by_pid:
                child = by_pid[pid]
                child.ended = os.waitstatus_to_exitcode(status)
                if child.process:
                    child.process.returncode = child.ended

    def _end_all(self) -> None:
        """End the gateway and the node, then the control plane, then whatever is left."""
        control, *others = self._children
        for group in (others, [control]):
            self._end([child for child in group if child.running])
        me, limit = os.getpid(), time.monotonic() + GRACE_SECONDS
        while descendants(me) and time.monotonic() < limit:
            kill_below(me)
            signal.sigtimedwait(SIGNALS, 0.1)
            self._reap()
        for child in self._children:
            (self._local.run / f"{child.program.name}.pid").unlink(missing_ok=True)

    def _end(self, children: Iterable[Child]) -> None:
        waiting = list(children)
        for child in waiting:
            if child.process is not None:
                child.process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + GRACE_SECONDS
        while any(child.running for child in waiting) and time.monotonic() < limit:
            signal.sigtimedwait(SIGNALS, 0.5)
            self._reap()
        for child in waiting:
            if child.running and child.process is not None:
                self._say(f"{child.program.name} did not end in time and is killed")
                kill_below(child.process.pid)
                child.process.kill()

    def _running(self) -> frozenset[int]:
        return frozenset(
            child.process.pid for child in self._children if child.running and child.process
        )

    def _last_words(self, child: Child) -> str:
        log = self._local.log(child.program.name)
        ended = child.ended or 0
        if ended < 0:
            return f"{child.program.name} was ended by {signal_name(-ended)} (see {log})"
        return f"{child.program.name} ended ({ended}): {_last_line(log)} (see {log})"


def _as_child(supervisor: int) -> Callable[[], None]:
    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        die_with_parent(supervisor)

    return prepare


def _last_line(path: Path) -> str:
    """The last thing a log says: its message, when it is one of our JSON lines."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return "it said nothing"
    try:
        return str(json.loads(lines[-1])["message"])
    except (ValueError, KeyError, TypeError):
        return lines[-1].removeprefix("error: ")


def main() -> int:
    """Run detached; how the start goes is written to a pipe, one JSON object per line."""
    parser = argparse.ArgumentParser(prog="python -m appliance.cli.supervisor")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--no-node", dest="node", action="store_false")
    parsed = parser.parse_args()
    leave_no_core()
    reports = os.fdopen(parsed.ready_fd, "w", encoding="utf-8")

    def tell(**facts: object) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}
        for stream in (reports, sys.stderr):
            if not stream.closed:
                stream.write(json.dumps(line) + "\n")
                stream.flush()

    def ready() -> None:
        tell(ready=True)
        reports.close()

    try:
        local = Local(parsed.data_dir)
        Supervisor(local, lambda text: tell(say=text), node=parsed.node).run(ready)
    except ApplianceError as error:
        tell(error=error.message, reason=error.reason)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
