"""Commands that make jobs: one for each kind, and one that takes a file.

The options of a kind are the fields of its spec. Rule kept here: `--dry-run` asks for a plan and
`--validate-only` for an answer; neither makes a job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import job_file, job_plan
from appliance.cli.command import command as make
from appliance.cli.fields import fields_of, message_of, numbers_of, options, was_typed
from appliance.cli.following import wait_options
from appliance.cli.job_follow import follow
from appliance.cli.on_lost import OnLost
from appliance.kinds import KINDS, kind_of

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

CREATE, PLAN, WATCH = "JobService.CreateJob", "JobService.PlanJob", "JobService.WatchJob"
_HOW = ("wait", "timeout", "validate_only", "dry_run")


def command_of(name: str) -> click.Command:
    """The command that submits one kind of job."""
    kind = kind_of(name)
    descriptor = kind.spec.DESCRIPTOR
    fields, parts = fields_of(descriptor), _parts(descriptor)

    def submit(session: CommandSession, job_id: str, **values: Any) -> None:
        how = {key: values.pop(key) for key in _HOW}
        on_lost = values.pop("on_lost")
        typed = {each.path for each in fields if was_typed(values[each.variable])}
        if sentence := kind.unsaid(typed):
            raise click.UsageError(sentence)
        for part, known in parts.items():
            _spread(part, known, values)
        spec = message_of(fields, values, session.name)
        job = {name: spec} | ({"on_lost": on_lost} if on_lost else {})
        _send(session, job_id, job, **how)

    path = descriptor.file.name.removeprefix("appliance/api/").removesuffix(".proto")
    function = options(f"{path.replace('/', '.')}.{descriptor.name}", fields)(submit)
    for part in parts:
        value = descriptor.fields_by_name[part]
        function = click.option(f"--{part}", metavar="AXIS=N,...", help=_help(value))(function)
    function = _how(function)
    function = click.option(
        "--on-lost",
        type=OnLost(),
        metavar="wait|TIME",
        help="Wait for a node that is silent, or start elsewhere after a time such as 300s."
        "  [default: what the site says]",
    )(function)
    function = click.argument("job_id", metavar="JOB")(function)
    return make(name, CREATE, PLAN, WATCH, project=True, help=KINDS[name])(function)


@click.argument("job_id", metavar="JOB")
@click.option(
    "-f",
    "--file",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="YAML or JSON of a job, as `job get -o yaml` prints it; `-` is standard input.",
)
def _create(session: CommandSession, job_id: str, file: str, **how: Any) -> None:
    """Submit a job from a file."""
    _send(session, job_id, job_file.read(file), **how)


def _how(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--dry-run`, `--validate-only`, `--wait` and `--timeout`."""
    function = click.option(
        "--validate-only", is_flag=True, help="Check everything, change nothing."
    )(wait_options(function))
    return click.option(
        "--dry-run", is_flag=True, help="Show what it needs and where it would run; make nothing."
    )(function)


create = make("create", CREATE, PLAN, WATCH, project=True)(_how(_create))


def _spread(part: str, known: Sequence[str], values: dict[str, Any]) -> None:
    """Put what `--mesh data=2` says where `--data 2` would."""
    text = values.pop(part)
    for name, number in (numbers_of(text, f"--{part}", known) if text else {}).items():
        if values[name] not in (None, number):
            raise click.UsageError(
                f"--{part} {text} and --{name} {values[name]} contradict each other"
            )
        values[name] = number


def _parts(descriptor: Any) -> dict[str, list[str]]:
    """Messages within a spec whose fields one option sets at once, and these fields."""
    return {
        field.name: [each.name for each in field.message_type.fields]
        for field in descriptor.fields
        if field.message_type is not None and _help(field)
    }


def _help(field: Any) -> str:
    from appliance.core.values import value_of  # noqa: PLC0415 - as protobuf, not for the list

    value = value_of(field)
    return "" if value is None else value.help


def _send(
    session: CommandSession,
    job_id: str,
    job: dict[str, Any],
    *,
    wait: bool,
    timeout: float | None,
    validate_only: bool,
    dry_run: bool,
) -> None:
    """Submit, and with `wait` follow to the end: the result on stdout, the way there on stderr."""
    if dry_run:
        plan = session.call(PLAN, parent=session.parent, job_id=job_id, job=job)
        job_plan.show(session, plan)
        return
    made = session.call(
        CREATE, parent=session.parent, job_id=job_id, job=job, validate_only=validate_only
    )
    follow(session, made, wait=wait and not validate_only, timeout=timeout)
