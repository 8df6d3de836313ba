"""A cgroup of its own for each piece of work: a memory limit that the kernel keeps.

Only where the administrator has delegated a cgroup v2 folder to the agent (systemd: `Delegate=yes`;
docs/nodes.md). Called by the launcher.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from appliance.core.errors import FailedPrecondition


class Cgroup:
    """The cgroup of one piece of work; it exists from construction to `close`.

    Args:
        parent: the delegated folder.
        name: of the work; plain.
        memory_bytes: limit; 0 for none.

    Raises:
        FailedPrecondition: the folder is not delegated.
    """

    def __init__(self, parent: Path, name: str, memory_bytes: int) -> None:
        self._path = parent / name
        try:
            self._path.mkdir(exist_ok=True)
            if memory_bytes:
                (self._path / "memory.max").write_text(str(memory_bytes))
                # All ranks of a job are worth nothing without each other.
                (self._path / "memory.oom.group").write_text("1")
        except OSError as error:
            raise FailedPrecondition(
                f"{parent} cannot be used ({error.strerror}): delegate a cgroup v2 folder with the"
                " memory controller to the agent, or leave `cgroup` unset"
            ) from error

    def add(self, pid: int) -> None:
        """Move a process in, unless it is over; its children follow.

        Raises FailedPrecondition: without it the process would have no limit.
        """
        try:
            (self._path / "cgroup.procs").write_text(str(pid))
        except ProcessLookupError:
            return
        except OSError as error:
            raise FailedPrecondition(
                f"a process cannot be moved into {self._path} ({error.strerror}), so it would have "
                "no memory limit: delegate the cgroup v2 folder to the agent with its processes, "
                "or leave `cgroup` unset"
            ) from error

    def kill(self) -> None:
        """Kill everything in it."""
        with contextlib.suppress(OSError):
            (self._path / "cgroup.kill").write_text("1")

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something in it for its memory limit."""
        with contextlib.suppress(OSError):
            events = dict(
                line.split() for line in (self._path / "memory.events").read_text().splitlines()
            )
            return events.get("oom_kill", "0") != "0"
        return False

    def close(self) -> None:
        """Remove it, when it is empty."""
        with contextlib.suppress(OSError):
            self._path.rmdir()
