"""`appliance init`: make the data directory of a new appliance, and a context for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

from appliance.cli import output, prompts
from appliance.cli.command import output_option
from appliance.cli.local import Local
from appliance.cli.options import data_dir
from appliance.client.profiles import Profile, Profiles
from appliance.core import names
from appliance.core.data_directory import DataDirectory
from appliance.core.errors import ApplianceError, FailedPrecondition
from appliance.core.site import LOOPBACK, PORTS, Site

LAST_BASE = 65535 - len(PORTS) + 1


@click.command("init", params=[output_option()])
@data_dir
@click.option("--admin", required=True, metavar="NAME", help="Id of the first administrator.")
@click.option("--password-file", metavar="FILE", help="Its password; `-` is standard input.")
@click.option(
    "--port-base",
    type=click.IntRange(1, LAST_BASE),
    help="First of eight ports, one after the other.  [default: 7443 to 7447, 8443 to 8445]",
)
@click.option("--devices", type=click.IntRange(1), help="Devices the node offers.  [default: all]")
@click.option("--listen", default=LOOPBACK, show_default=True, help="Host to listen on.")
@click.option("--address", help="Host under which others reach it.  [default: --listen]")
def command(
    data_dir: Path,
    admin: str,
    password_file: str | None,
    port_base: int | None,
    devices: int | None,
    listen: str,
    address: str | None,
    output: str,
) -> None:
    """Make the data directory of a new appliance: keys, CA, state, first administrator.

    Start it with `appliance up`, then `appliance login`.
    """
    local = Local(data_dir)
    DataDirectory(local.path).check_unused()
    names.check_id(admin, "admin")
    ports = {name: port_base + i for i, name in enumerate(PORTS)} if port_base else dict(PORTS)
    site = Site(listen, address, ports)
    site.check_listen()
    site.check_ports("--port-base")
    Profiles().check_writable()
    password = prompts.password(password_file, f"New password of {admin}", twice=True)
    arguments = [f"--listen={listen}", f"--address={site.host}"]
    arguments += [f"--port={name}={port}" for name, port in ports.items()]
    if devices is not None:
        arguments += ["--devices", str(devices)]
    made = _make(local, admin, password, arguments)
    made["context"] = add_context(local, site.reached("api"), admin)
    _show(made, output)


def _make(local: Local, admin: str, password: str, arguments: list[str]) -> dict[str, str]:
    """Run the control plane's own `init`; the password goes through a pipe."""
    program = [sys.executable, "-P", "-m", "appliance.control", "init", "--password-stdin"]
    done = subprocess.run(
        [*program, "--data-dir", str(local.path), "--admin", admin, *arguments],
        input=password + "\n",
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise FailedPrecondition(said[-1].removeprefix("error: ") if said else "init failed")
    made: dict[str, str] = json.loads(done.stdout)
    return made


def add_context(local: Local, server: str, admin: str) -> str:
    """A context under a name that no other appliance has; one of another appliance is kept."""
    profiles = Profiles()
    pem = local.ca.read_text(encoding="ascii")
    taken = {profile.name: profile for profile in profiles.all()}
    name, number = "local", 1
    while name in taken and taken[name].ca_pem != pem:
        number += 1
        name = f"local-{number}"
    if name != "local":
        click.echo(
            f"the context local is of another appliance and stays as it is: this one is {name}, "
            "which is in use now",
            err=True,
        )
    try:
        profiles.put(Profile(name=name, server=server, ca_pem=pem, user=admin))
    except ApplianceError as error:
        raise FailedPrecondition(
            f"the appliance in {local.path} is made, but {error}: `appliance context add {name} "
            f"--server {server} --ca {local.ca}`"
        ) from error
    return name


def _show(made: dict[str, str], form: str) -> None:
    output.show(made, form)
    click.echo(f"start it with `appliance up --data-dir {made['data']}`", err=True)
