"""The processes of one worker: each ends with its parent, and all are watched until they end.

vLLM forks an engine process, which forks a process for each tensor-parallel rank. Rules kept here:
* every forked process is killed by the kernel when its parent ends, whatever ended it, so no rank
  survives a `kill -9` of the front process and holds memory, devices and the model's plaintext;
* every forked process tells its number through an inherited pipe, and why loading failed when it
  did: an exception itself does not cross vLLM's processes;
* the death of any of them, or of the node agent, is noticed in milliseconds by a thread that waits
  on the kernel, not on the event loop; vLLM's own notice takes seconds and leaves the front
  process serving nothing.

Called by `appliance.worker.main`, once per process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from collections.abc import Callable, Mapping

from appliance.core.errors import BY_REASON, ApplianceError, FailedPrecondition, Internal
from appliance.core.process import die_with_parent
from appliance.worker.reports import encode, error_line

PIPE_SIZE = 1 << 16
SETTLE_SECONDS = 0.01


class Children:
    """This process and all that are forked from it after construction.

    Args:
        agent: writing end of the pipe to the node agent; its having no reader means the agent died.
    """

    def __init__(self, agent: int) -> None:
        self._agent = agent
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._parent = os.getpid()
        self._heard = b""
        self._members: list[int] = []
        self._fault: ApplianceError | None = None
        os.register_at_fork(before=self._before_fork, after_in_child=self._after_fork)

    def _before_fork(self) -> None:
        self._parent = os.getpid()

    def _after_fork(self) -> None:
        try:
            die_with_parent(self._parent)
        except FailedPrecondition:
            # The parent died between the fork and the line above.
            os._exit(1)
        # Only the front process may keep the agent's pipe open: its end is how the agent learns.
        with contextlib.suppress(OSError):
            os.close(self._agent)
        self._say({"type": "started", "pid": os.getpid()})

    def tell(self, error: ApplianceError) -> None:
        """Say, in a forked process, why it is about to fail."""
        self._say(error_line(error))

    def _say(self, line: dict[str, object]) -> None:
        # A full pipe loses the line; nothing here may block a process that starts or ends.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, encode(line))

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._read, PIPE_SIZE):
                self._heard += data
        *lines, self._heard = self._heard.split(b"\n")
        for line in map(json.loads, lines):
            if line["type"] == "started":
                self._members.append(line["pid"])
            elif self._fault is None:
                self._fault = _error_of(line)

    def members(self) -> list[int]:
        """Process numbers of all that were forked and live, parents before their children."""
        self._listen()
        return [pid for pid in self._members if _lives(pid)]

    def fault(self) -> ApplianceError | None:
        """The first reason that a forked process told; None when none did."""
        self._listen()
        return self._fault

    def watch(self, lost: Callable[[str], None]) -> threading.Thread:
        """Call `lost` with a sentence, from a thread, as soon as a member or the agent dies."""
        watched = {os.pidfd_open(pid): pid for pid in self.members()}
        thread = threading.Thread(
            target=self._wait, args=(watched, lost), name="family-watch", daemon=True
        )
        thread.start()
        return thread

    def _wait(self, watched: dict[int, int], lost: Callable[[str], None]) -> None:
        poll = select.poll()
        poll.register(self._agent, 0)
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        poll.poll()
        # A process that is killed may be heard of after those that it forked, which die with it.
        time.sleep(SETTLE_SECONDS)
        ready = [descriptor for descriptor, _ in poll.poll()]
        dead = [watched[descriptor] for descriptor in ready if descriptor in watched]
        if dead:
            lost(f"Process {dead[0]} of the engine died; the replica has to start again.")
        else:
            lost("The node agent is gone; a replica does not outlive its agent.")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _error_of(line: Mapping[str, str]) -> ApplianceError:
    error = BY_REASON.get(line["reason"], Internal)(line["message"])
    if "object" in line:
        error.metadata["object"] = line["object"]
    return error
