"""Follow a resource until something holds: over cut streams, up to a time limit.

Rules kept here: a stream that breaks is opened again, for a while; Ctrl-C and the time limit end
the watching alone, never the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.moments import seconds_of
from appliance.client.ending import WaitTimedOut
from appliance.core.errors import Unavailable

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

PATIENCE = 60.0
"""Seconds for which a server may be away."""


class Duration(click.ParamType[float]):
    """Seconds, written `90`, `90s`, `15m`, `2h` or `1d12h`."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds of a text."""
        if isinstance(value, float):
            return value
        text = str(value)
        is_number = text.replace(".", "", 1).isdecimal()
        found = seconds_of(f"{text}s" if is_number else text)
        if found is None:
            self.fail(f"{value!r} is no duration: write 90s, 15m or 2h", param, ctx)
        return found


def timeout_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--timeout`."""
    return click.option(
        "--timeout",
        type=Duration(),
        metavar="TIME",
        help="Longest time to wait, such as 15m.  [default: no limit]",
    )(function)


def wait_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--wait` and `--timeout`."""
    option = click.option("--wait", is_flag=True, help="Wait until it is done.")
    return option(timeout_option(function))


def changes(
    session: CommandSession, method: str, name: str, timeout: float | None
) -> Iterator[Any]:
    """The resource now and each time it changes, until the server ends the stream.

    Raises:
        WaitTimedOut: `timeout` seconds have passed.
        Unavailable: the server cannot be reached, or was away for `PATIENCE` seconds.
        ApplianceError: the server refuses.
    """
    end = None if timeout is None else time.monotonic() + timeout
    seen = False
    gone_since: float | None = None
    while True:
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            raise WaitTimedOut(f"{name} was not done in {timeout:.0f} s; it is left as it is")
        try:
            for resource in session.stream(method, timeout=left, name=name):
                seen, gone_since = True, None
                yield resource
        except Unavailable:
            now = time.monotonic()
            gone_since = gone_since or now
            timed_out = end is not None and now >= end
            if not timed_out and (not seen or now - gone_since > PATIENCE):
                raise
            time.sleep(1.0 if left is None else min(1.0, max(left, 0.0)))
        else:
            return
