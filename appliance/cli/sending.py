"""What `dataset upload` and `model import` share: begin an upload or go on with one, and send it.

Rules kept here: nothing is remembered between two runs; which upload of the caller's is still open
is asked of the server; who is interrupted is told how to go on.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.core.errors import (
    ApplianceError,
    FailedPrecondition,
    NotFound,
    Unauthenticated,
    Unavailable,
)

if TYPE_CHECKING:
    from appliance.api.data.v1.upload_pb2 import Upload
    from appliance.cli.session import Session
    from appliance.client.parts import Part

CALLS = (
    "UploadService.CreateUpload",
    "UploadService.GrantUpload",
    "UploadService.UploadPart",
    "UploadService.GetUpload",
    "UploadService.ListUploads",
    "UploadService.ListUploadParts",
    "UploadService.CommitUpload",
    "UploadService.AbortUpload",
)
"""What a command that sends something calls, beside what it shows."""
_PASSES = (Unavailable, Unauthenticated)
"""After which the same command may go on, also when nothing was sent."""
resume_options = (
    click.option(
        "--resume", is_flag=True, help="Go on with what was interrupted: send what is missing."
    ),
    click.option(
        "--upload",
        metavar="UPLOAD",
        help="The upload to go on with, when several are open; see `appliance upload list`.",
    ),
)


def resumable(function: Callable[..., None]) -> Callable[..., None]:
    """Adds `--resume` and `--upload` to a command."""
    for option in reversed(resume_options):
        function = option(function)
    return function


def begun(session: Session, artifact: str, *, resume: bool, upload: str | None) -> Upload | None:
    """The caller's upload to go on with; None to begin one.

    Raises NotFound when there is none, FailedPrecondition when there are several.
    """
    if upload:
        found: Upload = session.call("UploadService.GetUpload", name=session.name("upload", upload))
        if found.artifact != artifact:
            raise FailedPrecondition(f"{found.name} is of {found.artifact}: name that")
        return found
    if not resume:
        return None
    parent = "/".join(artifact.split("/")[:2])
    rows = session.list("UploadService.ListUploads", "uploads", parent=parent)
    mine = [row for row in rows if row["artifact"] == artifact]
    under_way = [row for row in mine if row["state"] in {"STATE_OPEN", "STATE_COMMITTING"}]
    # What was committed a moment ago is finished by saying so.
    done = [row for row in mine if row["state"] == "STATE_COMMITTED"]
    wanted = under_way or done[:1]
    if not wanted:
        raise NotFound(f"no upload of yours to {artifact} is open: leave out --resume to begin one")
    if len(wanted) > 1:
        ids = ", ".join(row["name"].rpartition("/")[2] for row in wanted)
        raise FailedPrecondition(f"several uploads to {artifact} are open: say --upload, of {ids}")
    return session.call("UploadService.GetUpload", name=wanted[0]["name"])  # type: ignore[no-any-return]


def create(session: Session, artifact: str, files: Iterable[tuple[str, int]] = ()) -> Upload:
    """A new upload."""
    listed = [{"file": file, "size_bytes": size} for file, size in files]
    parent = "/".join(artifact.split("/")[:2])
    upload = {"artifact": artifact, "files": listed}
    made: Upload = session.call("UploadService.CreateUpload", parent=parent, upload=upload)
    # A repeat gets the first answer; how far it is by now is another question.
    repeated = session.shared.request_id
    return session.call("UploadService.GetUpload", name=made.name) if repeated else made


def again(command: str, name: str, paths: Iterable[Path], *options: str) -> str:
    """The command with which an upload is gone on with."""
    words = [name, *map(str, paths), *filter(None, options), "--resume"]
    return f"appliance {command} {shlex.join(words)}"


def send(
    session: Session,
    upload: Upload,
    parts: Iterable[Part],
    advance: Callable[[int], None],
    again: str,
) -> str:
    """Send what is missing and commit; the version's name.

    Args:
        session: of the command.
        upload: begun.
        parts: all of it.
        advance: called with the bytes of each part that is there.
        again: the command with which to go on, said when this one ends early.
    """
    from appliance.client import part_upload  # noqa: PLC0415 - imports gRPC
    from appliance.client.connection import Connection  # noqa: PLC0415

    lock = threading.Lock()

    def connect() -> Connection:
        # Also in a thread, when a token was refused: somebody may have logged in again.
        with lock:
            session.read_token_again()
            granted = session.call("UploadService.GrantUpload", name=upload.name)
            profile = session.profile
            return Connection(profile.server, profile.ca_pem.encode(), granted.token)

    calls = None
    try:
        calls = part_upload.Calls(connect, lambda what: click.echo(what, err=True))
        return part_upload.complete(calls, upload, parts, advance)
    except BaseException as error:
        sent = upload.parts or (calls and calls.sent)
        if isinstance(error, ApplianceError) and not (sent or isinstance(error, _PASSES)):
            _abort(session, upload)
        elif not isinstance(error, NotFound | part_upload.UploadFailed):
            click.echo(f"what was sent is kept for days: go on with `{again}`", err=True)
        raise
    finally:
        if calls is not None:
            calls.close()


def _abort(session: Session, upload: Upload) -> None:
    """Leave nothing open with nothing in it; else it expires."""
    with contextlib.suppress(ApplianceError):
        session.call("UploadService.AbortUpload", name=upload.name)


def show(session: Session, version: str, method: str, columns: Any) -> None:
    """Show a version; its name alone when the session has ended meanwhile."""
    try:
        session.read_token_again()
        session.show(session.call(method, name=version), columns)
    except ApplianceError as error:
        if not isinstance(error, Unauthenticated):
            raise
        if session.shared.output == "table":
            click.echo(version)
        else:
            session.show({"name": version})
