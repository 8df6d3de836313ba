"""What `model download`, `dataset download` and `report download` share.

Rule kept here: who is interrupted is told that the same command goes on, and where what came lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import field, size
from appliance.cli.progress import growing_bar
from appliance.core.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.cli.session import CommandSession

COLUMNS = [
    ("DOWNLOADED", field("name")),
    ("FOLDER", field("folder")),
    ("FILES", field("files")),
    ("SIZE", size("size_bytes")),
]
_FOLDER = click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
_FORCE = click.option(
    "--force",
    is_flag=True,
    help="Put it into a folder that holds something: replaces files of the same names, no others.",
)


def into_folder(function: Callable[..., None]) -> Callable[..., None]:
    """Adds FOLDER and `--force` to a command."""
    return _FOLDER(_FORCE(function))


def download(session: CommandSession, rpc: str, name: str, folder: Path, *, force: bool) -> None:
    """Get a version into a folder, and show what came.

    Args:
        session: of the command.
        rpc: that streams it.
        name: resource name.
        folder: where it shall be.
        force: replace files there.
    """
    from appliance.client.downloads import Download  # noqa: PLC0415 - imports protobuf

    def begin(file: str, offset: int) -> Iterator[Any]:
        # Somebody may have logged in again meanwhile.
        session.read_token_again()
        return session.stream(rpc, name=name, file=file, offset=offset)

    with Download(name, folder, force=force, say=lambda what: click.echo(what, err=True)) as work:
        try:
            with growing_bar(name) as advance:
                found = work.run(begin, advance)
        except KeyboardInterrupt:
            _say_again(work)
            # Without its cause, which would say that work on the server goes on.
            raise click.Abort from None
        except (ApplianceError, OSError):
            _say_again(work)
            raise
    made = {
        "name": found.name,
        "folder": str(work.target),
        "files": len(found.sizes),
        "size_bytes": found.size,
        "manifest_digest": found.manifest_digest,
    }
    session.show(made, COLUMNS)


def _say_again(work: Any) -> None:
    if work.begun:
        click.echo(
            f"what came is kept in {work.folder}: the same command goes on with it", err=True
        )
