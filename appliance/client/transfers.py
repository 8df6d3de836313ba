"""Whole uploads and downloads of a program: all of it or nothing, past connections that end.

Rules kept here: an upload that fails leaves nothing open; what is waited for is said in the log of
this module. Called by the nouns of both clients; those of asyncio call it in a thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from appliance.api.data.v1 import dataset_service_pb2 as data
from appliance.api.data.v1 import download_pb2, upload_pb2
from appliance.api.data.v1.upload_service_pb2 import AbortUploadResponse, GrantUploadResponse
from appliance.client import model_folder, part_upload, parts, texts
from appliance.client.calls import Calls
from appliance.client.connection import Connection
from appliance.client.downloads import Download, Downloaded
from appliance.client.parts import OutgoingPart
from appliance.core.errors import ApplianceError, InvalidInput

Advance = Callable[[int, int], None]
"""Told the bytes that were done, and those of all of it; 0 where nobody knows."""
Document = data.Document | Mapping[str, str] | str
"""A document: its text, or `id`, `text` and `source` of it."""
_ABORT_SECONDS = 5.0

logger = logging.getLogger(__name__)


def upload_files(
    calls: Calls,
    dataset: str,
    paths: Iterable[str | PathLike[str]],
    *,
    hidden: bool,
    progress: Advance | None,
) -> str:
    """Send text files and folders of them as a new version; its name."""
    found = texts.text_files([Path(path) for path in paths], hidden=hidden)
    if found.left_out:
        logger.info("left out: %s", found.sentence())
    told = _Told(progress, found.size)
    name = calls.requests.name("dataset", dataset)
    return _send(
        calls, name, (), lambda _: parts.text_parts(texts.documents(found, told.more)), _silent
    )


def upload_documents(calls: Calls, dataset: str, documents: Iterable[Document]) -> str:
    """Send documents as a new version; its name. Those without an id are numbered."""
    name = calls.requests.name("dataset", dataset)
    return _send(calls, name, (), lambda _: parts.text_parts(_documents(documents)), _silent)


def import_folder(
    calls: Calls, model: str, folder: str | PathLike[str], *, progress: Advance | None
) -> str:
    """Send a model in the layout of Hugging Face as a new version; its name."""
    found = model_folder.examine(Path(folder))
    name = calls.requests.name("model", model)
    told = _Told(progress, found.size)
    return _send(
        calls, name, found.files, lambda made: parts.model_parts(Path(folder), made), told.more
    )


def download(
    calls: Calls,
    rpc: str,
    name: str,
    folder: str | PathLike[str],
    *,
    force: bool,
    progress: Advance | None,
) -> Downloaded:
    """Get a version into a folder, whole and checked; the same call goes on with it."""

    def begin(file: str, offset: int) -> Iterator[Any]:
        return calls.stream(rpc, download_pb2.DownloadPart, name=name, file=file, offset=offset)

    with Download(name, Path(folder), force=force, say=logger.info) as work:
        return work.run(begin, progress or (lambda _, __: None))


def _silent(_: int) -> None:
    """Nobody is told."""


class _Told:
    """Adds up what is done."""

    def __init__(self, progress: Advance | None, size: int) -> None:
        self._progress = progress
        self._size = size
        self._done = 0

    def more(self, count: int) -> None:
        """So many more bytes."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._size)


def _documents(documents: Iterable[Document]) -> Iterator[data.Document]:
    for number, each in enumerate(documents):
        if isinstance(each, str):
            made = data.Document(text=each)
        elif isinstance(each, data.Document):
            made = each
        else:
            try:
                made = data.Document(**each)
            except (TypeError, ValueError) as error:
                raise InvalidInput(
                    f"document {number}: give its text, or a mapping of id, text and source"
                ) from error
        if not made.id:
            made = data.Document(id=f"{number:06}", text=made.text, source=made.source)
        yield made


def _send(
    calls: Calls,
    artifact: str,
    listed: Iterable[tuple[str, int]],
    cut: Callable[[upload_pb2.Upload], Iterable[OutgoingPart]],
    advance: Callable[[int], None],
) -> str:
    """Begin an upload, send all of it, and commit."""
    made = calls.unary(
        "UploadService.CreateUpload",
        upload_pb2.Upload,
        parent="/".join(artifact.split("/")[:2]),
        upload={
            "artifact": artifact,
            "files": [{"file": file, "size_bytes": size} for file, size in listed],
        },
    )

    def connect() -> Connection:
        granted = calls.unary("UploadService.GrantUpload", GrantUploadResponse, name=made.name)
        return Connection(calls.target.server, calls.target.ca_pem, granted.token)

    try:
        sending = part_upload.UploadCalls(connect, logger.info)
        try:
            return part_upload.complete(sending, made, cut(made), advance)
        finally:
            sending.close()
    except BaseException:
        with contextlib.suppress(ApplianceError):
            calls.unary(
                "UploadService.AbortUpload", AbortUploadResponse, _ABORT_SECONDS, name=made.name
            )
        raise
