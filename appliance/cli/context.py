"""`appliance context`: which server, and which project, later commands mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from appliance.cli import output
from appliance.cli.command import output_option
from appliance.cli.completing import complete_parameters
from appliance.client.profiles import Profile, Profiles
from appliance.core.addresses import is_host, split_address
from appliance.core.errors import InvalidInput

COLUMNS = [
    ("CONTEXT", output.field("name")),
    ("SERVER", output.field("server")),
    ("PROJECT", output.field("project")),
    ("USER", output.field("user")),
    ("CURRENT", output.field("current")),
]

command = click.Group("context", help="Choose the server and the project to work with.")


def _local(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A command on the configuration folder: it gets `Profiles`, and what it returns is printed."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(output: str, **values: Any) -> None:
            profiles = Profiles()
            names = function(profiles, **values)
            _show(profiles, names, output)

        made = click.command(name)(run)
        made.params.append(output_option())
        if name != "add":
            complete_parameters(made)
        command.add_command(made)
        return made

    return decorate


def _show(profiles: Profiles, names: str | list[str], form: str) -> None:
    """Print one context, or those of a list."""
    rows = []
    for profile in profiles.all():
        row = asdict(profile) | {"current": profile.name == profiles.current}
        del row["ca_pem"]
        rows.append(row)
    if isinstance(names, list):
        output.show([row for row in rows if row["name"] in names], form, COLUMNS)
    else:
        (found,) = (row for row in rows if row["name"] == names)
        output.show(found, form, COLUMNS)


@_local("add")
@click.argument("name", metavar="NAME")
@click.option("--server", required=True, metavar="HOST:PORT", help="Address of the control plane.")
@click.option(
    "--ca",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The appliance's CA certificate, ca.pem in its data directory.",
)
@click.option("--project", default="", metavar="P", help="Project that short names belong to.")
def add(profiles: Profiles, name: str, server: str, ca: Path, project: str) -> str:
    """Add a server and use it."""
    try:
        host, port = split_address(server, "--server")
    except InvalidInput:
        host, port = "", 0
    if not is_host(host) or not port:
        raise click.UsageError(
            f"--server {server}: write HOST:PORT with a port from 1 to 65535, such as "
            "appliance.example:7443 or [::1]:7443"
        )
    pem = ca.read_text(encoding="ascii", errors="replace")
    if "-----BEGIN CERTIFICATE-----" not in pem:
        raise click.UsageError(f"--ca {ca} is no PEM certificate: take ca.pem of the appliance")
    profiles.put(Profile(name=name, server=server, ca_pem=pem, project=project))
    return name


@_local("use")
@click.argument("name", metavar="NAME")
def use(profiles: Profiles, name: str) -> str:
    """Make a context the current one."""
    profiles.use(name)
    return name


@_local("set-project")
@click.argument("project", metavar="P")
@click.option(
    "--context",
    "name",
    metavar="NAME",
    envvar="APPLIANCE_CONTEXT",
    default="",
    help="Context to change.  [default: the current one]",
)
def set_project(profiles: Profiles, project: str, name: str) -> str:
    """Choose the project that short names belong to."""
    return profiles.set_project(project.removeprefix("projects/"), name).name


@_local("list")
def list_(profiles: Profiles) -> list[str]:
    """List every context."""
    return [profile.name for profile in profiles.all()]


@_local("show")
@click.argument("name", metavar="NAME", default="")
def show(profiles: Profiles, name: str) -> str:
    """Show a context: the current one when none is named."""
    return profiles.get(name).name


@_local("remove")
@click.argument("name", metavar="NAME")
def remove(profiles: Profiles, name: str) -> list[str]:
    """Forget a context and its session; list what is left."""
    profiles.remove(name)
    return [profile.name for profile in profiles.all()]
