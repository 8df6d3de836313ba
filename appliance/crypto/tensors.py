"""The safetensors format: where each tensor's bytes are, and how a model's weight files are named.

The format (https://huggingface.co/docs/safetensors, "Format"): eight bytes, little-endian, the
length of the header; the header, JSON: name -> {dtype, shape, data_offsets}; the data, row-major.
It cannot hold code, but a header can lie, and a model may have been imported from anywhere. Rules
kept here, for files that come in and for files that the sealed reader has authenticated alike:
* the header is bounded in bytes and in entries before it is parsed, and has no key twice;
* every tensor's range has exactly the size of its shape and dtype;
* the ranges cover the data without overlap or hole, and the file ends where they do.

The attack: a pickle renamed to `.safetensors`, a header of a million entries, ranges that overlap
or reach past the end.

Pure; knows no torch. Called wherever weights are checked, read or written: the control plane's
import, jobs and workers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from appliance.core import strict_json
from appliance.core.errors import InvalidInput
from appliance.core.names import shown
from appliance.core.numbers import written
from appliance.crypto.sealed_reader import SealedReader

LENGTH_SIZE = 8
MAX_HEADER = 16 << 20
MAX_TENSORS = 1 << 16
SIZES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of a number, by the format's name for its type."""

_METADATA = "__metadata__"
_ALIGNMENT = 8
_MAX_AXES = 8
_MAX_AXIS = 1 << 40


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: type, shape, and where its bytes begin and end in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class TensorLayout:
    """What a header says: the tensors in the order of their bytes, and the size of the file."""

    entries: tuple[TensorEntry, ...]
    size: int


def weight_files(count: int) -> list[str]:
    """Names of the weight files of a model that has `count` of them; several need an `INDEX`."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file that holds these tensors (name, dtype, shape) in this order."""
    entries: dict[str, object] = {_METADATA: {"format": "pt"}}
    start = 0
    for name, dtype, shape in tensors:
        end = start + math.prod(shape) * SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_SIZE, "little") + text


def header_length(file: str, prefix: bytes) -> int:
    """Bytes of the header behind the first `LENGTH_SIZE` bytes of a file.

    Raises InvalidInput naming the file when no header is as short or as long.
    """
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= MAX_HEADER:
        raise refused(file, "is not a safetensors file: its header has an impossible length")
    return length


def parse_header(file: str, text: bytes) -> TensorLayout:
    """What a header says.

    Args:
        file: what to call the file in messages.
        text: the header, without its length.

    Raises:
        InvalidInput: it is not what the format says; names the file and the tensor.
    """
    # A tensor takes an object and two lists, and no spelling of a bracket hides it from this count.
    if text.count(b"{") + text.count(b"[") > 3 * MAX_TENSORS + 2:
        raise refused(file, f"has more than {written(MAX_TENSORS)} tensors")
    values = strict_json.read_object(file, text)
    metadata = values.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise refused(file, "has metadata that is not text")
    position = LENGTH_SIZE + len(text)
    found = [_entry(file, name, value, position) for name, value in values.items()]
    found.sort(key=lambda entry: (entry.begin, entry.end))
    for entry in found:
        if entry.begin != position:
            raise refused(
                file,
                f"has tensors that overlap or leave a hole between them at {shown(entry.name)}",
            )
        position = entry.end
    return TensorLayout(tuple(found), position)


def check_size(file: str, layout: TensorLayout | None, size: int) -> TensorLayout:
    """The layout of a file of `size` bytes, None when it ended before its header did.

    Raises InvalidInput naming the file unless the size is what the header says.
    """
    if layout is None:
        raise refused(file, "is not a safetensors file: it ends inside its header")
    if size != layout.size:
        raise refused(
            file, f"has {size} bytes, but its header describes {layout.size}; copy it again"
        )
    return layout


def read_entries(reader: SealedReader) -> tuple[TensorEntry, ...]:
    """The tensors of a sealed file, in the order of their bytes.

    Raises:
        InvalidInput: the header is not what the format says; names the place of the file.
    """
    file = f"The {reader.place}"
    reader.seek(0)
    prefix = reader.read(LENGTH_SIZE)
    layout = None
    if len(prefix) == LENGTH_SIZE:
        length = header_length(file, prefix)
        if LENGTH_SIZE + length <= reader.size:
            layout = parse_header(file, reader.read(length))
    return check_size(file, layout, reader.size).entries


def refused(file: str, why: str) -> InvalidInput:
    """The error for a file of weights."""
    return InvalidInput(f"{file} {why}.", fields={file: why})


def _entry(file: str, name: str, value: object, start: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise refused(file, f"has a malformed entry {shown(name)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise refused(file, f"has an unknown number format in {shown(name)}")
    if not _whole_numbers(shape, _MAX_AXES) or not _whole_numbers(offsets, 2):
        raise refused(file, f"has an impossible shape or range in {shown(name)}")
    begin, end = offsets if len(offsets) == 2 else (1, 0)
    if end - begin != math.prod(shape) * SIZES[dtype]:
        raise refused(file, f"has a range in {shown(name)} that is not the size of its tensor")
    return TensorEntry(name, dtype, tuple(shape), start + begin, start + end)


def _whole_numbers(value: object, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(item) is int and 0 <= item <= _MAX_AXIS for item in value)
    )
