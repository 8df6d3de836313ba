"""Tensors out of a sealed safetensors file, decrypted straight into their own memory.

The format (https://huggingface.co/docs/safetensors, "Format"): eight bytes, little-endian, the
length of the header; the header, JSON: name -> {dtype, shape, data_offsets}; the data, row-major,
without gaps. Rules kept here:
* the sealed reader has authenticated every byte before it is looked at; the header is checked all
  the same, for a model may have been imported from anywhere: sizes, offsets, gaps and overlaps;
* plaintext exists in the tensor alone and in the reader's one segment, never in a file and never as
  a second copy of the whole.

Called by `appliance.worker.loader`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from appliance.core.errors import InvalidInput

LENGTH_SIZE = 8
LARGEST_HEADER = 100 << 20
METADATA = "__metadata__"

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}


class PlainReader(Protocol):
    """What is asked of `appliance.crypto.sealed.SealedReader`."""

    @property
    def size(self) -> int:
        """Bytes of plaintext."""

    def seek(self, offset: int, /) -> int:
        """Move to an offset."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type, its shape, and where its bytes begin and end in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_entries(reader: PlainReader) -> list[Entry]:
    """The tensors of a file, in the order of their bytes.

    Raises InvalidInput when the header is not what the format says.
    """
    reader.seek(0)
    prefix = reader.read(LENGTH_SIZE)
    length = int.from_bytes(prefix, "little")
    if len(prefix) != LENGTH_SIZE or length > min(LARGEST_HEADER, reader.size - LENGTH_SIZE):
        raise InvalidInput("the weights are not in the safetensors format: no header")
    try:
        header = json.loads(reader.read(length))
        found = [
            _entry(name, value, LENGTH_SIZE + length)
            for name, value in header.items()
            if name != METADATA
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInput(
            "the weights are not in the safetensors format: unreadable header"
        ) from error
    entries = sorted(found, key=lambda entry: (entry.begin, entry.end))
    position = LENGTH_SIZE + length
    for entry in entries:
        if entry.begin != position:
            raise InvalidInput(
                f"the weights have a gap or an overlap before the tensor {entry.name}"
            )
        position = entry.end
    if position != reader.size:
        raise InvalidInput("the weights have another size than their header says")
    return entries


def _entry(name: str, value: dict[str, Any], start: int) -> Entry:
    dtype = DTYPES[value["dtype"]]
    shape = tuple(value["shape"])
    begin, end = value["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(name)
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(name)
    return Entry(name, dtype, shape, start + begin, start + end)


def read_tensor(reader: PlainReader, entry: Entry) -> torch.Tensor:
    """One tensor, on the CPU. Raises Tampered when its bytes are not what was sealed."""
    # On the CPU whatever the default device is: the loader runs with the engine's.
    raw = torch.empty(entry.end - entry.begin, dtype=torch.uint8, device="cpu")
    if raw.numel():
        reader.seek(entry.begin)
        if reader.readinto(raw.numpy().data) != raw.numel():
            raise InvalidInput(f"the weights end within the tensor {entry.name}")
    return raw.view(entry.dtype).reshape(entry.shape)


def read_tensors(reader: PlainReader) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file one after another; each is the caller's alone.

    Raises as `read_entries` and `read_tensor` do.
    """
    for entry in read_entries(reader):
        yield entry.name, read_tensor(reader, entry)
