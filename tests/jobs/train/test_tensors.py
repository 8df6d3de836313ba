"""Files of tensors: the library reads what is written; boxes are read from anywhere."""

from __future__ import annotations

import io
import json

import pytest
import torch
from safetensors.torch import load, save

from appliance.core.errors import FailedPrecondition, Internal, Tampered
from appliance.crypto.sealed_place import SealedPlace
from appliance.crypto.sealed_reader import SealedReader
from appliance.crypto.sealed_writer import SealedWriter
from appliance.jobs.train.tensors import TensorReader, TensorWriter
from tests.fakes.files import seal_bytes

KEY = b"k" * 32
PLACE = SealedPlace("p", "o", "rank-00000.safetensors")
VALUES = {
    "b": torch.arange(24.0).reshape(4, 6),
    "a": torch.tensor([1.5]),
    "none": torch.zeros(0, 3),
}


def written(dtype: torch.dtype) -> bytes:
    sink = io.BytesIO()
    writer = TensorWriter(sink, {name: tuple(t.shape) for name, t in VALUES.items()}, dtype)
    for name, tensor in VALUES.items():
        writer.put(name, tensor)
    return sink.getvalue()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3.4e38])
def test_a_number_that_is_none_is_not_kept(value: float) -> None:
    """Also one that is too large for the type of the file."""
    writer = TensorWriter(io.BytesIO(), {"a": (2,)}, torch.float16)
    with pytest.raises(FailedPrecondition, match="a holds a number that is none"):
        writer.put("a", torch.tensor([1.0, value]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_reads_what_is_written(dtype: torch.dtype) -> None:
    found = load(written(dtype))
    assert found.keys() == VALUES.keys()
    for name, tensor in VALUES.items():
        assert torch.equal(found[name], tensor.to(dtype))


def test_a_known_file() -> None:
    sink = io.BytesIO()
    TensorWriter(sink, {"w": (1, 2)}, torch.float32).put("w", torch.tensor([[1.0, -2.0]]))
    header = (
        b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
    )
    header += b" " * (-len(header) % 8)
    assert sink.getvalue() == (
        len(header).to_bytes(8, "little") + header + bytes.fromhex("0000803f000000c0")
    )


def test_a_part_that_is_not_contiguous_is_written_right() -> None:
    sink = io.BytesIO()
    value = torch.arange(6.0).reshape(2, 3).T
    TensorWriter(sink, {"w": (3, 2)}, torch.float32).put("w", value)
    assert torch.equal(load(sink.getvalue())["w"], value)


def test_boxes_are_read_from_anywhere() -> None:
    raw = io.BytesIO()
    with SealedWriter(raw, KEY, PLACE, segment_size=128) as file:
        file.write(save({"w": VALUES["b"]}))
    with SealedReader(raw, KEY, PLACE) as file:
        reader = TensorReader(file)
        # The stored tensor is the box (10..14, 0..6) of a larger one.
        held = ((10, 14), (0, 6))
        for wanted in [held, ((11, 13), (0, 6)), ((12, 14), (2, 5)), ((10, 11), (5, 6))]:
            (top, bottom), (left, right) = wanted
            expected = VALUES["b"][top - 10 : bottom - 10, left:right]
            assert torch.equal(reader.read("w", held, wanted), expected)


def test_tensors_come_in_the_order_that_was_said() -> None:
    writer = TensorWriter(io.BytesIO(), {"a": (1,), "b": (1,)}, torch.float32)
    with pytest.raises(Internal):
        writer.put("b", torch.zeros(1))


@pytest.mark.parametrize("content", [b"", b"\xff" * 32, (8).to_bytes(8, "little") + b"no json!"])
def test_what_is_no_file_of_tensors_is_refused(content: bytes) -> None:
    with (
        SealedReader(io.BytesIO(seal_bytes(content, KEY, PLACE)), KEY, PLACE) as file,
        pytest.raises(Tampered),
    ):
        TensorReader(file)


def test_a_tensor_that_is_not_as_its_index_says_is_refused() -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = len(header).to_bytes(8, "little") + header + b"\0" * 4
    with SealedReader(io.BytesIO(seal_bytes(content, KEY, PLACE)), KEY, PLACE) as file:
        reader = TensorReader(file)
        assert torch.equal(reader.read("w", ((3, 4),), ((3, 4),)), torch.zeros(1))
        for name, held in [("w", ((0, 2),)), ("v", ((0, 1),))]:
            with pytest.raises(Tampered):
                reader.read(name, held, held)
