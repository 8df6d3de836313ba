"""Sends the lines of works to the control plane, while somebody there reads them.

Rules kept here:
* lines go up on a stream for each work that is read (`SendLog`), never with heartbeats or reports;
* it is the log file that is read: a slow network, or a control plane that hangs, costs the reader
  lines, and the work nothing;
* no more than `CHUNK_BYTES` each `PACE_SECONDS` of a work, `MAX_READS` works at a time;
* a stream ends when the work has, and within `LOOK_SECONDS` when the control plane ends it; all end
  with the connection.

Called by the agent; runs in the event loop, and reads in threads of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from appliance.api.agent.v1 import agent_service_pb2 as rpc
from appliance.core.errors import InvalidInput
from appliance.node.launcher import folder_name
from appliance.node.log_files import Line, LogFiles

MAX_READS = 128
PACE_SECONDS = 0.05
LOOK_SECONDS = 0.5
MAX_BYTES = 1 << 20
"""Of lines that are worth sending, whatever the order says."""

logger = logging.getLogger(__name__)


class LogReads:
    """The works whose lines are being sent.

    Args:
        runs: folder of the launcher's logs.
        holds: whether a work is starting or running here.
    """

    def __init__(self, runs: Path, holds: Callable[[str, int], bool]) -> None:
        self._runs = runs
        self._holds = holds
        self._disk = ThreadPoolExecutor(2, "log-reads")
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, stub: Any, order: rpc.ReadLog) -> None:  # noqa: ANN401  # grpc-stubs do not know its streams
        """Send what an order asks for, in a task of its own."""
        if order.read in self._tasks or len(self._tasks) >= MAX_READS:
            return
        try:
            folder = self._runs / folder_name(order.work.work, order.work.epoch)
        except InvalidInput as error:
            logger.warning("a log that cannot be is asked for: %s", error.message)
            return
        task = asyncio.create_task(self._send(stub, order, folder))
        self._tasks[order.read] = task
        task.add_done_callback(lambda _: self._tasks.pop(order.read, None))

    async def close(self) -> None:
        """End all: the connection is over."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, stub: Any, order: rpc.ReadLog, folder: Path) -> None:  # noqa: ANN401
        files = LogFiles(folder, order.after, min(order.max_bytes, MAX_BYTES))
        call = stub.SendLog()
        over = asyncio.Event()
        call.add_done_callback(lambda _: over.set())
        try:
            await self._send_all(call, over, order, files)
        except (grpc.RpcError, asyncio.InvalidStateError, OSError) as error:
            logger.info("the log of %s is not sent any more: %s", order.work.work, type(error))
        finally:
            call.cancel()
            self._disk.submit(files.close)

    async def _send_all(
        self,
        call: Any,  # noqa: ANN401
        over: asyncio.Event,
        order: rpc.ReadLog,
        files: LogFiles,
    ) -> None:
        """Send until the work has ended and all is said, or nobody takes it any more."""
        said: object = None
        while not over.is_set():
            # Before the reading: when it has ended by now, nothing is written after that.
            held = self._holds(order.work.work, order.work.epoch)
            lines, state = await self._look(files, held=held)
            if lines or state != said:
                await call.write(
                    rpc.SendLogRequest(read=order.read, lines=map(_message, lines), state=state)
                )
                said = state
            if state in (rpc.SendLogRequest.STATE_ENDED, rpc.SendLogRequest.STATE_NOT_KEPT):
                await call.done_writing()
                await call
                return
            more = state == rpc.SendLogRequest.STATE_UNSPECIFIED
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), PACE_SECONDS if more else LOOK_SECONDS)

    async def _look(
        self, files: LogFiles, *, held: bool
    ) -> tuple[Sequence[Line], rpc.SendLogRequest.State]:
        loop = asyncio.get_running_loop()
        try:
            lines, more = await loop.run_in_executor(self._disk, files.read)
        except FileNotFoundError:
            kept = rpc.SendLogRequest.STATE_CAUGHT_UP if held else rpc.SendLogRequest.STATE_NOT_KEPT
            return (), kept
        if more:
            return lines, rpc.SendLogRequest.STATE_UNSPECIFIED
        ended = rpc.SendLogRequest.STATE_CAUGHT_UP if held else rpc.SendLogRequest.STATE_ENDED
        return lines, ended


def _message(line: Line) -> rpc.LogLine:
    made = rpc.LogLine(number=line.number, rank=line.rank, text=line.text)
    if line.time is not None:
        made.create_time.FromDatetime(line.time)
    return made
