"""`appliance binding`: who holds which role, and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from appliance.cli.command import command as make
from appliance.cli.output import field, last
from appliance.core.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

LIST = "BindingService.ListBindings"
PLATFORM, EVERYWHERE = "platform", "projects/-"
WHERE = {PLATFORM: "the platform", EVERYWHERE: "all projects"}

COLUMNS = [
    ("BINDING", last()),
    ("PRINCIPAL", field("principal")),
    ("ROLE", last("role")),
    ("WHERE", lambda row: WHERE.get(row["scope"], row["scope"])),
]

command = click.Group("binding", help="Give and take away roles.")


Command = TypeVar("Command", bound=Callable[..., Any])


def scoped(function: Command) -> Command:
    """The two scopes that are no project; with neither, it is the chosen project."""
    platform = click.option(
        "--platform", is_flag=True, help="On the appliance itself: people, servers, audit."
    )
    everywhere = click.option("--everywhere", is_flag=True, help="In all projects.")
    return platform(everywhere(function))


def scope(session: CommandSession, *, everywhere: bool, platform: bool) -> str:
    """The scope that is said. Raises click.UsageError when two are."""
    typed = click.get_current_context().get_parameter_source("project")
    if (typed is ParameterSource.COMMANDLINE) + everywhere + platform > 1:
        raise click.UsageError("give one of --project P, --everywhere and --platform")
    if platform:
        return PLATFORM
    if everywhere:
        return EVERYWHERE
    if not session.project:
        raise click.UsageError(
            "where does it hold? Give --project P, --everywhere for all projects, or --platform "
            "for the appliance itself"
        )
    return session.parent


@make("create", "BindingService.CreateBinding", group=command, project=True)
@click.option(
    "--principal",
    required=True,
    metavar="NAME",
    help="users/USER or serviceAccounts/ACCOUNT.",
)
@click.option("--role", required=True, metavar="ROLE", help="One of `appliance role list`.")
@scoped
def create(
    session: CommandSession, principal: str, role: str, *, everywhere: bool, platform: bool
) -> None:
    """Give a role in a project, in all projects or on the platform."""
    if "/" not in principal:
        raise click.UsageError(
            f"--principal {principal}: write users/{principal} for a person, "
            f"serviceAccounts/{principal} for an application"
        )
    wanted = {
        "principal": principal,
        "role": session.name("role", role),
        "scope": scope(session, everywhere=everywhere, platform=platform),
    }
    try:
        made = session.call("BindingService.CreateBinding", binding=wanted)
    except (InvalidInput, NotFound) as error:
        # An application of an older appliance may have the short name itself, so that comes first.
        wanted["principal"] = _of_project(session, principal)
        of_principal = isinstance(error, NotFound) or "binding.principal" in error.fields
        if wanted["principal"] == principal or not of_principal:
            raise
        made = session.call("BindingService.CreateBinding", binding=wanted)
    session.show(made, COLUMNS)


def _of_project(session: CommandSession, principal: str) -> str:
    """`serviceAccounts/app` as the application `app` of the chosen project; others as they are."""
    collection, _, account = principal.partition("/")
    if collection != "serviceAccounts" or not session.project:
        return principal
    return session.name("serviceAccount", account)


@make("list", LIST, group=command, project=True)
@scoped
def list_(session: CommandSession, *, everywhere: bool, platform: bool) -> None:
    """List the bindings of a project, of the platform, or of all projects and each of them."""
    where = scope(session, everywhere=everywhere, platform=platform)
    session.show(session.rows(LIST, "bindings", scope=where), COLUMNS)


@make("delete", "BindingService.DeleteBinding", group=command)
@click.argument("name", metavar="BINDING")
def delete(session: CommandSession, name: str) -> None:
    """Take a role away; it stops to hold before this returns."""
    session.show(session.call("BindingService.DeleteBinding", name=session.name("binding", name)))
