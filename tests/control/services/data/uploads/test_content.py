"""What a message of a part holds is counted before it is parsed."""

from __future__ import annotations

import pytest

from appliance.api.data.v1 import dataset_service_pb2 as data
from appliance.api.data.v1 import upload_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.services.data.upload_content import count_documents
from appliance.core.errors import Exhausted, InvalidInput
from tests.fakes.lab import ALICE, Lab
from tests.fakes.parts import batch, begin, digest, send

EMPTY = b"\x0a\x00"


def encoded(*sizes: int) -> bytes:
    documents = [data.Document(id="d", text="x" * size) for size in sizes]
    return upload_pb2.DocumentBatch(documents=documents).SerializeToString()


@pytest.mark.parametrize("sizes", [(), (0,), (1, 127, 128, 20_000, 3 << 20), (5,) * 300])
def test_documents_are_counted(sizes: tuple[int, ...]) -> None:
    assert count_documents(encoded(*sizes), len(sizes)) == len(sizes)
    if sizes:
        assert count_documents(encoded(*sizes), len(sizes) - 1) is None


@pytest.mark.attack
@pytest.mark.parametrize(
    "content",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x0a\xff\xff\xff\xff\xff\x01",
        EMPTY + b"\x12\x00",
        EMPTY + b"\x0b\x0c",
        b"\x8a\x00\x00",
        b"\x00",
    ],
)
def test_anything_else_is_no_batch(content: bytes) -> None:
    with pytest.raises(InvalidInput, match="is no DocumentBatch"):
        count_documents(content, 100)


@pytest.mark.attack
def test_millions_of_documents_in_a_message_are_not_parsed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = data.CreateDatasetRequest(parent="projects/demo", dataset_id="raw")
    lab.datasets.create(ALICE, request)
    upload = begin(lab)

    def parsed(_: bytes) -> None:
        raise AssertionError("it was parsed")

    many = upload_pb2.DocumentBatch(
        documents=[data.Document(id=str(number)) for number in range(15_000)]
    ).SerializeToString()
    with monkeypatch.context() as patch:
        patch.setattr(upload_pb2, "DocumentBatch", type("Refuses", (), {"FromString": parsed}))
        content = EMPTY * (2 << 20)
        first = rpc.UploadPartRequest(name=upload.name, sha256=digest(content), data=content)
        with pytest.raises(InvalidInput, match=r"more than 20,000 documents"):
            lab.uploads.begin_part(ALICE, first)
    first = rpc.UploadPartRequest(name=upload.name, sha256=digest(many), data=many)
    intake = lab.uploads.begin_part(ALICE, first)
    with pytest.raises(InvalidInput, match=r"more than 20,000 documents"):
        intake.add(rpc.UploadPartRequest(data=EMPTY * 5_001))
    intake.abort()


def test_what_a_part_takes_in_the_store_is_counted(lab: Lab) -> None:
    request = data.CreateDatasetRequest(parent="projects/demo", dataset_id="raw")
    lab.datasets.create(ALICE, request)
    upload = begin(lab)
    content = batch(("a", "\0" * 100_000))
    lab.work._parts._project_bytes = 2 * len(content)
    with pytest.raises(Exhausted, match="bytes together"):
        send(lab, upload.name, 0, content)
    lab.work._parts._project_bytes = 7 * len(content)
    send(lab, upload.name, 0, content)
    (file,) = lab.objects.rglob("part-*")
    assert lab.uploads.get(ALICE, upload.name).size_bytes == file.stat().st_size


@pytest.mark.attack
@pytest.mark.parametrize("known", [True, False])
def test_a_part_ends_whether_it_is_known_or_not(lab: Lab, known: bool) -> None:  # noqa: FBT001
    request = data.CreateDatasetRequest(parent="projects/demo", dataset_id="raw")
    lab.datasets.create(ALICE, request)
    upload, content = begin(lab), batch(("a", "x"))
    if known:
        send(lab, upload.name, 0, content)
    first = rpc.UploadPartRequest(name=upload.name, sha256=digest(content), data=content)
    intake = lab.uploads.begin_part(ALICE, first)
    with pytest.raises(InvalidInput, match="part 0 has an empty message"):
        intake.add(rpc.UploadPartRequest())
    more = batch(("b", "y" * (3 << 20)))
    for _ in range(2):
        intake.add(rpc.UploadPartRequest(data=more))
    with pytest.raises(InvalidInput, match="part 0 has more than 8,388,608 bytes"):
        intake.add(rpc.UploadPartRequest(data=more))
    intake.abort()
