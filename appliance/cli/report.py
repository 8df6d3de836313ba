"""`appliance report`: what jobs have found, to be read here or kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli import deleting, downloading
from appliance.cli.command import command as make
from appliance.cli.output import field, last, plain
from appliance.cli.prompts import yes_option
from appliance.cli.report_view import show_report
from appliance.cli.updating import etag_option

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("REPORT", last()),
    ("TITLE", field("title")),
    ("PICTURES", field("pictures")),
    ("MADE BY", last("job")),
    ("CREATED", field("create_time")),
]

command = click.Group("report", help="Read, download and delete what jobs have found.")


@make("list", "ReportService.ListReports", group=command, project=True)
def list_(session: CommandSession) -> None:
    """List the reports of a project."""
    rows = session.rows("ReportService.ListReports", "reports", parent=session.parent)
    session.show(rows, COLUMNS)


@make("get", "ReportService.GetReport", group=command, project=True)
@click.argument("name", metavar="REPORT")
def get(session: CommandSession, name: str) -> None:
    """Read a report.

    Texts, numbers and tables are shown here; `report download` has the pictures.
    """
    found = plain(session.call("ReportService.GetReport", name=session.name("report", name)))
    if session.shared.output == "table":
        show_report(found)
    else:
        session.show(found)


@make("download", "ReportService.DownloadReport", group=command, project=True)
@click.argument("name", metavar="REPORT")
@downloading.into_folder
def download(session: CommandSession, name: str, folder: Path, *, force: bool) -> None:
    """Put the files of a report into FOLDER.

    They are report.json and its PNG pictures.
    """
    full = session.name("report", name)
    downloading.download(session, "ReportService.DownloadReport", full, folder, force=force)


@make("delete", "ReportService.DeleteReport", group=command, project=True)
@click.argument("name", metavar="REPORT")
@etag_option()
@yes_option()
def delete(session: CommandSession, name: str, etag: str, *, yes: bool) -> None:
    """Delete a report with its key, for ever."""
    full = session.name("report", name)
    deleting.delete(session, "ReportService.DeleteReport", full, etag, yes=yes)
