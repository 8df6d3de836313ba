"""`appliance job`: prepare data, train, quantize, evaluate, and follow the work."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import job_logs, job_specs
from appliance.cli.command import command as make
from appliance.cli.fields import FieldOption, message_of, options
from appliance.cli.following import Duration, changes, timeout_option, wait_options
from appliance.cli.job_view import COLUMNS, Lines, ended_well, view
from appliance.cli.output import field, plain, safe
from appliance.core.errors import ApplianceError, InvalidInput

if TYPE_CHECKING:
    from appliance.cli.session import Session

CREATE, WATCH = "JobService.CreateJob", "JobService.WatchJob"
LOGS = "JobService.GetJobLogs"
PAUSING = "STATE_PAUSING"
_PAUSED = ("STATE_PAUSED", "STATE_REGISTERING")
"""What a job that was to pause ends up in when all is well; or it was done before."""

command = click.Group("job", help="Prepare data, train, quantize, evaluate.")


class JobFailed(ApplianceError):
    """A job that was waited for did not succeed."""

    code = "ABORTED"
    reason = "JOB_FAILED"


def _kind(name: str, text: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command that submits one kind of job."""

    def decorate(function: Callable[..., None]) -> click.Command:
        function = options(job_specs.MESSAGES[name], job_specs.KINDS[name])(function)
        function = _validate_only(wait_options(function))
        function = click.option(
            "--on-lost",
            type=job_specs.OnLost(),
            metavar="wait|TIME",
            help="Wait for a node that is silent, or start elsewhere after a time such as 300s."
            "  [default: what the site says]",
        )(function)
        function = click.argument("job_id", metavar="JOB")(function)
        return make(name, CREATE, WATCH, group=command, project=True, help=text)(function)

    return decorate


def _validate_only(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--validate-only", is_flag=True, help="Check everything, change nothing.")(
        function
    )


@_kind("prepare", "Clean text and turn it into tokens.")
def prepare(session: Session, job_id: str, **values: Any) -> None:
    """Submit a prepare job."""
    _submit(session, job_id, "prepare", values)


@_kind("train", "Train a model from scratch, or on from a checkpoint.")
@click.option("--mesh", metavar="AXIS=N,...", help="All degrees at once: data=2,tensor=2.")
def train(session: Session, job_id: str, mesh: str | None, **values: Any) -> None:
    """Submit a train job."""
    missing = [name for name in job_specs.SHAPE if values[name] is None]
    if missing and not (values["from_checkpoint"] and len(missing) == len(job_specs.SHAPE)):
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise click.UsageError(
            f"Missing options {flags}: give the whole shape, or --from-checkpoint without any of it"
        )
    for axis, degree in (job_specs.mesh_of(mesh) if mesh else {}).items():
        if values[axis] not in (None, degree):
            raise click.UsageError(
                f"--mesh {mesh} and --{axis} {values[axis]} contradict each other"
            )
        values[axis] = degree
    _submit(session, job_id, "train", values)


@_kind("quantize", "Make a smaller version of a model.")
def quantize(session: Session, job_id: str, **values: Any) -> None:
    """Submit a quantize job."""
    _submit(session, job_id, "quantize", values)


@_kind("evaluate", "Measure the perplexity of a model on held-out text.")
def evaluate(session: Session, job_id: str, **values: Any) -> None:
    """Submit an evaluate job."""
    _submit(session, job_id, "evaluate", values)


@make("create", CREATE, WATCH, group=command, project=True)
@click.argument("job_id", metavar="JOB")
@click.option(
    "-f",
    "--file",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True),
    help="YAML or JSON of one spec, such as `train: {steps: 100, ...}`.",
)
@_validate_only
@wait_options
def create(session: Session, job_id: str, file: Path, **how: Any) -> None:
    """Submit a job from a file."""
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    _send(session, job_id, _parsed(text, str(file)), **how)


@make("get", "JobService.GetJob", group=command, project=True)
@click.argument("name", metavar="JOB")
def get(session: Session, name: str) -> None:
    """Show one job."""
    job = session.call("JobService.GetJob", name=session.name("job", name))
    session.show(job)
    if job.has_logs:
        click.echo(f"hint: {_hint(session, job.name)}", err=True)


@make("list", "JobService.ListJobs", group=command, project=True)
def list_(session: Session) -> None:
    """List the jobs of a project, newest first."""
    session.show(session.list("JobService.ListJobs", "jobs", parent=session.parent), COLUMNS)


@make("watch", WATCH, group=command, project=True)
@click.argument("name", metavar="JOB")
@timeout_option
def watch(session: Session, name: str, timeout: float | None) -> None:
    """Show a job while it works; Ctrl-C ends the watching, not the job."""
    full = session.name("job", name)
    job: dict[str, Any] = {}
    with view(session.shared.output) as show:
        for each in changes(session, WATCH, full, timeout):
            job = plain(each)
            show(job)
    _check_ended_well(session, job)


@make("logs", LOGS, group=command, project=True)
@click.argument("name", metavar="JOB")
def logs(session: Session, name: str) -> None:
    """Print the last output of the ranks of a job that did not succeed."""
    found = plain(session.call(LOGS, name=session.name("job", name)))
    if session.shared.output == "table":
        job_logs.show(found)
    else:
        session.show(found)


