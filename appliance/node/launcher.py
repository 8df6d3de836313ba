"""Starts work in process trees of their own: folders, log, cgroup and environment of each.

Rules kept here:
* the environment of a work is a short list, not the agent's own;
* a work is a session of its own; when its first process ends, or must end, nothing of it is left,
  also not what tried to leave (the agent adopts orphans);
* what a work writes is kept up to a size, with tokens and keys taken out, in a private folder, and
  its last lines in memory, for whoever hears of its end (`logs`).

Called by the agent. What is started is a `Running` (`node.running`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.core.errors import InvalidInput
from appliance.core.files import make_private_dir
from appliance.node.cgroup import Cgroup
from appliance.node.logs import CappedLog, WorkOutput
from appliance.node.running import Ended, Launch, Running, tidy

KEPT_RUNS = 50
INHERITED = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONPYCACHEPREFIX",
    "TZ",
    "VIRTUAL_ENV",
)
"""Variables that a work gets from the agent; all others are set here or not at all."""

_WORK = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*(/[A-Za-z0-9]+(-[A-Za-z0-9]+)*)?")
_SCRATCH = re.compile(r"[0-9a-f]{32}(\.[A-Za-z0-9-]+)?\.[0-9]+")
"""Folders of works, as `folder_name` makes them of the ids that the control plane gives."""

_Preparing = asyncio.Future[tuple[CappedLog, Cgroup | None]]


@dataclass(frozen=True)
class Folders:
    """Where things of works go: logs below `runs`, temporary files below `scratch`."""

    runs: Path
    scratch: Path


class Launcher:
    """Starts works.

    Args:
        folders: private folders.
        environment: variables besides those of `INHERITED`.
        log_bytes: of log to keep for each work.
        cgroup: delegated cgroup v2 folder, if there is one.
    """

    def __init__(
        self,
        folders: Folders,
        environment: Mapping[str, str],
        *,
        log_bytes: int,
        cgroup: Path | None = None,
    ) -> None:
        self._folders = folders
        self._environment = dict(environment)
        self._log_bytes = log_bytes
        self._cgroup = cgroup
        self._running: set[str] = set()
        self._disk = ThreadPoolExecutor(1, "logs")
        make_private_dir(folders.runs)
        # What an agent left that was killed: its work ended with it.
        for left in make_private_dir(folders.scratch).iterdir():
            if _SCRATCH.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)

    @property
    def runs(self) -> Path:
        """Where the logs of works are, each in a folder of `folder_name`."""
        return self._folders.runs

    async def start(
        self,
        launch: Launch,
        on_line: Callable[[dict[str, Any]], None],
        on_end: Callable[[Ended], None],
    ) -> Running:
        """Start a work; `on_line` gets each of its reports, then `on_end` is called once.

        Raises:
            InvalidInput: the name of the work cannot be one.
            FailedPrecondition: the cgroup cannot be used.
            OSError: the process cannot be started.
        """
        name = folder_name(launch.work, launch.epoch)
        scratch = self._folders.scratch / name
        self._running.add(name)

        def ended(how: Ended) -> None:
            self._running.discard(name)
            on_end(how)

        preparing = asyncio.ensure_future(
            asyncio.to_thread(self._prepare, name, launch, frozenset(self._running))
        )
        try:
            log, group = await asyncio.shield(preparing)
            running = Running(
                launch,
                scratch=scratch,
                group=group,
                output=WorkOutput(log, self._disk),
                on_line=on_line,
                on_end=ended,
            )
            await running.begin(self.environment(scratch))
        except BaseException:
            await asyncio.shield(self._undo(name, preparing))
            raise
        return running

    async def _undo(self, name: str, preparing: _Preparing) -> None:
        """Remove what a start has made, also what its thread has yet to make: it goes on."""
        await asyncio.wait({preparing})
        group = None
        if not preparing.cancelled() and preparing.exception() is None:
            log, group = preparing.result()
            await WorkOutput(log, self._disk).close()
        await asyncio.to_thread(tidy, self._folders.scratch / name, group)
        self._running.discard(name)

    def environment(self, scratch: Path) -> dict[str, str]:
        """All variables of a work that has this folder for temporary files."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return {**inherited, **self._environment, "TMPDIR": str(scratch)}

    def _prepare(
        self, name: str, launch: Launch, running: AbstractSet[str]
    ) -> tuple[CappedLog, Cgroup | None]:
        """The folders of a work, its log, and its cgroup. In a thread: a disk may hang."""
        run = make_private_dir(self._folders.runs / name)
        make_private_dir(self._folders.scratch / name)
        self._forget_old_runs(running)
        log = CappedLog(run / "log", self._log_bytes, launch.secrets)
        try:
            group = Cgroup(self._cgroup, name, launch.memory_bytes) if self._cgroup else None
        except BaseException:
            log.close()
            raise
        return log, group

    def _forget_old_runs(self, running: AbstractSet[str]) -> None:
        """Keep the newest folders, and those of whatever still writes into one."""
        over: list[tuple[float, Path]] = []
        for path in self._folders.runs.iterdir():
            # Another start may tidy up at the same time.
            with contextlib.suppress(FileNotFoundError):
                if path.name not in running:
                    over.append((path.stat().st_mtime, path))
        for _, old in sorted(over)[:-KEPT_RUNS]:
            shutil.rmtree(old, ignore_errors=True)


def folder_name(work: str, epoch: int) -> str:
    """Name of a work's folders; InvalidInput when the work's own could lead somewhere else."""
    if not _WORK.fullmatch(work) or len(work) > 200 or epoch < 0:
        raise InvalidInput(f"{work[:40]!r} cannot name a piece of work")
    return f"{work.replace('/', '.')}.{epoch}"
