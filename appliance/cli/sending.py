"""What `dataset upload` and `model import` share: begin an upload or go on with one, and send it.

Rules kept here: nothing is remembered between two runs; which upload of the caller's is still open
is asked of the server; who is interrupted is told how to go on, where that can help; what another
run began is never ended.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from appliance.core.errors import (
    AlreadyExists,
    ApplianceError,
    Conflict,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unavailable,
)

if TYPE_CHECKING:
    from appliance.api.data.v1.upload_pb2 import Upload
    from appliance.cli.session import CommandSession
    from appliance.client.parts import OutgoingPart

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
_NAMED = "sha256"
"""The field of a commit that is wrong when an upload has other parts."""
_BEGINS = frozenset({"resume", "upload", "request_id"})
"""Options that say which upload is meant."""
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


@dataclass(frozen=True)
class BegunUpload:
    """The upload that a command sends to.

    Attributes:
        upload: as it was when the command began.
        mine: whether this command made it.
    """

    upload: Upload
    mine: bool


def begin(
    session: CommandSession,
    artifact: str,
    files: Iterable[tuple[str, int]] = (),
    *,
    resume: bool,
    upload: str | None,
) -> BegunUpload:
    """The caller's upload to go on with, or a new one.

    Raises NotFound when there is none to go on with, FailedPrecondition when there are several, or
    the one that was named has failed.
    """
    if not resume and not upload:
        return _create(session, artifact, files)
    named = session.name("upload", upload) if upload else _open_one(session, artifact)
    found: Upload = session.call("UploadService.GetUpload", name=named)
    if found.artifact != artifact:
        raise FailedPrecondition(f"{found.name} is of {found.artifact}: name that")
    if found.state == found.STATE_FAILED:
        raise FailedPrecondition(
            f"{found.name} failed, and what was sent is gone: {found.message}. Leave out --upload "
            "to begin another one"
        )
    return BegunUpload(found, mine=False)


def _open_one(session: CommandSession, artifact: str) -> str:
    """The name of the one upload that is open, or was committed last."""
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
    return str(wanted[0]["name"])


def _create(
    session: CommandSession, artifact: str, files: Iterable[tuple[str, int]]
) -> BegunUpload:
    listed = [{"file": file, "size_bytes": size} for file, size in files]
    parent = "/".join(artifact.split("/")[:2])
    upload = {"artifact": artifact, "files": listed}
    made: Upload = session.call("UploadService.CreateUpload", parent=parent, upload=upload)
    if not session.shared.request_id:
        return BegunUpload(made, mine=True)
    # A repeat gets the first answer; how far it is by now is another question.
    return BegunUpload(session.call("UploadService.GetUpload", name=made.name), mine=False)


def again(session: CommandSession, upload: Upload) -> str:
    """The command line with which an upload is gone on with: this one, and which upload."""
    context = click.get_current_context()
    words: list[str] = []
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        value = context.params.get(option.name or "")
        if isinstance(option, click.Argument):
            words += map(str, value if isinstance(value, tuple) else (value,))
        elif given and option.name not in _BEGINS and isinstance(option, click.Option):
            words += [option.opts[-1]] if option.is_flag else [option.opts[-1], str(value)]
    project, uid = upload.name.split("/")[1::2]
    words += ["--upload", uid if project == session.project else upload.name]
    return f"{context.command_path} {shlex.join(words)}"


def send(
    session: CommandSession,
    begun: BegunUpload,
    parts: Iterable[OutgoingPart],
    advance: Callable[[int], None],
) -> str:
    """Send what is missing and commit; the version's name. Says how to go on when it ends early.

    Args:
        session: of the command.
        begun: the upload.
        parts: all of it.
        advance: called with the bytes of each part that is there.
    """
    from appliance.client import part_upload  # noqa: PLC0415 - imports gRPC
    from appliance.client.connection import Connection  # noqa: PLC0415

    upload, lock = begun.upload, threading.Lock()

    def connect() -> Connection:
        # Also in a thread, when a token was refused: somebody may have logged in again.
        with lock:
            session.read_token_again()
            granted = session.call("UploadService.GrantUpload", name=upload.name)
            profile = session.profile
            return Connection(profile.server, profile.ca_pem.encode(), granted.token)

    calls = None
    try:
        calls = part_upload.UploadCalls(connect, lambda what: click.echo(what, err=True))
        return part_upload.complete(calls, upload, parts, advance)
    except KeyboardInterrupt:
        _say_again(session, upload)
        # Without its cause, which would say that work on the server goes on.
        raise click.Abort from None
    except ApplianceError as error:
        sent = upload.parts or (calls and calls.sent)
        if begun.mine and not sent and not isinstance(error, _PASSES):
            _abort(session, upload)
        elif upload.state == upload.STATE_COMMITTED and _NAMED in error.fields:
            raise FailedPrecondition(
                f"no upload of yours to {upload.artifact} is open, and the last one, of something "
                f"else, became {upload.version}: leave out --resume to begin another one"
            ) from error
        elif _helps(upload, error):
            _say_again(session, upload)
        raise
    except BaseException:
        _say_again(session, upload)
        raise
    finally:
        if calls is not None:
            calls.close()


def _helps(upload: Upload, error: ApplianceError) -> bool:
    """Whether the same command may go on with an upload after an error."""
    from appliance.client.part_upload import UploadFailed  # noqa: PLC0415 - imports gRPC

    if isinstance(error, NotFound | UploadFailed | FailedPrecondition | AlreadyExists | Conflict):
        return False
    return upload.state == upload.STATE_OPEN or not isinstance(error, InvalidInput)


def _say_again(session: CommandSession, upload: Upload) -> None:
    click.echo(f"what was sent is kept for days: go on with `{again(session, upload)}`", err=True)


def _abort(session: CommandSession, upload: Upload) -> None:
    """Leave nothing open with nothing in it; else it expires."""
    with contextlib.suppress(ApplianceError):
        session.call("UploadService.AbortUpload", name=upload.name)


def show(session: CommandSession, version: str, method: str, columns: Any) -> None:
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
