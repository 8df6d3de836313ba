"""Documents and files of models as parts: bounded, and the same each time."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.api.data.v1 import upload_pb2
from appliance.api.data.v1.dataset_service_pb2 import Document
from appliance.client import parts, texts
from appliance.core.errors import FailedPrecondition


def documents(count: int, size: int) -> Iterator[Document]:
    return (Document(id=f"d{number}", text="x" * size) for number in range(count))


def ids(part: parts.OutgoingPart) -> list[str]:
    batches = [upload_pb2.DocumentBatch.FromString(piece) for piece in part.pieces()]
    return [each.id for batch in batches for each in batch.documents]


def test_parts_hold_whole_documents_and_lose_none() -> None:
    cut = list(parts.text_parts(documents(40, 300_000)))
    assert [part.number for part in cut] == list(range(len(cut)))
    assert [each for part in cut for each in ids(part)] == [f"d{n}" for n in range(40)]
    assert max(part.size for part in cut) <= parts.TEXT_PART_BYTES
    assert all(len(piece) <= parts.MESSAGE_BYTES for part in cut for piece in part.pieces())
    for part in cut:
        content = b"".join(part.pieces())
        assert (part.size, part.digest) == (len(content), hashlib.sha256(content).digest())


def test_a_part_has_a_bounded_number_of_documents() -> None:
    cut = list(parts.text_parts(documents(45_000, 1)))
    assert [len(ids(part)) for part in cut] == [20_000, 20_000, 5_000]


def test_the_largest_documents_have_parts_of_their_own() -> None:
    cut = list(parts.text_parts(documents(3, texts.MAX_DOCUMENT)))
    assert [ids(part) for part in cut] == [["d0"], ["d1"], ["d2"]]
    assert all(len(piece) < 4 << 20 for part in cut for piece in part.pieces())


def test_the_same_documents_make_the_same_parts() -> None:
    first, second = (
        [part.digest for part in parts.text_parts(documents(30, 400_000))] for _ in range(2)
    )
    assert first == second


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"{number}.txt").write_text("x" * 10)
    with (tmp_path / "large.jsonl").open("w") as file:
        for _ in range(100):
            file.write('{"text": "' + "y" * 500_000 + '"}\n')
    found = texts.text_files([tmp_path])
    tracemalloc.start()
    try:
        count = sum(1 for _ in parts.text_parts(texts.documents(found, lambda _: None)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 13
    assert peak < 24 << 20


def test_a_model_is_cut_and_put_together(tmp_path: Path) -> None:
    weights = bytes(range(256)) * 6000
    for name, content in (("config.json", b"{}"), ("a.safetensors", weights), ("merges.txt", b"")):
        (tmp_path / name).write_bytes(content)
    names = ["config.json", "merges.txt", "a.safetensors"]
    upload = upload_pb2.Upload(
        part_bytes=1_500_000,
        files=[
            upload_pb2.UploadFile(file=name, size_bytes=(tmp_path / name).stat().st_size)
            for name in names
        ],
    )
    cut = list(parts.model_parts(tmp_path, upload))
    contents = [b"".join(part.pieces()) for part in cut]
    assert contents == [b"{}", b"", weights[:1_500_000], weights[1_500_000:]]
    assert [part.digest for part in cut] == [hashlib.sha256(each).digest() for each in contents]
    assert max(len(piece) for part in cut for piece in part.pieces()) == parts.MESSAGE_BYTES
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FailedPrecondition, match=r"merges\.txt had 0 bytes .* is now missing"):
        list(parts.model_parts(tmp_path, upload))
