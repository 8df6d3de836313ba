"""`appliance checkpoint`: what jobs have saved, from which they or others can go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.cli.output import field, last, size, state

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("CHECKPOINT", last()),
    ("STATE", state()),
    ("STEP", field("step")),
    ("EPOCH", field("epoch")),
    ("SIZE", size("size_bytes")),
    ("CREATED", field("create_time")),
    ("WHY", field("state_reason")),
]

LIST = "CheckpointService.ListCheckpoints"

command = click.Group("checkpoint", help="See and delete the checkpoints of jobs.")


@make("list", LIST, group=command, project=True)
@click.argument("job", metavar="JOB")
def list_(session: CommandSession, job: str) -> None:
    """List the checkpoints of a job, newest first."""
    parent = session.name("job", job)
    rows = session.rows(LIST, "checkpoints", parent=parent)
    session.show(rows, COLUMNS)


@make("get", "CheckpointService.GetCheckpoint", group=command, project=True)
@click.argument("name", metavar="JOB/CHECKPOINT")
def get(session: CommandSession, name: str) -> None:
    """Show one checkpoint."""
    full = session.name("checkpoint", name)
    session.show(session.call("CheckpointService.GetCheckpoint", name=full))


@make("delete", "CheckpointService.DeleteCheckpoint", group=command, project=True)
@click.argument("name", metavar="JOB/CHECKPOINT")
def delete(session: CommandSession, name: str) -> None:
    """Delete a checkpoint."""
    full = session.name("checkpoint", name)
    session.show(session.call("CheckpointService.DeleteCheckpoint", name=full), COLUMNS)
