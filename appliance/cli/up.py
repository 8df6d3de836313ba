"""`appliance up`: control plane, node agent and gateway of a data directory, as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click

from appliance.cli.local import Local, log_file
from appliance.cli.options import data_dir
from appliance.core.errors import BY_REASON, FailedPrecondition
from appliance.core.files import make_private_dir

ENDING_SECONDS = 30.0


@click.command("up")
@data_dir
@click.option("--detach", is_flag=True, help="Go on in the background; `down` ends it.")
@click.option(
    "--no-node", "node", flag_value=False, default=True, help="This machine runs no jobs or models."
)
def command(data_dir: Path, *, detach: bool, node: bool) -> None:
    """Start an appliance on this machine.

    Starts control plane, node agent and gateway as separate processes, waits until they serve, and
    starts again what ends by itself. Ctrl-C or `appliance down` ends all of it. Logs are in
    run/*.log of the data directory.

    What node and gateway need to call is renewed first, and said: a node that was off for more than
    ten days, or was evicted, joins anew.
    """
    local = Local(data_dir)
    local.programs(node=node)
    if detach:
        _detach(local, node=node)
        return
    from appliance.cli.supervisor import Supervisor  # noqa: PLC0415 - imports gRPC

    supervisor = Supervisor(local, lambda text: click.echo(text, err=True), node=node)
    supervisor.run(lambda: _say_ready(local))


def _say_ready(local: Local) -> None:
    click.echo(f"the appliance is up: {local.api}", err=True)


def _detach(local: Local, *, node: bool) -> None:
    make_private_dir(local.run)
    reading, writing = os.pipe()
    program = [sys.executable, "-P", "-m", "appliance.cli.supervisor"]
    program += [] if node else ["--no-node"]
    with log_file(local.log("supervisor")) as log:
        supervisor = subprocess.Popen(
            [*program, "--data-dir", str(local.path), "--ready-fd", str(writing)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writing],
            start_new_session=True,
        )
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as reports:
        for line in reports:
            told = json.loads(line)
            if "say" in told:
                click.echo(told["say"], err=True)
            elif "error" in told:
                # It has ended everything it started, and ends now; nothing is left when we do.
                supervisor.wait(ENDING_SECONDS)
                raise BY_REASON.get(told["reason"], FailedPrecondition)(told["error"])
            else:
                _say_ready(local)
                return
    raise FailedPrecondition(f"the start broke off: read {local.log('supervisor')}")
