"""Progress of long uploads and downloads on a terminal; silent elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bytes_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error that the yielded function moves forward by a number of bytes."""
    done = 0
    with growing_bar(what) as show:

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            show(done, total)

        show(0, total)
        yield advance


@contextlib.contextmanager
def growing_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """The same, told how many bytes are there and how many there will be."""
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console  # noqa: PLC0415 - a quarter of a second that `--help` saves
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
