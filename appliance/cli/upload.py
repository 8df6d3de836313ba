"""`appliance upload`: what is on its way in, and can be gone on with or given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.cli.output import field, last, short, size, state

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("UPLOAD", last()),
    ("OF", short("artifact")),
    ("STATE", state("state")),
    ("PARTS", field("parts")),
    ("SIZE", size("size_bytes")),
    ("CREATED", field("create_time")),
    ("KEPT UNTIL", field("expire_time")),
]

command = click.Group("upload", help="See your uploads; abort those that are open.")


@make("list", "UploadService.ListUploads", group=command, project=True)
def list_(session: CommandSession) -> None:
    """List your uploads in a project, newest first."""
    rows = session.rows("UploadService.ListUploads", "uploads", parent=session.parent)
    session.show(rows, COLUMNS)


@make("get", "UploadService.GetUpload", group=command, project=True)
@click.argument("name", metavar="UPLOAD")
def get(session: CommandSession, name: str) -> None:
    """Show one of your uploads."""
    session.show(session.call("UploadService.GetUpload", name=session.name("upload", name)))


@make("abort", "UploadService.AbortUpload", group=command, project=True)
@click.argument("name", metavar="UPLOAD")
def abort(session: CommandSession, name: str) -> None:
    """Forget an upload and all that was sent."""
    full = session.name("upload", name)
    session.call("UploadService.AbortUpload", name=full)
    click.echo(f"{full} is aborted")
