"""The safetensors layout against the library's own bytes, and headers that lie."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from appliance.core.errors import InvalidInput
from appliance.crypto.sealed import Place, SealedReader, seal_bytes
from appliance.crypto.tensors import Entry, header, read_entries

KEY = bytes(32)
PLACE = Place(project="p", object="o", file="model.safetensors")


def sealed(data: bytes) -> SealedReader:
    return SealedReader(io.BytesIO(seal_bytes(data, KEY, PLACE)), KEY, PLACE)


def test_entries_of_a_file_that_the_library_wrote() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.int8)}
    data = save(arrays)
    entries = read_entries(sealed(data))
    assert {entry.name: (entry.dtype, entry.shape) for entry in entries} == {
        "a": ("F32", (2, 3)),
        "b": ("I8", (4,)),
    }
    for entry in entries:
        assert data[entry.begin : entry.end] == arrays[entry.name].tobytes()


def test_a_header_of_ours_is_read_back() -> None:
    start = header([("x", "BF16", (2, 2)), ("y", "I8", (3,))])
    assert len(start) % 8 == 0
    found = read_entries(sealed(start + bytes(11)))
    base = len(start)
    assert found == [
        Entry("x", "BF16", (2, 2), base, base + 8),
        Entry("y", "I8", (3,), base + 8, base + 11),
    ]


def file_of(entries: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.attack
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95pickle",
        (1 << 40).to_bytes(8, "little") + b"{}",
        file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(8)),
        file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(5)),
        file_of({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        file_of({"a": {"dtype": "P64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
        file_of({"a": [1, 2]}, b""),
    ],
    ids=["empty", "pickle", "huge", "size", "gap", "tail", "negative", "dtype", "shape"],
)
def test_a_header_that_lies_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"model\.safetensors"):
        read_entries(sealed(data))
