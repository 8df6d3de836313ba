"""`appliance job`: make data and models on nodes, and follow the work."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import checkpoint, job_history, job_lines, job_logs, updating
from appliance.cli.command import command as make
from appliance.cli.describing import Rows, section
from appliance.cli.fields import FieldOption, numbers_of
from appliance.cli.following import Duration, changes, timeout_option, wait_options
from appliance.cli.job_follow import check_ended_well, follow, hint_of
from appliance.cli.job_view import COLUMNS, tell, view
from appliance.cli.live import Waiting
from appliance.cli.on_lost import OnLost
from appliance.cli.output import field, plain
from appliance.cli.suggesting import LazyGroup
from appliance.cli.updating import etag_option
from appliance.kinds import KINDS

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

WATCH = "JobService.WatchJob"
LOGS = "JobService.GetJobLogs"
EVENTS = "JobService.ListJobEvents"
PAUSING = "STATE_PAUSING"
AXES = ("data", "tensor", "pipeline")
_PAUSED = ("STATE_PAUSED", "STATE_REGISTERING")
"""What a job that was to pause ends up in when all is well; or it was done before."""


class JobGroup(LazyGroup):
    """Lists the kinds of jobs without loading them: that takes protobuf."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, sorted."""
        return sorted([*super().list_commands(ctx), "create", *KINDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command; those that make jobs are loaded here."""
        if cmd_name != "create" and cmd_name not in KINDS:
            return super().get_command(ctx, cmd_name)
        from appliance.cli import job_create  # noqa: PLC0415 - as said above

        return job_create.create if cmd_name == "create" else job_create.command_of(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list."""
        lines = {**KINDS, "create": "Submit a job from a file."}
        lines |= {name: each.get_short_help_str() for name, each in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl([(name, lines[name]) for name in self.list_commands(ctx)])


command = JobGroup("job", help="Make data and models on nodes, and follow the work.")


@make("get", "JobService.GetJob", group=command, project=True)
@click.argument("name", metavar="JOB")
def get(session: CommandSession, name: str) -> None:
    """Show one job."""
    job = session.call("JobService.GetJob", name=session.name("job", name))
    session.show(job)
    if job.has_logs:
        click.echo(f"hint: {hint_of(session, job.name)}", err=True)


@section(command, "Checkpoints", checkpoint.LIST)
def checkpoints(session: CommandSession, job: dict[str, Any]) -> Rows:
    """What a job has saved."""
    return session.each(checkpoint.LIST, "checkpoints", parent=job["name"]), checkpoint.COLUMNS


@section(command, "History", EVENTS)
def history(session: CommandSession, job: dict[str, Any]) -> Rows:
    """What happened to a job, the newest first."""
    return job_history.newest_first(session.each(EVENTS, "events", name=job["name"])), (
        job_history.COLUMNS
    )


@make("list", "JobService.ListJobs", group=command, project=True)
def list_(session: CommandSession) -> None:
    """List the jobs of a project, newest first."""
    session.show(session.rows("JobService.ListJobs", "jobs", parent=session.parent), COLUMNS)


@make("watch", WATCH, group=command, project=True)
@click.argument("name", metavar="JOB")
@timeout_option
def watch(session: CommandSession, name: str, timeout: float | None) -> None:
    """Show a job while it works; Ctrl-C ends the watching, not the job."""
    full = session.name("job", name)
    job: dict[str, Any] = {}
    with view(session.shared.output) as show:
        for each in changes(session, WATCH, full, timeout):
            job = plain(each)
            show(job)
    check_ended_well(session, job)


@make("logs", job_lines.READ, LOGS, group=command, project=True)
@click.argument("name", metavar="JOB")
@click.option("--follow", "-f", is_flag=True, help="Go on as lines come, until the job has ended.")
@click.option(
    "--tail",
    type=click.IntRange(0),
    metavar="N",
    help="Begin with the newest N lines of each node.",
)
@click.option(
    "--rank",
    "ranks",
    type=click.IntRange(0),
    multiple=True,
    metavar="R",
    help="Lines of this rank alone; repeat it for more.",
)
@click.option(
    "--start",
    "epoch",
    type=click.IntRange(1),
    metavar="N",
    help="The start to begin with.  [default: the newest]",
)
def logs(
    session: CommandSession,
    name: str,
    *,
    follow: bool,
    tail: int | None,
    ranks: tuple[int, ...],
    epoch: int | None,
) -> None:
    """Print what the ranks of a job write, or wrote."""
    full = session.name("job", name)
    asked: dict[str, Any] = {"name": full, "follow": follow, "ranks": ranks, "epoch": epoch or 0}
    if tail is not None:
        asked["tail_lines"] = tail
    if job_lines.show(session, **asked) or follow or ranks or epoch or tail == 0:
        return
    found = plain(session.call(LOGS, name=full))
    if session.shared.output == "table":
        job_logs.show(found)
    else:
        session.show(found)


@make("metrics", "JobService.ListJobMetrics", group=command, project=True)
@click.argument("name", metavar="JOB")
def metrics(session: CommandSession, name: str) -> None:
    """List the measurements of a job, step by step."""
    rows = session.list("JobService.ListJobMetrics", "metrics", name=session.name("job", name))
    names = sorted({key for row in rows for key in row["values"]})
    columns = [("STEP", field("step")), *((key.upper(), field(f"values.{key}")) for key in names)]
    session.show(rows, columns)


@make("update", "JobService.UpdateJob", group=command, project=True)
@click.argument("name", metavar="JOB")
@click.option(
    "--on-lost",
    type=OnLost(site=True),
    metavar="TIME",
    help="How long it waits for a silent node: a time such as 60s, `wait`, or `site`.",
)
@etag_option()
def update(session: CommandSession, name: str, etag: str, **given: object) -> None:
    """Change what a job does when a node is silent."""
    full = session.name("job", name)
    made = updating.update(session, "JobService.UpdateJob", "job", full, etag, **given)
    session.show(made, COLUMNS)


@make("delete", "JobService.DeleteJob", group=command, project=True)
@click.argument("name", metavar="JOB")
@etag_option()
def delete(session: CommandSession, name: str, etag: str) -> None:
    """Delete a job that has ended, with its checkpoints; what it made stays."""
    full = session.name("job", name)
    session.show(session.call("JobService.DeleteJob", name=full, etag=etag), COLUMNS)


@make("cancel", "JobService.CancelJob", group=command, project=True)
@click.argument("name", metavar="JOB")
def cancel(session: CommandSession, name: str) -> None:
    """End a job now; its checkpoints stay, and `job resume` goes on from them."""
    session.show(session.call("JobService.CancelJob", name=session.name("job", name)), COLUMNS)


@make("pause", "JobService.PauseJob", WATCH, group=command, project=True)
@click.argument("name", metavar="JOB")
@click.option(
    "--grace",
    cls=FieldOption,
    default_of=("jobs.v1.job_service.PauseJobRequest", "grace_seconds", ""),
    type=Duration(),
    metavar="TIME",
    help="Longest time in which it saves a checkpoint, such as 5m, 24h at most; 0 saves none.",
)
@wait_options
def pause(
    session: CommandSession, name: str, *, grace: float | None, wait: bool, timeout: float | None
) -> None:
    """Let a job save a checkpoint and give its devices back, until it is resumed."""
    more = {} if grace is None else {"grace_seconds": math.ceil(grace)}
    made = session.call("JobService.PauseJob", name=session.name("job", name), **more)
    job = plain(made)
    if wait and job["state"] == PAUSING:
        with Waiting() as waiting:
            for each in changes(session, WATCH, made.name, timeout):
                job = plain(each)
                tell(waiting, job)
                if job["state"] != PAUSING:
                    break
    session.show(job, COLUMNS)
    if wait and job["state"] not in _PAUSED:
        check_ended_well(session, job)


@make("resume", "JobService.ResumeJob", WATCH, group=command, project=True)
@click.argument("name", metavar="JOB")
@click.option(
    "--mesh", metavar="AXIS=N,...", help="Another mesh for a job that has one: data=2,tensor=2."
)
@wait_options
def resume(
    session: CommandSession, name: str, *, mesh: str | None, wait: bool, timeout: float | None
) -> None:
    """Go on with a job that failed, was cancelled or is paused, from its newest checkpoint."""
    more: dict[str, Any] = {"mesh": numbers_of(mesh, "--mesh", AXES)} if mesh else {}
    made = session.call("JobService.ResumeJob", name=session.name("job", name), **more)
    follow(session, made, wait=wait, timeout=timeout)
