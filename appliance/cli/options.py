"""Options that several commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from appliance.cli.files import new_secret

data_dir = click.option(
    "--data-dir",
    required=True,
    envvar="APPLIANCE_DATA_DIR",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="D",
    help="The appliance's data directory.",
)

token_out = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the token to this new file, 0600, instead of printing it.",
)


def made_token(out: Path | None, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What `make` says of the token it made; the token itself goes to `out` if that is given.

    The file is open before the token is made: no token is lost for want of a place.
    """
    if out is None:
        return make()
    with new_secret(out) as file:
        facts = make()
        file.write(facts.pop("token").encode() + b"\n")
    click.echo(f"the token is in {out}, readable by you alone", err=True)
    return facts
