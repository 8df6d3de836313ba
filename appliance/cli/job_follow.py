"""Show a job that was made or changed, and follow it to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.cli.following import changes
from appliance.cli.job_view import COLUMNS, ended_well, results_of, tell
from appliance.cli.live import Waiting
from appliance.cli.output import plain, safe
from appliance.client.ending import JobFailed

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

WATCH = "JobService.WatchJob"


def follow(session: CommandSession, made: Any, *, wait: bool, timeout: float | None) -> None:
    """Show a job; with `wait` at its end, and the way there on stderr."""
    final = plain(made)
    if wait:
        with Waiting() as waiting:
            for each in changes(session, WATCH, made.name, timeout):
                final = plain(each)
                tell(waiting, final)
    session.show(final, COLUMNS)
    if wait:
        if session.shared.output == "table" and (found := results_of(final)):
            click.echo(safe(found))
        check_ended_well(session, final)


def check_ended_well(session: CommandSession, job: dict[str, Any]) -> None:
    """Raise JobFailed unless a job has succeeded."""
    if not ended_well(job):
        state = job.get("state", "").removeprefix("STATE_").lower()
        hint = hint_of(session, str(job.get("name"))) if job.get("has_logs") else ""
        why = safe(job.get("state_reason") or "no reason given")
        raise JobFailed(f"{job.get('name')} {state}: {why}", hint=hint)


def hint_of(session: CommandSession, name: str) -> str:
    """What to type next; with the whole name when the context's project is another."""
    typed = name if session.shared.project else name.rpartition("/")[2]
    return f"`appliance job logs {typed}` prints the last output of its ranks"
