"""`appliance dataset`: text goes in, and what was made of it can be judged, or taken out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli import deleting, downloading, sending, updating
from appliance.cli.command import command as make
from appliance.cli.describing import Rows, section
from appliance.cli.output import field, last, plain, short, short_name, size, state
from appliance.cli.progress import bytes_bar
from appliance.cli.prompts import yes_option
from appliance.cli.updating import etag_option

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("DATASET", last()),
    ("LATEST", last("latest_version")),
    ("CREATED", field("create_time")),
    ("DESCRIPTION", field("description")),
]
VERSIONS = [
    ("VERSION", short()),
    ("KIND", state("kind")),
    ("DOCUMENTS", field("documents")),
    ("TOKENS", field("tokens")),
    ("SIZE", size("size_bytes")),
    ("CREATED", field("create_time")),
    ("MADE BY", lambda row: short_name(row["job"] or row["creator"])),
]
STEPS = [
    ("STEP", field("name")),
    ("IN", field("documents_in")),
    ("OUT", field("documents_out")),
    ("CHANGED", field("changed")),
    (
        "DROPPED",
        lambda row: ", ".join(f"{why} {count}" for why, count in sorted(row["dropped"].items())),
    ),
]

SCRIPTS = [
    ("SCRIPT", field("script")),
    ("DOCUMENTS", field("documents")),
    ("KEPT", field("kept")),
]

command = click.Group("dataset", help="Upload, download and delete text; see what was made of it.")


@make("create", "DatasetService.CreateDataset", group=command, project=True)
@click.argument("dataset_id", metavar="DATASET")
@click.option("--description", default="", help="What is in it.")
def create(session: CommandSession, dataset_id: str, description: str) -> None:
    """Create an empty dataset."""
    made = session.call(
        "DatasetService.CreateDataset",
        parent=session.parent,
        dataset_id=dataset_id,
        dataset={"description": description},
    )
    session.show(made, COLUMNS)


@make("upload", *sending.CALLS, "DatasetService.GetDatasetVersion", group=command, project=True)
@click.argument("name", metavar="DATASET")
@click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--hidden", is_flag=True, help="Take hidden files and folders too.")
@sending.resumable
def upload(
    session: CommandSession,
    name: str,
    paths: tuple[Path, ...],
    *,
    hidden: bool,
    resume: bool,
    upload: str | None,
) -> None:
    """Upload text as a new sealed version, all of it or nothing.

    PATH is a file or a folder of .txt, .md, .rst (one document each) or .jsonl (one document per
    line: an object with `text`, and `id` and `source` if you like). A text of more than 3 MiB
    becomes several documents. What is left out of a folder is said.

    What was sent is kept when this is interrupted: the same with --resume sends the rest.
    """
    from appliance.client import parts, texts  # noqa: PLC0415 - imports protobuf

    full = session.name("dataset", name)
    found = texts.text_files(paths, hidden=hidden)
    if found.left_out:
        click.echo(f"left out: {found.sentence()}", err=True)
    begun = sending.begin(session, full, resume=resume, upload=upload)
    with bytes_bar(f"{found.count} files", found.size) as advance:
        cut = parts.text_parts(texts.documents(found, advance))
        version = sending.send(session, begun, cut, lambda _: None)
    sending.show(session, version, "DatasetService.GetDatasetVersion", VERSIONS)


@make("download", "DownloadService.DownloadDatasetVersion", group=command, project=True)
@click.argument("name", metavar="DATASET/VERSION")
@downloading.into_folder
def download(session: CommandSession, name: str, folder: Path, *, force: bool) -> None:
    """Take a version out of the appliance, decrypted, into FOLDER.

    Text comes as JSON lines, as `dataset upload` takes them; tokens come as they are stored.
    The project must allow it, and you need a role with datasets.download, which no built-in role
    has.

    What came is kept when this is interrupted: the same command goes on.
    """
    full = session.name("datasetVersion", name)
    rpc = "DownloadService.DownloadDatasetVersion"
    downloading.download(session, rpc, full, folder, force=force)


@make(
    "get",
    "DatasetService.GetDataset",
    "DatasetService.GetDatasetVersion",
    group=command,
    project=True,
)
@click.argument("name", metavar="DATASET[/VERSION]")
def get(session: CommandSession, name: str) -> None:
    """Show one dataset, or one version of it."""
    full = session.either(name, "dataset", "datasetVersion")
    method = "GetDatasetVersion" if full.kind == "datasetVersion" else "GetDataset"
    session.show(session.call(f"DatasetService.{method}", name=str(full)))


@section(command, "Versions", "DatasetService.ListDatasetVersions")
def versions_of(session: CommandSession, found: dict[str, Any]) -> Rows:
    """The versions of a dataset; one version has none."""
    if "/versions/" in found["name"]:
        return [], VERSIONS
    rpc = "DatasetService.ListDatasetVersions"
    return session.each(rpc, "versions", parent=found["name"]), VERSIONS


@make("list", "DatasetService.ListDatasets", group=command, project=True)
def list_(session: CommandSession) -> None:
    """List the datasets of a project."""
    rows = session.rows("DatasetService.ListDatasets", "datasets", parent=session.parent)
    session.show(rows, COLUMNS)


@make("versions", "DatasetService.ListDatasetVersions", group=command, project=True)
@click.argument("name", metavar="DATASET")
def versions(session: CommandSession, name: str) -> None:
    """List the versions of a dataset, newest first."""
    parent = session.name("dataset", name)
    method = "DatasetService.ListDatasetVersions"
    session.show(session.rows(method, "versions", parent=parent), VERSIONS)


@make("report", "DatasetService.GetPrepareReport", group=command, project=True)
@click.argument("name", metavar="DATASET/VERSION")
@click.option("--examples", is_flag=True, help="Show dropped documents too.")
def report(session: CommandSession, name: str, *, examples: bool) -> None:
    """Show what a prepare job kept and dropped, step by step."""
    full = session.name("datasetVersion", name)
    found = plain(session.call("DatasetService.GetPrepareReport", name=full))
    if session.shared.output != "table":
        session.show(found)
        return
    session.show(found["steps"], STEPS)
    scripts = [{"script": name} | row for name, row in sorted(found["scripts"].items())]
    session.show(scripts, SCRIPTS)
    kept, documents, tokens = (found[key] for key in ("kept", "documents", "tokens"))
    click.echo(f"{kept} of {documents} documents kept; {tokens} tokens")
    if found["redactions"]:
        redactions = ", ".join(f"{k} {n}" for k, n in sorted(found["redactions"].items()))
        click.echo(f"personal data replaced: {redactions}")
    if examples:
        rows = [
            each | {"step": step["name"]} for step in found["steps"] for each in step["examples"]
        ]
        names = ("step", "reason", "document_id", "excerpt")
        session.show(rows, [(key.upper().replace("_", " "), field(key)) for key in names])


@make("update", "DatasetService.UpdateDataset", group=command, project=True)
@click.argument("name", metavar="DATASET")
@click.option("--description", help="What is in it.")
@etag_option()
def update(session: CommandSession, name: str, etag: str, **given: object) -> None:
    """Change its description."""
    full = session.name("dataset", name)
    made = updating.update(session, "DatasetService.UpdateDataset", "dataset", full, etag, **given)
    session.show(made, COLUMNS)


@make(
    "delete",
    "DatasetService.DeleteDataset",
    "DatasetService.DeleteDatasetVersion",
    group=command,
    project=True,
)
@click.argument("name", metavar="DATASET[/VERSION]")
@etag_option()
@yes_option()
def delete(session: CommandSession, name: str, etag: str, *, yes: bool) -> None:
    """Delete a dataset with all its versions, or one version, for ever.

    The key goes first, then the bytes. What uses it is named, and then nothing is deleted.
    """
    full = session.either(name, "dataset", "datasetVersion")
    method = "DeleteDatasetVersion" if full.kind == "datasetVersion" else "DeleteDataset"
    deleting.delete(session, f"DatasetService.{method}", str(full), etag, yes=yes)
