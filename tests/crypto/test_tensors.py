"""The safetensors layout against the library's own bytes, and headers that lie."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import save

from appliance.core.errors import InvalidInput
from appliance.core.model_files import is_weights
from appliance.crypto.sealed_place import SealedPlace
from appliance.crypto.sealed_reader import SealedReader
from appliance.crypto.tensors import (
    MAX_TENSORS,
    SIZES,
    TensorEntry,
    header,
    parse_header,
    read_entries,
    weight_files,
)
from tests.fakes.files import seal_bytes

KEY = bytes(32)
PLACE = SealedPlace(project="p", object="o", file="model.safetensors")


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
    assert found == (
        TensorEntry("x", "BF16", (2, 2), base, base + 8),
        TensorEntry("y", "I8", (3,), base + 8, base + 11),
    )


@pytest.mark.parametrize(("dtype", "size"), SIZES.items())
def test_every_type_has_the_size_that_the_library_gives_it(dtype: str, size: int) -> None:
    data = header([("x", dtype, (3,))]) + bytes(3 * size)
    assert [(entry.dtype, entry.end - entry.begin) for entry in read_entries(sealed(data))] == [
        (dtype, 3 * size)
    ]
    assert [(name, value["dtype"], len(value["data"])) for name, value in deserialize(data)] == [
        ("x", dtype, 3 * size)
    ]


def test_the_header_is_known_bytes() -> None:
    text = (
        b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
    )
    text += b" " * (-len(text) % 8)
    assert header([("w", "F32", (1, 2))]) == len(text).to_bytes(8, "little") + text


def test_weight_files_are_named_as_hugging_face_names_them() -> None:
    assert weight_files(1) == ["model.safetensors"]
    assert weight_files(2) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert all(is_weights(file) for count in (1, 2, 12) for file in weight_files(count))
    for other in ("model.safetensors.index.json", "adapter.safetensors", "model-1-of-2.safetensors",
                  "model-\u0661\u0661\u0661\u0661\u0661-of-00002.safetensors"):  # fmt: skip
        assert not is_weights(other)


def file_of(entries: object, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, *shape: object, dtype: str = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.attack
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "ends inside its header"),
        (b"\xff" * 8, "impossible length"),
        (b"\x80\x04\x95pickle", "impossible length"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "impossible length"),
        ((1 << 24).to_bytes(8, "little") + b" " * 100, "ends inside its header"),
        ((0).to_bytes(8, "little"), "impossible length"),
        (file_of(b"{}", b"x"), "its header describes"),
        (file_of(b"{}"[:1] + b" "), "not JSON"),
        (file_of(b"[]"), "not a JSON object"),
        (file_of(b"[" * 100_000), "nested more than 64 deep"),
        (file_of(b'{"a": {}, "a":   {}}'), "same key twice"),
        (file_of(b'{"a": {"dtype": "U8", "dtype": "I8"}}'), "same key twice"),
        (file_of(b'{"a": NaN}'), "where a number belongs"),
        (file_of({"__metadata__": {"x": 5}}), "metadata"),
        (file_of({"__metadata__": []}), "metadata"),
        (file_of({"a": 1}), "malformed entry"),
        (file_of({"a": [1, 2]}), "malformed entry"),
        (file_of({"a": entry(0, 16, 8) | {"more": 1}}, bytes(16)), "malformed entry"),
        (file_of({"a": {"dtype": "U8", "shape": []}}, b"1"), "malformed entry"),
        (file_of({"a": entry(0, 8, 1, dtype="P64")}, bytes(8)), "unknown number format"),
        (file_of({"a": entry(0, 1, 1, dtype="PICKLE")}, b"1"), "unknown number format"),
        (file_of({"a": entry(0, 1, 1) | {"dtype": ["U8"]}}, b"1"), "unknown number format"),
        (file_of({"a": entry(0, 4, -1, dtype="F32")}, bytes(4)), "impossible shape"),
        (file_of({"a": entry(0, 2, True)}, bytes(2)), "impossible shape"),
        (file_of({"a": entry(0, 2, 1.0)}, bytes(2)), "impossible shape"),
        (file_of({"a": entry(0, 1 << 60, 1 << 60, dtype="U8")}), "impossible shape"),
        (file_of({"a": entry(0, 2, *[1] * 9)}, bytes(2)), "impossible shape"),
        (file_of({"a": entry(0, 2, 1) | {"data_offsets": [0, 1, 2]}}, bytes(2)), "impossible"),
        (file_of({"a": entry(0, 2, 1) | {"data_offsets": [0]}}, bytes(2)), "not the size"),
        (file_of({"a": entry(0, 4, 2, dtype="F32")}, bytes(4)), "not the size of its tensor"),
        (file_of({"a": entry(0, 16, 9)}, bytes(16)), "not the size of its tensor"),
        (file_of({"a": entry(0, 1, 2, dtype="U8")}, b"1"), "not the size of its tensor"),
        (file_of({"a": entry(16, 0, 8)}, bytes(16)), "not the size of its tensor"),
        (file_of({"a": entry(4, 8, 1, dtype="F32")}, bytes(8)), "overlap or leave a hole"),
        (file_of({"a": entry(1, 2, 1, dtype="U8")}, b"12"), "overlap or leave a hole"),
        (
            file_of({"x": entry(0, 2, 2, dtype="U8"), "y": entry(1, 3, 2, dtype="U8")}, b"123"),
            "overlap or leave a hole",
        ),
        (
            file_of({"a": entry(0, 16, 8), "b": entry(16, 32, 8)}, bytes(16)),
            "has 1.. bytes, but its header describes",
        ),
        (file_of({"a": entry(0, 4, 1, dtype="F32")}, bytes(5)), "its header describes"),
        (file_of({"a": entry(0, 1, 1, dtype="U8")}, b"12"), "its header describes"),
    ],
)
def test_a_header_that_lies_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(InvalidInput, match=rf"model\.safetensors of object o .*{text}"):
        read_entries(sealed(data))


@pytest.mark.attack
@pytest.mark.parametrize("key", ['"data_offsets"', r'"\u0064ata_offsets"'])
def test_a_header_of_too_many_entries_is_refused_before_it_is_parsed(key: str) -> None:
    def text(count: int) -> bytes:
        entries = (
            f'"t{number}":{{"dtype":"U8","shape":[1],{key}:[{number},{number + 1}]}}'
            for number in range(count)
        )
        return ("{" + '"__metadata__":{"format":"pt"},' + ",".join(entries) + "}").encode()

    with pytest.raises(InvalidInput, match="more than 65,536 tensors") as caught:
        parse_header("model.safetensors", text(MAX_TENSORS + 1))
    assert list(caught.value.fields) == ["model.safetensors"]
    layout = parse_header("model.safetensors", text(MAX_TENSORS))
    assert len(layout.entries) == MAX_TENSORS


@pytest.mark.attack
def test_a_header_of_millions_of_empty_lists_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidInput, match="more than 65,536 tensors"):
        parse_header("model.safetensors", b'{"a":[' + b"[]," * (1 << 20) + b"[]]}")
