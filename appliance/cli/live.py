"""What `--wait` says on stderr: one live line on a terminal, a line for each change elsewhere.

On a terminal the line has state, progress, speed, what is left and how long it has taken, and moves
every second. In a file or a pipe a line is written when something has changed that is no number,
and once a minute while numbers alone do.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import click

from appliance.cli.moments import duration
from appliance.cli.output import cut, safe
from appliance.cli.tables import can_redraw, terminal_width

REDRAWN = 1.0
QUIET = 60.0
"""Seconds between lines of a pipe in which numbers alone are new."""
_CLEAR = "\r\x1b[K"


class Speed:
    """How fast work goes, and how long it will take, from where it has been seen."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._last = 0.0

    def text(self, done: float, total: float, now: float) -> str:
        """`3/9, 1.5/s, 4s left`; less while less is known.

        Args:
            done: steps so far; fewer than before means that it has begun again.
            total: steps in all; 0 while unknown.
            now: seconds of a clock.
        """
        parts = [f"{done:.0f}/{total:.0f}" if total else f"{done:.0f}" if done else ""]
        if self._first is None or done < self._last:
            # Before the first step comes what is not as fast as they are.
            self._first = (done, now) if done else None
        self._last = done
        if self._first is None:
            return parts[0]
        passed, came = now - self._first[1], done - self._first[0]
        if came > 0 and passed > 0:
            rate = came / passed
            parts.append(f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each")
            if total > done:
                parts.append(f"{duration((total - done) / rate)} left")
        return ", ".join(filter(None, parts))


class Waiting:
    """Says how far something is that is waited for; a `with` block ends the line.

    Args:
        clock: seconds, for the time that has passed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin = clock()
        self._live = can_redraw(sys.stderr)
        self._speed = Speed()
        self._said = ("", 0.0, "")
        self._shown = ("", "")
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)

    def tell(self, change: str, *, done: float = 0, total: float = 0, more: str = "") -> None:
        """Say how it stands.

        Args:
            change: what is news when it differs: name, state, what it does, why.
            done: steps so far.
            total: steps in all; 0 when there are none.
            more: further numbers.
        """
        progress = self._speed.text(done, total, self._clock())
        if self._live:
            with self._lock:
                self._shown = (safe("  ".join(filter(None, (change, progress)))), safe(more))
            self.draw()
            return
        numbers = "  ".join(filter(None, (progress, more)))
        before, at, last = self._said
        now = self._clock()
        if change != before or (numbers != last and now - at >= QUIET):
            click.echo(safe("  ".join(filter(None, (change, numbers)))), err=True)
            self._said = (change, now, numbers)

    def draw(self) -> None:
        """Draw the line of a terminal anew."""
        with self._lock:
            said, more = self._shown
            took = duration(self._clock() - self._begin)
            text = "  ".join(filter(None, (said, took, more)))
            # One column is left free: a terminal goes to the next line after the last one.
            click.echo(_CLEAR + cut(text, terminal_width() - 1), err=True, nl=False, color=True)

    def _redraw(self) -> None:
        while not self._ended.wait(REDRAWN):
            if self._shown[0]:
                self.draw()

    def __enter__(self) -> Self:
        """Begin to count."""
        if self._live:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the live line away: what follows is the result."""
        self._ended.set()
        if self._live:
            self._thread.join()
            click.echo(_CLEAR, err=True, nl=False, color=True)
