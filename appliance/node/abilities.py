"""What this node can run: which modules the Python of its work has, and which it can import.

Rules kept here:
* asked of a process like those that work is: the same interpreter, the same short environment;
* quick first (is it there?), so that the agent can say at once what it lacks; then each module is
  really imported, once, with little claim to the processor, and for so long at most;
* what cannot be found out is left open: the node then counts as able.

Called by the composition root.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from appliance.api.nodes.v1 import node_pb2
from appliance.core.needs import lacking
from appliance.core.process import signal_name
from appliance.kinds import needs

NEEDS = needs()
MODULES = tuple(sorted(frozenset().union(*NEEDS.values())))
# -P as for work: what lies in the folder it runs in is no module.
COMMAND = (sys.executable, "-P", "-m", "appliance.node.importing")
FIND_SECONDS = 30.0
IMPORT_SECONDS = 300.0
"""For one module: the largest take a minute from a slow disk."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Abilities:
    """Asks the Python of this node's work.

    Args:
        environment: of work.
        folder: to run in.
        command: the program that looks and imports; tests give another.
        seconds: for the import of one module.
    """

    environment: Mapping[str, str]
    folder: Path
    command: Sequence[str] = COMMAND
    seconds: float = IMPORT_SECONDS

    async def find(self, modules: Sequence[str] = MODULES) -> dict[str, str] | None:
        """Modules that are not there, each with ""; None when that cannot be found out."""
        found: dict[str, str | None] = {}
        try:
            async with asyncio.timeout(FIND_SECONDS), self._asked("find", modules) as process:
                await self._answers(process, found)
        except (OSError, ValueError) as error:  # a time-out is an OSError
            logger.warning("the program that looks for packages: %s", error)
        if found.keys() != set(modules):
            logger.warning("what this node can run cannot be found out")
            return None
        return {module: "" for module in modules if found[module] is None}

    async def check(self, modules: Sequence[str]) -> dict[str, str]:
        """Import modules that are there; those that cannot be, and why."""
        broken: dict[str, str] = {}
        left = list(modules)
        while left:
            found, how = await self._import(left)
            broken |= {module: trouble for module, trouble in found.items() if trouble}
            # The one that was being imported when the process ended, if it did.
            stuck = [module for module, trouble in found.items() if trouble is None]
            broken |= dict.fromkeys(stuck, how)
            left = left[left.index(stuck[0]) + 1 :] if stuck else []
        for module, trouble in broken.items():
            logger.error("work cannot import %s: %s", module, trouble)
        return broken

    async def _import(self, modules: Sequence[str]) -> tuple[dict[str, str | None], str]:
        """What was said of modules in turn, and how the process ended."""
        found: dict[str, str | None] = {}
        try:
            async with self._asked("import", modules) as process:
                await self._answers(process, found, self.seconds)
                code = await process.wait()
        except TimeoutError:
            return found, f"it took longer than {self.seconds:.0f} s"
        except (OSError, ValueError) as error:
            logger.warning("the program that imports packages: %s", error)
            return {module: trouble for module, trouble in found.items() if trouble}, ""
        if code < 0:
            return found, f"its process was killed by {signal_name(-code)}"
        return found, f"its process ended with code {code}"

    @contextlib.asynccontextmanager
    async def _asked(
        self, what: str, modules: Sequence[str]
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """A process that looks or imports; nothing of it is left afterwards."""
        process = await asyncio.create_subprocess_exec(
            *(*self.command, what, *modules),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=self.folder,
            env=dict(self.environment),
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _answers(
        self,
        process: asyncio.subprocess.Process,
        found: dict[str, str | None],
        seconds: float | None = None,
    ) -> None:
        """Read what it says to its end. Raises TimeoutError when a line takes too long."""
        stdout = cast("asyncio.StreamReader", process.stdout)
        while True:
            async with asyncio.timeout(seconds):
                line = await stdout.readline()
            if not line:
                return
            module, trouble, detail = json.loads(line)
            found[module] = trouble
            if detail:
                logger.error("%s: %s: %s", module, trouble, detail)


def capabilities(missing: Mapping[str, str]) -> list[node_pb2.Capability]:
    """What the node can run, as it is said to the control plane. Pure.

    Args:
        missing: module -> why it cannot be imported, "" when it is not installed.
    """
    return [
        node_pb2.Capability(kind=kind, available=not reason, reason=reason)
        for kind, reason in sorted(lacking(NEEDS, missing).items())
    ]
