"""What the ranks of a job write, over cut streams: text on stdout, what is missing beside it.

Rules kept here: a stream that breaks is opened again where it was, for a while; no control
character of what ranks wrote reaches a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.following import PATIENCE
from appliance.cli.job_logs import readable
from appliance.cli.output import json_text, plain, safe, yaml_text
from appliance.core.errors import Unavailable, UnknownMethod

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

READ = "JobService.ReadJobLogs"


def answers(session: CommandSession, **request: Any) -> Iterator[Any]:
    """Messages of `ReadJobLogs`; again from where they were when the server was away.

    Raises:
        Unavailable: the server cannot be reached, or was away for `PATIENCE` seconds.
        ApplianceError: the server refuses.
    """
    places: dict[tuple[str, int], int] = {}
    seen = False
    gone_since: float | None = None
    while True:
        newest = max((epoch for _, epoch in places), default=0)
        after = [
            {"node": node, "epoch": epoch, "number": number}
            for (node, epoch), number in places.items()
            if epoch == newest
        ]
        try:
            for answer in session.stream(READ, **request, after=after):
                seen, gone_since = True, None
                for line in answer.lines:
                    places[line.node, line.epoch] = line.number
                yield answer
        except Unavailable:
            now = time.monotonic()
            gone_since = gone_since or now
            if not seen or now - gone_since > PATIENCE:
                raise
            time.sleep(1.0)
        else:
            return


def show(session: CommandSession, **request: Any) -> bool:
    """Print lines as they come; whether there was any.

    Also False when the server is of a release that does not send them.
    """
    printer, found = _Printer(session.shared.output), False
    try:
        for answer in answers(session, **request):
            if answer.HasField("notice"):
                printer.notice(answer.notice)
            for line in answer.lines:
                printer.line(line)
                found = True
    except UnknownMethod:
        return False
    return found


class _Printer:
    """Prints lines in the form that was asked for."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._tells_ranks = True

    def line(self, line: Any) -> None:
        """One line."""
        if self._form == "json":
            click.echo(json_text(plain(line)))
        elif self._form == "yaml":
            click.echo("---\n" + yaml_text(plain(line)), nl=False)
        else:
            by = f"[rank {line.rank}] " if self._tells_ranks and line.HasField("rank") else ""
            for each in readable(line.text).splitlines() or [""]:
                click.echo(f"{by}{each}")

    def notice(self, notice: Any) -> None:
        """Something that is no line: talk."""
        if notice.ranks:
            self._tells_ranks = notice.ranks > 1
            click.echo(f"==> {safe(notice.text)} <==", err=True)
        else:
            click.echo(f"({safe(notice.text)})", err=True)
