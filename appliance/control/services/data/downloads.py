"""Versions of models and datasets on their way out, decrypted, piece by piece.

Rules kept here:
* nothing leaves a project that does not allow it, which is asked again each second, as is whether
  the version is still there; the gate asks each second whether the caller may;
* every byte is read through the verified reader: digest and signature of the manifest first, then
  each segment, so a file that was changed ends the download before its bytes leave;
* what was handed out stands in the audit record that ends the call: bytes, and of which content;
* memory does not grow with the version: a piece is read when the one before has been sent.

The attack: weights and text taken out by somebody who may only use them, or after the right to do
so has ended. Blocking: reads the object store. Called by `rpc.downloads`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Row

from appliance.api.data.v1 import download_pb2
from appliance.api.data.v1 import download_service_pb2 as rpc
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import missing
from appliance.control.services.data import artifact_rows
from appliance.control.services.data.artifacts import Artifacts
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading
from appliance.core import names
from appliance.core.errors import FailedPrecondition, InvalidInput, NotFound, Tampered
from appliance.core.names import Name, shown
from appliance.core.numbers import written
from appliance.crypto.artifacts import ArtifactReader

PIECE_BYTES = 1 << 20
"""Of a message: a segment of a sealed file."""
SIGN_OF_LIFE_BYTES = 64 << 20
LOOK_SECONDS = 1.0
Part = download_pb2.DownloadPart


class Request(Protocol):
    """What each request for files says beside the name: where to begin."""

    name: str
    file: str
    offset: int


class Downloads:
    """Reads versions for those who may take them out.

    Args:
        database: the state.
        artifacts: opens versions.
        monotonic: seconds that only rise.
    """

    def __init__(
        self,
        database: Database,
        artifacts: Artifacts,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._monotonic = monotonic

    def model(self, caller: Caller, request: rpc.DownloadModelVersionRequest) -> Generator[Part]:
        """The pieces of a version of a model, each read when it is asked for."""
        return self._version(caller, request, "modelVersion")

    def dataset(
        self, caller: Caller, request: rpc.DownloadDatasetVersionRequest
    ) -> Generator[Part]:
        """The same of a version of a dataset."""
        return self._version(caller, request, "datasetVersion")

    def _version(self, caller: Caller, request: Request, kind: str) -> Generator[Part]:
        name = Name.parse(request.name, kind)
        with self._database.read() as state:
            _check_allowed(state, name)
            row = artifact_rows.version_row(state, name)
        reader = self._open(name, row)
        start = start_of(reader, request)
        return pieces(name, reader, start, caller, self._looks(name, row))

    def _open(self, name: Name, row: Row[Any]) -> ArtifactReader:
        try:
            return self._artifacts.open(row)
        except (NotFound, Tampered):
            artifact_rows.check_there(self._database, name, row)
            raise

    def _looks(self, name: Name, row: Row[Any]) -> Callable[..., None]:
        """Raises when a download must not go on; asks the state once a second."""

        def check() -> None:
            with self._database.read() as state:
                _check_allowed(state, name)
            artifact_rows.check_there(self._database, name, row)

        return each_second(check, self._monotonic)


@dataclass(frozen=True)
class Start:
    """Where a download begins: the files that are left, and how much of the first is there."""

    files: tuple[str, ...]
    offset: int = 0


def each_second(
    check: Callable[[], None], monotonic: Callable[[], float] = time.monotonic
) -> Callable[..., None]:
    """A look for `pieces`: what it checks is checked once a second, and with `now` at once."""
    looked = monotonic()

    def look(*, now: bool = False) -> None:
        nonlocal looked
        moment = monotonic()
        if now or moment - looked >= LOOK_SECONDS:
            looked = moment
            check()

    return look


def pieces(
    name: Name,
    reader: ArtifactReader,
    start: Start,
    caller: Caller,
    look: Callable[..., None],
) -> Generator[Part]:
    """The pieces of what a reader reads.

    Args:
        name: of the resource.
        reader: of it.
        start: where to begin.
        caller: gets in its record what was handed out.
        look: called between pieces; raises when this must not go on.
    """
    total, left = 0, start.offset
    caller.notes.update(content=reader.digest, bytes="0")
    listed = [
        download_pb2.DownloadedFile(file=file, size_bytes=reader.entry(file).plain_size)
        for file in reader.files()
    ]
    yield Part(
        listing=download_pb2.DownloadListing(
            name=str(name), manifest_digest=reader.digest, files=listed
        )
    )
    try:
        for file in start.files:
            digest = hashlib.sha256()
            with reader.open(file) as source:
                # What the caller has already is read for the digest, and proved once more.
                unsaid = 0
                while left and (piece := source.read(min(left, PIECE_BYTES))):
                    digest.update(piece)
                    left -= len(piece)
                    unsaid += len(piece)
                    if unsaid >= SIGN_OF_LIFE_BYTES:
                        unsaid = 0
                        look()
                        yield Part(data=b"")
                while piece := source.read(PIECE_BYTES):
                    look()
                    digest.update(piece)
                    total += len(piece)
                    caller.notes["bytes"] = str(total)
                    yield Part(data=piece)
            end = download_pb2.DownloadedFile(
                file=file, size_bytes=reader.entry(file).plain_size, sha256=digest.hexdigest()
            )
            yield Part(end=end)
    except (NotFound, Tampered, OSError):
        # A version that was deleted a moment ago has lost its files too: that is not damage.
        look(now=True)
        raise


def start_of(reader: ArtifactReader, request: Request) -> Start:
    """Where a request begins. Raises InvalidInput for a file or an offset that is not there."""
    files = tuple(reader.files())
    first = request.file or files[0]
    if first not in files:
        wrong = f"{shown(first)} is no file of this version"
        raise InvalidInput(f"file: {wrong}", fields={"file": wrong})
    size = reader.entry(first).plain_size
    if not 0 <= request.offset <= size:
        wrong = f"is not within the {written(size)} bytes of {first}"
        raise InvalidInput(f"offset {wrong}", fields={"offset": wrong})
    return Start(files[files.index(first) :], request.offset)


def _check_allowed(state: Reading, name: Name) -> None:
    """Raise FailedPrecondition unless the project of a version allows downloads."""
    project = tables.project
    row = state.first(project.select().where(project.c.id == name.project))
    if row is None:
        raise missing(str(name))
    if not row.allow_downloads:
        where = names.project(row.id)
        raise FailedPrecondition(
            f"{where} does not allow downloads: whoever holds projects.update there can allow them "
            f"with `appliance project update {row.id} --allow-downloads`",
            name=where,
        )
