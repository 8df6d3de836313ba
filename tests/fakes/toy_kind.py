"""A kind of job that counts, for tests; the `seed` of its spec says what happens.

It sums ranks by a collective each step, saves a checkpoint every second step, and makes a dataset.
"""

import base64
import errno
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from appliance.core.errors import InvalidInput, Paused
from appliance.jobs.runtime.context import Context

STEPS = 8
QUIET, KILL, WRONG, SLOW, CRASH, ALWAYS, STOP, SLEEP, BUSY, ALWAYS_STOP, BUG, LAST, FULL = range(13)
FOLLOW, LATE = 13, 14
BUSY_SECONDS = 8
TEXT = "Ms Miller lives at 12 Elm Street"


def run(context: Context) -> None:
    what = context.spec.seed
    series = context.checkpoints()
    latest = series.latest()
    step, total = 0, 0
    if latest is not None:
        step, reader = latest
        total = reader.read_json(f"state-{context.rank}.json")["total"]
    while step < STEPS:
        context.fence()
        step += 1
        context.mark(f"step {step}")
        told = context.saving() or (what == LATE and step == STEPS)
        part = torch.tensor([float(step * (context.rank + 1)), float(told)])
        if distributed.is_initialized():
            distributed.all_reduce(part)
        total += int(part[0].item())
        pausing = bool(part[1].item())
        _mishap(context, what, step)
        _hang(context, what, step)
        if step % 2 == 0 or pausing:
            state = {"total": total}
            series.save(
                step,
                lambda writer: writer.write_json(f"state-{context.rank}.json", state),  # noqa: B023  # called at once
            )
        context.report.progress(step, STEPS, "counting", sum=float(total))
        if pausing:
            if what == LATE:
                _die_once(context)
            raise Paused.at(step)
    writer = context.output("dataset")
    writer.write_json(f"total-{context.rank}.json", total)
    writer.finish_together(context.rank, {"total": total})
    context.report.result({"total": total}, {"short": 2})


def _follow(context: Context) -> None:
    """The last rank dies in three rounds while the first notices nothing, which crashes after."""
    mark = Path(context.scratch) / "rounds"
    rounds = mark.stat().st_size if mark.exists() else 0
    with mark.open("a") as file:
        file.write("+")
    last = context.rank == context.world_size - 1
    if last and rounds < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if last or rounds < 3:
        time.sleep(3600)
    raise KeyError(TEXT)


def _die_once(context: Context) -> None:
    """The last rank, the first time, when the others have paused."""
    mark = Path(context.scratch) / "done"
    if context.rank == context.world_size - 1 and not mark.exists():
        mark.touch()
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)


def _mishap(context: Context, what: int, step: int) -> None:
    mark = Path(context.scratch) / "done"
    if what == SLOW:
        time.sleep(0.1)
    if what == FOLLOW:
        _follow(context)
    if what == WRONG and step == 3 and context.rank == context.world_size - 1:
        raise InvalidInput("the text is wrong: send another")
    last = context.rank == context.world_size - 1
    if what == BUG and step == 3 and last:
        raise KeyError(TEXT)
    if what == FULL and step == 3 and last:
        key = context.orders.outputs["dataset"].key
        sys.stdout.write(f"{key!r} {key.hex()} {base64.b64encode(key).decode()}\n")
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} {key!r}", f"/data/{TEXT}")
    if step == 3 and (what == ALWAYS or (what == LAST and last)):
        os.kill(os.getpid(), signal.SIGKILL)
    if what in (KILL, CRASH) and step == 5 and context.rank == context.world_size - 1:
        if mark.exists():
            return
        mark.touch()
        if what == CRASH:
            raise RuntimeError("a bug")
        os.kill(os.getpid(), signal.SIGKILL)


def _hang(context: Context, what: int, step: int) -> None:
    """The last rank stops at step 5, once or each time, sleeps in Python, or works for long."""
    mark = Path(context.scratch) / "done"
    if step != 5 or context.rank != context.world_size - 1:
        return
    if what == BUSY:
        end = time.monotonic() + BUSY_SECONDS
        while time.monotonic() < end:
            time.sleep(0.2)
            context.mark("works")
    elif what == ALWAYS_STOP or (what in (STOP, SLEEP) and not mark.exists()):
        mark.touch()
        context.mark("falls asleep")
        if what == SLEEP:
            time.sleep(3600)
        os.kill(os.getpid(), signal.SIGSTOP)
        context.mark("goes on")
        time.sleep(1)
