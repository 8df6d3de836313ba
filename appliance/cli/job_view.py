"""How a job looks while it works: a line for each change, or one live table on a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import field, json_text, last, number, safe, short, state, wide, yaml_text
from appliance.kinds import KINDS, kind_of

if TYPE_CHECKING:
    from appliance.cli.live import Waiting

Job = dict[str, Any]
ENDED = frozenset({"STATE_SUCCEEDED", "STATE_FAILED", "STATE_CANCELLED"})


def kind_name(job: Job) -> str:
    """Which spec the job has."""
    return next((kind for kind in KINDS if kind in job), "")


def step_of(job: Job) -> str:
    """`12/100`, or what is known of it."""
    progress = job.get("progress") or {}
    step, total = int(progress.get("step", 0)), int(progress.get("total", 0))
    if ended_well(job) and step < total:
        # Its last report may have been lost; that it is done is certain.
        return ""
    return f"{step}/{total}" if total else str(step or "")


def metrics_of(job: Job) -> str:
    """`loss 3.21, tokens per second 12000`."""
    found = (job.get("progress") or {}).get("metrics") or {}
    kind = kind_name(job)
    first = kind_of(kind).measures if kind and found else ()
    order = [*(name for name in first if name in found), *sorted(found.keys() - set(first))]
    parts = [f"{name.replace('_', ' ')} {number(found[name])}" for name in order]
    return ", ".join(parts)


def reason_of(job: Job) -> str:
    """Why it is in its state, where that says more than the state."""
    reason = str(job.get("state_reason") or "")
    return "" if reason == "started" else reason


COLUMNS = [
    ("JOB", last()),
    ("KIND", kind_name),
    ("STATE", state()),
    ("STEP", step_of),
    ("CREATED", field("create_time")),
    ("WHY", reason_of),
    ("OUTPUTS", short("outputs")),
    wide("RESTARTS", field("restarts")),
]


def ended_well(job: Job) -> bool:
    """Whether it has succeeded."""
    return bool(job.get("state") == "STATE_SUCCEEDED")


def line(job: Job) -> str:
    """One line that says how far the job is."""
    parts = [f"{last()(job)}  {state()(job):9}"]
    if step := step_of(job):
        parts.append(f"step {step}")
    doing = "" if job.get("state") in ENDED else (job.get("progress") or {}).get("message")
    parts += [text for text in (metrics_of(job), doing) if text]
    if job.get("restarts"):
        parts.append(f"restarts {job['restarts']}")
    if reason := reason_of(job):
        parts.append(reason)
    return safe("  ".join(parts))


def tell(waiting: Waiting, job: Job) -> None:
    """Say how far a job is that is waited for."""
    ended = job.get("state") in ENDED
    progress = {} if ended else job.get("progress") or {}
    change = [last()(job), state()(job), progress.get("message", ""), reason_of(job)]
    if job.get("restarts"):
        change.append(f"restarts {job['restarts']}")
    waiting.tell(
        "  ".join(filter(None, change)),
        done=progress.get("step", 0),
        total=progress.get("total", 0),
        more="" if ended else metrics_of(job),
    )


def results_of(job: Job) -> str:
    """What a job has found: `perplexity 12.3, tokens 4096`."""
    found = (job.get("result") or {}).get("values") or {}
    return ", ".join(
        f"{key.replace('_', ' ')} {number(value)}" for key, value in sorted(found.items())
    )


class JobLines:
    """Prints a line for each change, not the same one twice."""

    def __init__(self, *, err: bool) -> None:
        self._err = err
        self._said = ""

    def __call__(self, job: Job) -> None:
        """Print the job if there is something new to say."""
        if (text := line(job)) != self._said:
            click.echo(text, err=self._err)
            self._said = text


@contextlib.contextmanager
def view(form: str) -> Iterator[Callable[[Job], None]]:
    """Shows jobs on stdout: JSON lines, YAML documents, a live table on a terminal, or lines."""
    if form == "json":
        yield lambda job: click.echo(json_text(job))
    elif form == "yaml":
        yield lambda job: click.echo("---\n" + yaml_text(job), nl=False)
    elif sys.stdout.isatty():
        with _live() as show:
            yield show
    else:
        yield JobLines(err=False)


@contextlib.contextmanager
def _live() -> Iterator[Callable[[Job], None]]:
    from rich.live import Live  # noqa: PLC0415 - a quarter of a second that `--help` saves
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    def table(job: Job) -> Table:
        made = Table.grid(padding=(0, 2))
        facts = {
            "job": job["name"],
            "state": state()(job),
            "step": step_of(job),
            "doing": "" if job["state"] in ENDED else field("progress.message")(job),
            "measured": metrics_of(job),
            "nodes": field("nodes")(job),
            "restarts": field("restarts")(job),
            "why": reason_of(job),
        }
        for key, value in facts.items():
            if value:
                made.add_row(Text(key, style="bold"), Text(safe(value)))
        return made

    with Live(auto_refresh=False) as live:
        yield lambda job: live.update(table(job), refresh=True)
