"""One work that was started: its processes, its pipes and its end.

Rules kept here:
* nothing secret is in arguments or environment: orders go through a pipe that only the new process
  has;
* SIGUSR1, which asks for a checkpoint, is blocked in a new process until that asks for it: one that
  comes early would kill it;
* the end is noticed by a descriptor of the process (pidfd_open(2)), not by asking;
* each rank of a job has a pipe of its own for what it writes, so that it is known who wrote a line;
* the core limit is zero before the process has read anything.

Made by `node.launcher`; callbacks run in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.core.errors import FailedPrecondition
from appliance.core.process import blocked, signal_name
from appliance.core.process_tree import Process, kill_tree, tree
from appliance.node.cgroup import Cgroup
from appliance.node.logs import CHUNK_BYTES, LastOutput, WorkOutput

LOOK_SECONDS = 1.0
REPORTS_LIMIT = 1 << 16
NOT_LEASED_SECONDS = 30.0
"""For what was given longer to end, and is not leased any more: it may be somewhere else by now."""
DRAIN_SECONDS = 5.0
MAX_RANK_PIPES = 256
"""Ranks of a work whose output is told apart; of more it is not, or the agent has no descriptors
left."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """How a work ended.

    Its exit code (negative: the signal that killed it), whether memory ran out, and the end of what
    its processes wrote, which may quote text of users.
    """

    code: int
    out_of_memory: bool = False
    last: LastOutput = field(default=LastOutput(), compare=False, repr=False)

    def sentence(self) -> str:
        """For a person."""
        if self.out_of_memory:
            return "it used more memory than it was given: give it more, or use smaller batches"
        if self.code == -signal.SIGKILL:
            return "its process was killed by SIGKILL, as the kernel does when memory runs out"
        if self.code < 0:
            return f"its process was killed by {signal_name(-self.code)}"
        return f"its process ended with code {self.code}"


@dataclass(frozen=True)
class Launch:
    """What to start.

    Attributes:
        work: uid of the job, or `{endpoint uid}/{replica id}`.
        epoch: of the lease.
        command: program and first arguments.
        document: the orders; secret.
        memory_bytes: limit of the whole tree, where cgroups are delegated; 0 for none.
        secrets: what is in the orders that must not be in the log.
        saves: it can be told to `save`; the signal waits until it hears it.
        ranks: that it runs; it hands each the descriptor of its output (`--rank-outputs`).
    """

    work: str
    epoch: int
    command: Sequence[str]
    document: Mapping[str, Any] = field(repr=False)
    memory_bytes: int = 0
    secrets: Sequence[str] = field(default=(), repr=False)
    saves: bool = False
    ranks: Sequence[int] = ()

    @property
    def told_apart(self) -> Sequence[int]:
        """The ranks that get a pipe each."""
        return self.ranks if len(self.ranks) <= MAX_RANK_PIPES else ()


class Running:
    """One work that was started; made by `Launcher.start`."""

    def __init__(  # noqa: PLR0913  # made in one place
        self,
        launch: Launch,
        *,
        scratch: Path,
        group: Cgroup | None,
        output: WorkOutput,
        on_line: Callable[[dict[str, Any]], None],
        on_end: Callable[[Ended], None],
    ) -> None:
        self.work = launch.work
        self.epoch = launch.epoch
        self._launch = launch
        self._scratch = scratch
        self._group = group
        self._output = output
        self._on_line = on_line
        self._on_end = on_end
        self._seen: set[Process] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._watch: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._stop_by = 0.0

    @property
    def pid(self) -> int:
        """Of the first process, which leads the session."""
        return self._process.pid if self._process else 0

    async def begin(self, variables: Mapping[str, str]) -> None:
        """Start the process, hand over the orders, and watch. Only the launcher calls this.

        When it is called off, or fails, no process of it is left; the launcher removes its files.
        """
        try:
            await self._begin(variables)
        except BaseException:
            if self._process is not None:
                await asyncio.shield(self._abandon())
            raise

    async def _abandon(self) -> None:
        """End what was begun, without a word to anybody."""
        if self._watch is not None:
            self._watch.cancel()
        await self.kill()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
        await self._drain()

    async def _begin(self, variables: Mapping[str, str]) -> None:
        orders_read, orders_write = os.pipe()
        reports_read, reports_write = os.pipe()
        output_read, output_write = os.pipe()
        of_ranks = {rank: os.pipe() for rank in self._launch.told_apart}
        written = [write for _, write in of_ranks.values()]
        command = [*self._launch.command, "--work", self.work, "--epoch", str(self.epoch)]
        command += ["--orders-fd", str(orders_read), "--reports-fd", str(reports_write)]
        if written:
            command += ["--rank-outputs", ",".join(map(str, written))]
        try:
            # On the main thread: the kernel ends the child with the thread that started it.
            with blocked(signal.SIGUSR1) if self._launch.saves else contextlib.nullcontext():
                self._process = subprocess.Popen(  # noqa: ASYNC220  # takes milliseconds
                    command,
                    pass_fds=(orders_read, reports_write, *written),
                    stdin=subprocess.DEVNULL,
                    stdout=output_write,
                    stderr=output_write,
                    cwd=self._scratch,
                    env=dict(variables),
                    start_new_session=True,
                )
            if self._group is not None:
                self._group.add(self.pid)
        except (OSError, FailedPrecondition):
            read = [read for read, _ in of_ranks.values()]
            for descriptor in (orders_write, reports_read, output_read, *read):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (orders_read, reports_write, output_write, *written):
                os.close(descriptor)
        ended = await self._ended()
        reports = await _reader(reports_read, REPORTS_LIMIT)
        outputs = {None: await _reader(output_read, CHUNK_BYTES)} | {
            rank: await _reader(read, CHUNK_BYTES) for rank, (read, _) in of_ranks.items()
        }
        # It may be over already.
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, resource.RLIMIT_CORE, (0, 0))
        self._readers = [
            asyncio.create_task(self._read_reports(reports)),
            *(asyncio.create_task(self._output.copy(pipe, rank)) for rank, pipe in outputs.items()),
        ]
        self._watch = asyncio.create_task(self._follow(ended))
        document = json.dumps(self._launch.document).encode()
        await asyncio.to_thread(_hand_over, orders_write, document)

    def save(self) -> None:
        """Tell it to save a checkpoint and end (SIGUSR1 to the first process)."""
        if self._process and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    def stop(self, grace_seconds: float) -> None:
        """Tell it to stop (SIGTERM to the first process), and end all of it after the grace.

        Told again, it has less time at most. An order without a grace is repeated for whatever is
        not leased any more: what ends already has `NOT_LEASED_SECONDS` then.
        """
        now = asyncio.get_running_loop().time()
        if self._stopping is not None:
            left = grace_seconds or NOT_LEASED_SECONDS
            if now + left < self._stop_by and not self._stopping.done():
                self._stopping.cancel()
                self._stop_by = now + left
                self._stopping = asyncio.create_task(self._end_after(left))
            return
        if self._process and self._process.returncode is None:
            # Not `send_signal`: that would collect the process, and free its number.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            self._stop_by = now + grace_seconds
            self._stopping = asyncio.create_task(self._end_after(grace_seconds))

    async def kill(self) -> None:
        """End all of it now."""
        if self._group is not None:
            self._group.kill()
        await self._remember_tree()
        # Needs no /proc, which a hardened unit may hide; the root has not been collected yet.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        gone = await asyncio.to_thread(kill_tree, self.pid, self._seen)
        if not gone:
            logger.error("processes of %s cannot be killed", self.work)

    async def wait(self) -> None:
        """Until nothing of it is left and `on_end` has been called."""
        if self._watch is not None:
            await self._watch

    async def _end_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.kill()

    async def _ended(self) -> asyncio.Event:
        event = asyncio.Event()
        loop = asyncio.get_running_loop()
        descriptor = os.pidfd_open(self.pid)

        def notice() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            event.set()

        loop.add_reader(descriptor, notice)
        return event

    async def _follow(self, ended: asyncio.Event) -> None:
        """Watch until the first process ends, clear away what it left, and tell."""
        while not ended.is_set():
            await self._remember_tree()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), LOOK_SECONDS)
        if self._stopping is not None:
            self._stopping.cancel()
        # Before the root is collected: until then its number cannot become another process'.
        await self.kill()
        code = self._process.wait() if self._process else 0
        await self._drain()
        out_of_memory = self._group is not None and self._group.out_of_memory()
        await self._output.close()
        await asyncio.to_thread(tidy, self._scratch, self._group)
        self._on_end(Ended(code, out_of_memory, self._output.last))

    async def _drain(self) -> None:
        """Read what it still said; a process that could keep the pipes open is gone.

        A disk that is slow is waited for, a pipe that brings nothing more is not.
        """
        late = set(self._readers)
        while late:
            before = self._output.written
            _, late = await asyncio.wait(late, timeout=DRAIN_SECONDS)
            if not self._output.busy and self._output.written == before:
                break
        for task in late:
            task.cancel()

    async def _remember_tree(self) -> None:
        """Remember who belongs to the tree, so that nobody gets lost who leaves it later.

        In a thread: a busy server has thousands of processes, and orders must not wait for that.
        """
        self._seen = await asyncio.to_thread(tree, self.pid, self._seen)

    async def _read_reports(self, pipe: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await pipe.readline()
                if not line:
                    return
                value = json.loads(line)
                self._on_line(value if isinstance(value, dict) else {})
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
                # The work is not trusted to speak well; the rest of its reports still counts.
                logger.warning("%s sent a report that cannot be read", self.work)


def tidy(scratch: Path, group: Cgroup | None) -> None:
    """Remove what a work leaves: its temporary files and its cgroup."""
    shutil.rmtree(scratch, ignore_errors=True)
    if group is not None:
        group.close()


async def _reader(descriptor: int, limit: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=limit)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    return reader


def _hand_over(descriptor: int, document: bytes) -> None:
    # A process that died early reads nothing; its exit says so.
    with contextlib.suppress(BrokenPipeError), os.fdopen(descriptor, "wb") as pipe:
        pipe.write(document)
