"""Options that several commands on this machine share."""

from __future__ import annotations

from pathlib import Path

import click

data_dir = click.option(
    "--data-dir",
    required=True,
    envvar="APPLIANCE_DATA_DIR",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="D",
    help="The appliance's data directory.",
)
