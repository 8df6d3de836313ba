"""Weights from outside: the header of a file, its numbers, and whether they are one model's."""

from __future__ import annotations

import struct

import pytest

from appliance.control.services.data import model_facts, weights
from appliance.control.services.data.weights import HeaderCheck
from appliance.core import model_config
from appliance.core.errors import InvalidInput
from tests.fakes import tiny_model

pytestmark = pytest.mark.attack


def header_of(data: bytes) -> HeaderCheck:
    check = HeaderCheck("model.safetensors")
    # In pieces of odd sizes, as a stream brings them.
    for start in range(0, len(data), 997):
        check.feed(data[start : start + 997])
    check.finish()
    return check


def test_a_safetensors_file_in_pieces_is_read_as_it_is() -> None:
    found = header_of(tiny_model.files()["model.safetensors"]).tensors
    assert found["model.norm.weight"] == weights.Tensor("BF16", (16,))
    config = model_config.check_config(tiny_model.CONFIG)
    shapes = {name: tensor.shape for name, tensor in found.items()}
    assert model_config.count_parameters(config, shapes) == tiny_model.PARAMETERS


def test_a_header_that_lies_is_refused_as_soon_as_it_has_come() -> None:
    lie = {"dtype": "BF16", "shape": [9], "data_offsets": [0, 16]}
    data = tiny_model.safetensors({"a": (8,)}, a=lie)
    check = HeaderCheck("model.safetensors")
    check.feed(data[:20])
    with pytest.raises(InvalidInput, match="not the size of its tensor") as caught:
        check.feed(data[20:-16])
    assert list(caught.value.fields) == ["model.safetensors"]


SPOILT = {
    "F64": (struct.pack("<d", float("nan")), struct.pack("<d", 1.7e308)),
    "F32": (struct.pack("<f", float("inf")), struct.pack("<f", -3.4e38)),
    "F16": (struct.pack("<e", float("-inf")), struct.pack("<e", -65504.0)),
    "BF16": (b"\x80\xff", b"\x7f\xff"),
    "F8_E5M2": (b"\x7c", b"\xfb"),
    "F8_E4M3": (b"\xff", b"\xfe"),
    "I32": (None, b"\xff" * 4),
}


@pytest.mark.parametrize("dtype", SPOILT)
def test_a_number_that_is_none_is_refused_wherever_it_stands(dtype: str) -> None:
    """The largest numbers of each type pass; NaN and infinity do not, in any piece of a file."""
    spoilt, largest = SPOILT[dtype]
    size = len(largest)
    count = 70_000
    entry = {"dtype": dtype, "shape": [count], "data_offsets": [4, 4 + count * size]}
    head = tiny_model.safetensors({"a": (2,)}, b=entry)
    good = bytearray(head + largest * count)
    header_of(bytes(good))
    if spoilt is None:
        return
    for place in (0, 1, 32_767, 65_535, count - 1):
        start = len(head) + place * size
        bad = bytes(good[:start] + spoilt + good[start + size :])
        with pytest.raises(InvalidInput, match="has a number in 'b' that is none"):
            header_of(bad)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95pickle",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (1 << 24).to_bytes(8, "little") + b" " * 100,
        (0).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"{}x",
        (20).to_bytes(8, "little") + b'{"a": {}, "a":   {}}',
    ],
)
def test_what_is_no_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="safetensors"):
        header_of(data)


def test_the_same_tensor_in_two_files_is_refused() -> None:
    config = model_config.check_config(tiny_model.CONFIG)
    one = {"model.norm.weight": weights.Tensor("BF16", (16,))}
    with pytest.raises(InvalidInput, match="two weight files"):
        model_facts.facts(config, {"a": one, "b": one}, 0)