@make("metrics", "JobService.ListJobMetrics", group=command, project=True)
@click.argument("name", metavar="JOB")
def metrics(session: Session, name: str) -> None:
    """List the measurements of a job, step by step."""
    rows = session.list("JobService.ListJobMetrics", "metrics", name=session.name("job", name))
    names = sorted({key for row in rows for key in row["values"]})
    columns = [("STEP", field("step")), *((key.upper(), field(f"values.{key}")) for key in names)]
    session.show(rows, columns)


@make("cancel", "JobService.CancelJob", group=command, project=True)
@click.argument("name", metavar="JOB")
def cancel(session: Session, name: str) -> None:
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
    session: Session, name: str, *, grace: float | None, wait: bool, timeout: float | None
) -> None:
    """Let a job save a checkpoint and give its devices back, until it is resumed."""
    more = {} if grace is None else {"grace_seconds": math.ceil(grace)}
    made = session.call("JobService.PauseJob", name=session.name("job", name), **more)
    job = plain(made)
    if wait and job["state"] == PAUSING:
        lines = Lines(err=True)
        for each in changes(session, WATCH, made.name, timeout):
            job = plain(each)
            lines(job)
            if job["state"] != PAUSING:
                break
    session.show(job, COLUMNS)
    if wait and job["state"] not in _PAUSED:
        _check_ended_well(session, job)


@make("resume", "JobService.ResumeJob", WATCH, group=command, project=True)
@click.argument("name", metavar="JOB")
@click.option("--mesh", metavar="AXIS=N,...", help="Another mesh for a train job: data=2,tensor=2.")
@wait_options
def resume(
    session: Session, name: str, *, mesh: str | None, wait: bool, timeout: float | None
) -> None:
    """Go on with a job that failed, was cancelled or is paused, from its newest checkpoint."""
    more: dict[str, Any] = {"mesh": job_specs.mesh_of(mesh)} if mesh else {}
    made = session.call("JobService.ResumeJob", name=session.name("job", name), **more)
    _follow(session, made, wait=wait, timeout=timeout)


def _submit(session: Session, job_id: str, kind: str, values: dict[str, Any]) -> None:
    how = {key: values.pop(key) for key in ("wait", "timeout", "validate_only")}
    on_lost = values.pop("on_lost")
    spec = message_of(job_specs.KINDS[kind], values, session.name)
    _send(session, job_id, {kind: spec} | ({"on_lost": on_lost} if on_lost else {}), **how)


def _send(
    session: Session,
    job_id: str,
    job: dict[str, Any],
    *,
    wait: bool,
    timeout: float | None,
    validate_only: bool,
) -> None:
    """Submit, and with `wait` follow to the end: the result on stdout, the way there on stderr."""
    made = session.call(
        CREATE, parent=session.parent, job_id=job_id, job=job, validate_only=validate_only
    )
    _follow(session, made, wait=wait and not validate_only, timeout=timeout)


def _follow(session: Session, made: Any, *, wait: bool, timeout: float | None) -> None:
    """Show a job; with `wait` at its end, and the way there on stderr."""
    final = plain(made)
    if wait:
        lines = Lines(err=True)
        for each in changes(session, WATCH, made.name, timeout):
            final = plain(each)
            lines(final)
    session.show(final, COLUMNS)
    if wait:
        _check_ended_well(session, final)


def _check_ended_well(session: Session, job: dict[str, Any]) -> None:
    if not ended_well(job):
        state = job.get("state", "").removeprefix("STATE_").lower()
        hint = _hint(session, str(job.get("name"))) if job.get("has_logs") else ""
        why = safe(job.get("state_reason") or "no reason given")
        raise JobFailed(f"{job.get('name')} {state}: {why}", hint=hint)


def _hint(session: Session, name: str) -> str:
    """What to type next; with the whole name when the context's project is another."""
    typed = name if session.shared.project else name.rpartition("/")[2]
    return f"`appliance job logs {typed}` prints the last output of its ranks"


def _parsed(text: str, source: str) -> dict[str, Any]:
    """What a YAML or JSON document (JSON is YAML) asks for. Raises InvalidInput."""
    import yaml  # noqa: PLC0415 - only this command needs it
    from google.protobuf.json_format import ParseDict, ParseError  # noqa: PLC0415 - as above

    from appliance.api.jobs.v1 import job_pb2  # noqa: PLC0415 - as above

    try:
        document = yaml.safe_load(text)
        job = ParseDict(document, job_pb2.Job())
    except (yaml.YAMLError, ParseError, AttributeError, TypeError) as error:
        said = " ".join(str(error).split())
        raise InvalidInput(f"{source} is no job: {said}") from error
    kind = job.WhichOneof("spec")
    if kind is None:
        raise InvalidInput(f"{source} has no spec: write one of {', '.join(job_specs.KINDS)}")
    found = {kind: getattr(job, kind)}
    return found | ({"on_lost": job.on_lost} if job.HasField("on_lost") else {})
