"""`appliance role`: the built-in roles, and the site's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from appliance.cli.command import command as make
from appliance.cli.output import field, last, plain, wide

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("ROLE", last()),
    ("FOR PEOPLE", field("assignable")),
    ("WHERE", lambda row: ", ".join(row["scopes"])),
    ("DESCRIPTION", field("description")),
    wide("OF THIS SITE", field("site")),
]

PERMISSIONS = [
    ("PERMISSION", field("permission")),
    ("FRESH CODE", field("fresh_mfa")),
    ("CALL", field("method")),
    ("WHAT IT DOES", field("summary")),
]

command = click.Group("role", help="See the roles.")


@make("get", "RoleService.GetRole", group=command)
@click.argument("name", metavar="ROLE")
def get(session: CommandSession, name: str) -> None:
    """Show one role with its permissions."""
    session.show(session.call("RoleService.GetRole", name=session.name("role", name)))


@make("list", "RoleService.ListRoles", group=command)
def list_(session: CommandSession) -> None:
    """List every role."""
    session.show(session.rows("RoleService.ListRoles", "roles"), COLUMNS)


@make("permissions", "SystemService.ListPermissions", group=command)
def permissions(session: CommandSession) -> None:
    """List every call with the permission it needs."""
    found = plain(session.call("SystemService.ListPermissions"))
    session.show(found["methods"], PERMISSIONS)
