from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from safetensors.torch import save

from appliance.core.errors import InvalidInput, Tampered
from appliance.crypto.sealed_place import SealedPlace
from appliance.crypto.sealed_reader import SealedReader
from appliance.crypto.tensors import SIZES
from appliance.worker.tensors import DTYPES, read_tensors
from tests.fakes.files import seal_bytes

KEY = bytes(range(32))
PLACE = SealedPlace("p", "u", "model.safetensors")


def sealed(data: bytes) -> SealedReader:
    return SealedReader(io.BytesIO(seal_bytes(data, KEY, PLACE)), KEY, PLACE)


def raw(header: Any, data: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float32, torch.float16, torch.int8, torch.int64]
)
def test_tensors_equal_what_the_library_wrote(dtype: torch.dtype) -> None:
    tensors = {
        "a": torch.arange(6).reshape(2, 3).to(dtype),
        "scalar": torch.ones(()).to(dtype),
        "empty": torch.zeros(0, 4).to(dtype),
        # More than a segment of the sealed file, and not a multiple of one.
        "large": torch.arange(700_001).to(dtype),
    }
    found = dict(read_tensors(sealed(save(tensors, {"format": "pt"}))))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_known_bytes_are_the_known_tensor() -> None:
    header = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    data = b"\x00\x00\x80\x3f\x00\x00\x00\xc0"
    assert dict(read_tensors(sealed(raw(header, data))))["x"].tolist() == [1.0, -2.0]


def test_every_type_of_the_format_has_a_type_of_its_size() -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == dict(SIZES)


@pytest.mark.attack
def test_a_header_that_lies_is_refused_before_any_tensor() -> None:
    header = {"x": {"dtype": "U8", "shape": [1 << 30], "data_offsets": [0, 1 << 30]}}
    with pytest.raises(InvalidInput, match=r"model\.safetensors"):
        next(read_tensors(sealed(raw(header))))


@pytest.mark.attack
def test_a_changed_byte_is_refused_before_it_is_a_weight() -> None:
    data = bytearray(seal_bytes(save({"x": torch.zeros(1 << 20)}), KEY, PLACE))
    data[len(data) // 2] ^= 1
    reader = SealedReader(io.BytesIO(bytes(data)), KEY, PLACE)
    with pytest.raises(Tampered) as raised:
        list(read_tensors(reader))
    assert raised.value.metadata["object"] == "u"
