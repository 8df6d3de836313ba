"""Uploads by part, as a client sends them to the services of a lab."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from appliance.api.data.v1 import dataset_service_pb2, upload_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.services.common.caller import Caller
from tests.fakes.lab import ALICE, PROJECT, Lab

DATASET = f"projects/{PROJECT}/datasets/raw"
MODEL = f"projects/{PROJECT}/models/base"
Content = bytes


def batch(*texts: tuple[str, str]) -> Content:
    """Content of a part of a dataset, of (id, text)."""
    documents = [dataset_service_pb2.Document(id=each, text=text) for each, text in texts]
    return upload_pb2.DocumentBatch(documents=documents).SerializeToString()


def digest(content: Content) -> str:
    return hashlib.sha256(content).hexdigest()


def begin(
    lab: Lab,
    artifact: str = DATASET,
    files: Iterable[tuple[str, int]] = (),
    *,
    caller: Caller = ALICE,
    request_id: str = "",
) -> upload_pb2.Upload:
    upload = upload_pb2.Upload(
        artifact=artifact,
        files=[upload_pb2.UploadFile(file=file, size_bytes=size) for file, size in files],
    )
    request = rpc.CreateUploadRequest(
        parent=f"projects/{PROJECT}", upload=upload, request_id=request_id
    )
    return lab.uploads.create(caller, request)


def send(
    lab: Lab,
    name: str,
    number: int,
    content: Content,
    *,
    sha256: str = "",
    caller: Caller = ALICE,
    pieces: int = 1,
) -> upload_pb2.UploadedPart:
    size = max(1, -(-len(content) // pieces))
    data = [content[start : start + size] for start in range(0, max(len(content), 1), size)]
    first = rpc.UploadPartRequest(
        name=name, number=number, sha256=sha256 or digest(content), data=data[0]
    )
    intake = lab.uploads.begin_part(caller, first)
    try:
        for each in data[1:]:
            intake.add(rpc.UploadPartRequest(data=each))
        intake.close()
        return intake.finish()
    finally:
        intake.abort()


def listed(contents: Sequence[Content]) -> str:
    """The digest that a commit names."""
    return hashlib.sha256(b"".join(hashlib.sha256(each).digest() for each in contents)).hexdigest()


def commit(
    lab: Lab, name: str, contents: Sequence[Content], *, caller: Caller = ALICE
) -> upload_pb2.Upload:
    request = rpc.CommitUploadRequest(name=name, parts=len(contents), sha256=listed(contents))
    return lab.uploads.commit(caller, request)


def pieces_of(files: dict[str, bytes], part_bytes: int) -> list[Content]:
    """The parts of a model."""
    return [
        data[start : start + part_bytes]
        for data in files.values()
        for start in range(0, max(len(data), 1), part_bytes)
    ]
