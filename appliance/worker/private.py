"""The worker's private folder in memory: the configuration that vLLM reads, sockets, caches.

Rules kept here:
* it lies on tmpfs with mode 0700, holds no weights, and goes away with the worker; what a killed
  worker left is removed by the next one;
* segments of memory that the engine's processes share lose their names as soon as all have them
  open: nobody else can open them any more, and they end with the processes, however those end.

Called by `appliance.worker.main`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from appliance.core.errors import FailedPrecondition

MEMORY = Path("/dev/shm")  # noqa: S108  # shared memory is what vLLM's processes need; mode 0700 below
PREFIX = "appliance-worker-"
_NAME = re.compile(rf"{PREFIX}(\d+)-[a-z0-9_]+")
CONFIG = "config.json"


class PrivateFolder:
    """Makes the folder. Raises FailedPrecondition when there is no shared memory to make it in."""

    def __init__(self, memory: Path = MEMORY) -> None:
        self._memory = memory
        _sweep(memory)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=memory))
        except OSError as error:
            raise FailedPrecondition(
                f"no folder can be made in {memory}: a worker needs shared memory"
            ) from error

    def put_config(self, config: Mapping[str, Any]) -> None:
        """Write the checked configuration for vLLM to read."""
        (self.path / CONFIG).write_text(json.dumps(config), encoding="utf-8")

    def engine_is_up(self, processes: Iterable[int]) -> None:
        """Remove the configuration, and the names of the segments that the processes share."""
        (self.path / CONFIG).unlink(missing_ok=True)
        for process in processes:
            for segment in _segments(process, self._memory):
                segment.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove it with all it holds."""
        shutil.rmtree(self.path, ignore_errors=True)


def _segments(process: int, memory: Path) -> set[Path]:
    """Files of shared memory that a process has mapped (proc(5), `maps`: the path comes last)."""
    try:
        maps = Path(f"/proc/{process}/maps").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return set()
    paths = {Path(line.split(maxsplit=5)[5]) for line in maps.splitlines() if f" {memory}/" in line}
    return {path for path in paths if path.parent == memory}


def _sweep(memory: Path) -> None:
    for folder in memory.glob(f"{PREFIX}*"):
        match = _NAME.fullmatch(folder.name)
        if match and not Path("/proc", match[1]).exists():
            shutil.rmtree(folder, ignore_errors=True)
