"""`appliance model`: take in models; see and download their versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import deleting, downloading, model_plan, sending, updating
from appliance.cli.command import command as make
from appliance.cli.describing import Rows, section
from appliance.cli.output import field, last, safe, short, short_name, size, wide
from appliance.cli.progress import bytes_bar
from appliance.cli.prompts import yes_option
from appliance.cli.updating import etag_option

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("MODEL", last()),
    ("LATEST", last("latest_version")),
    ("CREATED", field("create_time")),
    ("DESCRIPTION", field("description")),
]
VERSIONS = [
    ("VERSION", short()),
    ("ARCHITECTURE", field("architecture")),
    ("FORMAT", field("format")),
    ("PARAMETERS", field("parameters")),
    ("SIZE", size("size_bytes")),
    wide("CONTEXT", field("context_length")),
    ("CREATED", field("create_time")),
    wide("MADE BY", lambda row: short_name(row["job"] or row["creator"])),
]

command = click.Group("model", help="Take in models; see, download and delete their versions.")


@make("create", "ModelService.CreateModel", group=command, project=True)
@click.argument("model_id", metavar="MODEL")
@click.option("--description", default="", help="What it is for.")
def create(session: CommandSession, model_id: str, description: str) -> None:
    """Create a model without versions."""
    made = session.call(
        "ModelService.CreateModel",
        parent=session.parent,
        model_id=model_id,
        model={"description": description},
    )
    session.show(made, COLUMNS)


@make("import", *sending.CALLS, "ModelService.GetModelVersion", group=command, project=True)
@click.argument("name", metavar="MODEL")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--dry-run", is_flag=True, help="Send nothing: say what would be sent, and what works with it."
)
@sending.resumable
def import_(
    session: CommandSession,
    name: str,
    folder: Path,
    *,
    dry_run: bool,
    resume: bool,
    upload: str | None,
) -> None:
    """Take in a model as a new sealed version.

    The model is created when it is missing.

    FOLDER has the Hugging Face layout: config.json, tokenizer, *.safetensors. Everything in it that
    cannot be used is said before a byte is sent; what nobody needs is left out.

    What was sent is kept when this is interrupted: the same with --resume sends the rest.
    """
    from appliance.client import model_folder, parts  # noqa: PLC0415 - imports protobuf

    found = model_folder.examine(folder)
    if dry_run:
        session.show(model_plan.of(found))
        return
    full = session.name("model", name)
    begun = sending.begin(session, full, found.files, resume=resume, upload=upload)
    taken = {each.file: each.size_bytes for each in begun.upload.files}
    left = sorted(found.left_out | {file: "" for file, _ in found.files if file not in taken})
    if left:
        click.echo(safe(f"left out: {', '.join(left)}"), err=True)
    with bytes_bar(f"{len(taken)} files", sum(taken.values())) as advance:
        cut = parts.model_parts(folder, begun.upload)
        version = sending.send(session, begun, cut, advance)
    sending.show(session, version, "ModelService.GetModelVersion", VERSIONS)


@make("download", "DownloadService.DownloadModelVersion", group=command, project=True)
@click.argument("name", metavar="MODEL/VERSION")
@downloading.into_folder
def download(session: CommandSession, name: str, folder: Path, *, force: bool) -> None:
    """Take a version out of the appliance, decrypted, into FOLDER.

    The project must allow it, and you need a role with models.download, which no built-in role has.

    What came is kept when this is interrupted: the same command goes on.
    """
    full = session.name("modelVersion", name)
    rpc = "DownloadService.DownloadModelVersion"
    downloading.download(session, rpc, full, folder, force=force)


@make(
    "get",
    "ModelService.GetModel",
    "ModelService.GetModelVersion",
    group=command,
    project=True,
)
@click.argument("name", metavar="MODEL[/VERSION]")
def get(session: CommandSession, name: str) -> None:
    """Show one model, or one version of it."""
    full = session.either(name, "model", "modelVersion")
    method = "GetModelVersion" if full.kind == "modelVersion" else "GetModel"
    session.show(session.call(f"ModelService.{method}", name=str(full)))


@section(command, "Versions", "ModelService.ListModelVersions")
def versions_of(session: CommandSession, found: dict[str, Any]) -> Rows:
    """The versions of a model; one version has none."""
    if "/versions/" in found["name"]:
        return [], VERSIONS
    rpc = "ModelService.ListModelVersions"
    return session.each(rpc, "versions", parent=found["name"]), VERSIONS


@make("list", "ModelService.ListModels", group=command, project=True)
def list_(session: CommandSession) -> None:
    """List the models of a project."""
    rows = session.rows("ModelService.ListModels", "models", parent=session.parent)
    session.show(rows, COLUMNS)


@make("versions", "ModelService.ListModelVersions", group=command, project=True)
@click.argument("name", metavar="MODEL")
def versions(session: CommandSession, name: str) -> None:
    """List the versions of a model, newest first."""
    parent = session.name("model", name)
    session.show(
        session.rows("ModelService.ListModelVersions", "versions", parent=parent), VERSIONS
    )


@make("update", "ModelService.UpdateModel", group=command, project=True)
@click.argument("name", metavar="MODEL")
@click.option("--description", help="What it is for.")
@etag_option()
def update(session: CommandSession, name: str, etag: str, **given: object) -> None:
    """Change its description."""
    full = session.name("model", name)
    made = updating.update(session, "ModelService.UpdateModel", "model", full, etag, **given)
    session.show(made, COLUMNS)


@make(
    "delete",
    "ModelService.DeleteModel",
    "ModelService.DeleteModelVersion",
    group=command,
    project=True,
)
@click.argument("name", metavar="MODEL[/VERSION]")
@etag_option()
@yes_option()
def delete(session: CommandSession, name: str, etag: str, *, yes: bool) -> None:
    """Delete a model with all its versions, or one version, for ever.

    The key goes first, then the bytes. What uses it is named, and then nothing is deleted.
    """
    full = session.either(name, "model", "modelVersion")
    method = "DeleteModelVersion" if full.kind == "modelVersion" else "DeleteModel"
    deleting.delete(session, f"ModelService.{method}", str(full), etag, yes=yes)
