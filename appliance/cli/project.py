"""`appliance project`: tenants, each with a key of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.cli import binding, endpoint, updating
from appliance.cli.command import command as make
from appliance.cli.deleting import confirm, would_delete
from appliance.cli.describing import Rows, section
from appliance.cli.output import field, last
from appliance.cli.prompts import yes_option
from appliance.cli.updating import etag_option

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("PROJECT", last()),
    ("DOWNLOADS", lambda row: "allowed" if row["allow_downloads"] else "no"),
    ("CREATED", field("create_time")),
    ("DESCRIPTION", field("description")),
]

command = click.Group("project", help="Manage projects.")


@make("create", "ProjectService.CreateProject", group=command)
@click.argument("project_id", metavar="PROJECT")
@click.option("--description", default="", help="What it is for.")
def create(session: CommandSession, project_id: str, description: str) -> None:
    """Create a project and its key."""
    made = session.call(
        "ProjectService.CreateProject",
        project_id=project_id,
        project={"description": description},
    )
    session.show(made, COLUMNS)


@make("get", "ProjectService.GetProject", group=command)
@click.argument("name", metavar="PROJECT")
def get(session: CommandSession, name: str) -> None:
    """Show one project."""
    session.show(session.call("ProjectService.GetProject", name=session.name("project", name)))


@section(command, "Bindings", binding.LIST)
def bindings(session: CommandSession, found: dict[str, Any]) -> Rows:
    """Who holds a role in a project."""
    return session.each(binding.LIST, "bindings", scope=found["name"]), binding.COLUMNS


@section(command, "Endpoints", endpoint.LIST)
def endpoints(session: CommandSession, found: dict[str, Any]) -> Rows:
    """What a project serves."""
    return session.each(endpoint.LIST, "endpoints", parent=found["name"]), endpoint.COLUMNS


@make("list", "ProjectService.ListProjects", group=command)
def list_(session: CommandSession) -> None:
    """List the projects you hold a role in."""
    session.show(session.rows("ProjectService.ListProjects", "projects"), COLUMNS)


@make("update", "ProjectService.UpdateProject", group=command)
@click.argument("name", metavar="PROJECT")
@click.option("--description", help="What it is for.")
@click.option(
    "--allow-downloads/--no-allow-downloads",
    default=None,
    help="Whether models and datasets of it may be downloaded, by whoever holds that permission.",
)
@etag_option()
def update(session: CommandSession, name: str, etag: str, **given: object) -> None:
    """Change its description, or whether what is in it may leave the appliance."""
    made = updating.update(
        session,
        "ProjectService.UpdateProject",
        "project",
        session.name("project", name),
        etag,
        **given,
    )
    session.show(made, COLUMNS)


@make("delete", "ProjectService.DeleteProject", group=command)
@click.argument("name", metavar="PROJECT")
@etag_option()
@yes_option()
def delete(session: CommandSession, name: str, etag: str, *, yes: bool) -> None:
    """Delete an empty project with its key, its tombstones and its bindings, for ever."""
    full, rpc = session.name("project", name), "ProjectService.DeleteProject"
    if not yes:
        would = would_delete(session, rpc, full, etag)
        confirm(
            full,
            f"{full} is empty and goes with its key, {would.tombstones} tombstones and "
            f"{would.bindings} bindings, for ever.",
        )
    session.show(session.call(rpc, name=full, etag=etag))
