"""The safetensors layout over sealed files: where each tensor's bytes are. Pure; knows no torch.

The format (https://huggingface.co/docs/safetensors, "Format"): eight bytes, little-endian, the
length of the header; the header, JSON: name -> {dtype, shape, data_offsets}; the data, row-major,
without gaps. Rules kept here: the sealed reader has authenticated every byte before it is looked
at, and the header is checked all the same, for a model may have been imported from anywhere.

Called by the jobs that read and write weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.errors import InvalidInput
from appliance.crypto.sealed import SealedReader

LENGTH_SIZE = 8
LARGEST_HEADER = 100 << 20
ALIGNMENT = 8
METADATA = "__metadata__"
SIZES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "F32": 4,
    "I64": 8,
    "F64": 8,
}
"""Bytes of a number, by the format's name for its type."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: type, shape, and where its bytes begin and end in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The first bytes of a file that holds these tensors (name, dtype, shape) in this order."""
    entries: dict[str, object] = {METADATA: {"format": "pt"}}
    start = 0
    for name, dtype, shape in tensors:
        end = start + math.prod(shape) * SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_SIZE, "little") + text


def read_entries(reader: SealedReader) -> list[Entry]:
    """The tensors of a file, in the order of their bytes.

    Raises:
        InvalidInput: the header is not what the format says.
    """
    reader.seek(0)
    prefix = reader.read(LENGTH_SIZE)
    length = int.from_bytes(prefix, "little")
    if len(prefix) != LENGTH_SIZE or length > min(LARGEST_HEADER, reader.size - LENGTH_SIZE):
        raise InvalidInput(f"{reader.place} is not in the safetensors format: no header")
    start = LENGTH_SIZE + length
    try:
        values = json.loads(reader.read(length))
        found = [_entry(name, value, start) for name, value in values.items() if name != METADATA]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(
            f"{reader.place} is not in the safetensors format: unreadable header"
        ) from error
    found.sort(key=lambda entry: (entry.begin, entry.end))
    position = start
    for entry in found:
        if entry.begin != position:
            raise InvalidInput(f"{reader.place} has a gap or an overlap before {entry.name}")
        position = entry.end
    if position != reader.size:
        raise InvalidInput(f"{reader.place} has another size than its header says")
    return found


def _entry(name: str, value: dict[str, Any], start: int) -> Entry:
    dtype, shape = value["dtype"], tuple(value["shape"])
    begin, end = value["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(name)
    if end - begin != math.prod(shape) * SIZES[dtype]:
        raise ValueError(name)
    return Entry(name, dtype, shape, start + begin, start + end)
