"""`appliance down`: end what `up` has started."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from appliance.cli.local import Local
from appliance.cli.options import data_dir
from appliance.core.data_directory import DataDirectory
from appliance.core.process_tree import end, kill_below

# Longer than the supervisor gives its processes.
SECONDS = 60.0


@click.command("down")
@data_dir
def command(data_dir: Path) -> None:
    """Stop an appliance on this machine: all its processes, nothing else."""
    local = Local(data_dir)
    pid = local.supervisor()
    if pid is None:
        DataDirectory(local.path).check_complete()
        click.echo(f"the appliance in {local.path} is not running", err=True)
        return
    if not end(pid, SECONDS):
        kill_below(pid)
        end(pid, SECONDS, signal.SIGKILL)
    click.echo("the appliance is down", err=True)
