"""Does what waits in the queue of the object store (`services.data.storage_tasks`).

Rules kept here:
* tasks run in threads of their own;
* whatever a task raises, it stays in the queue and is done again later;
* as many are done at a time as there are threads, and when the store hangs, these alone hang with
  it;
* how a task ended is written down as soon as the state can be written.

Called by the composition root, which runs one for the object store of an appliance, and one for
what must not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from appliance.control.events import STORAGE, Events
from appliance.control.services.data.storage_tasks import StorageTasks, Task, TaskKind, sentence_of
from appliance.core.errors import ApplianceError

PASS_SECONDS = 1.0
_logger = logging.getLogger(__name__)

Handler = Callable[[Task], None]


class StorageWorker:
    """Does tasks.

    Args:
        tasks: the queue.
        handlers: what does each kind, and no other; what raises is done again later.
        check: raises when the store is not there; asked before each task but `first`.
        first: the kind that is done whether it is there or not.
        events: wakes this when there is something to do.
    """

    def __init__(
        self,
        tasks: StorageTasks,
        handlers: Mapping[TaskKind, Handler],
        events: Events,
        *,
        check: Callable[[], None],
        first: TaskKind,
    ) -> None:
        self._check = check
        self._first = first
        self._tasks = tasks
        self._handlers = handlers
        self._events = events
        self._unwritten: deque[tuple[Task, str | None]] = deque()

    async def run(self, pool: Executor, threads: int) -> None:
        """Do tasks until cancelled.

        Args:
            pool: threads for nothing else.
            threads: how many it has, and so tasks at a time.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(threads):
                group.create_task(self._run_one(pool))

    async def _run_one(self, pool: Executor) -> None:
        loop = asyncio.get_running_loop()
        with self._events.watch(STORAGE) as watch:
            while True:
                try:
                    while await loop.run_in_executor(pool, self.do_next):
                        pass
                except Exception:
                    # The state cannot be read or written now; the next pass begins with that.
                    _logger.exception("the queue of the object store cannot be read or written")
                await watch.wait(PASS_SECONDS)

    def do_next(self) -> bool:
        """Do the next task that is due; whether there was one."""
        self._write_outcomes()
        task = self._tasks.take(self._handlers.keys())
        if task is None:
            return False
        why: str | None = None
        try:
            if task.kind != self._first:
                self._check()
            self._handlers[task.kind](task)
        except Exception as error:
            why = sentence_of(error)
            known = isinstance(error, ApplianceError | OSError)
            _logger.warning(
                "%s of %r failed, %d times now: %s",
                task.kind,
                task.subject,
                task.attempts + 1,
                why,
                exc_info=None if known else error,
            )
        self._unwritten.append((task, why))
        self._write_outcomes()
        return True

    def do_all(self) -> None:
        """Do every task that is due, and what they ask for."""
        while self.do_next():
            pass

    def _write_outcomes(self) -> None:
        while self._unwritten:
            try:
                task, why = self._unwritten.popleft()
            except IndexError:
                return  # another thread was faster
            try:
                if why is None:
                    self._tasks.done(task)
                else:
                    self._tasks.failed(task, why)
            except BaseException:
                self._unwritten.append((task, why))
                raise
