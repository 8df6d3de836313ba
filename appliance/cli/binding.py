"""`appliance binding`: who holds which role, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli import naming
from appliance.cli.command import command as make
from appliance.cli.output import field, last

if TYPE_CHECKING:
    from appliance.cli.session import Session

COLUMNS = [
    ("BINDING", last()),
    ("PRINCIPAL", field("principal")),
    ("ROLE", last("role")),
    ("WHERE", lambda row: field("scope")(row) or "the whole appliance"),
]

command = click.Group("binding", help="Give and take away roles.")


@make("create", "BindingService.CreateBinding", group=command)
@click.option(
    "--principal",
    required=True,
    metavar="NAME",
    help="users/USER or serviceAccounts/ACCOUNT.",
)
@click.option("--role", required=True, metavar="ROLE", help="One of `appliance role list`.")
@click.option("--project", metavar="P", help="Where it holds.  [default: the whole appliance]")
def create(session: Session, principal: str, role: str, project: str | None) -> None:
    """Give a role."""
    wanted = {
        "principal": principal,
        "role": session.name("role", role),
        "scope": naming.parent(project) if project else "",
    }
    session.show(session.call("BindingService.CreateBinding", binding=wanted), COLUMNS)


@make("list", "BindingService.ListBindings", group=command)
@click.option("--project", metavar="P", help="Only those of a project.")
def list_(session: Session, project: str | None) -> None:
    """List bindings."""
    scope = naming.parent(project) if project else ""
    session.show(session.list("BindingService.ListBindings", "bindings", scope=scope), COLUMNS)


@make("delete", "BindingService.DeleteBinding", group=command)
@click.argument("name", metavar="BINDING")
def delete(session: Session, name: str) -> None:
    """Take a role away; it stops to hold before this returns."""
    session.show(session.call("BindingService.DeleteBinding", name=session.name("binding", name)))
