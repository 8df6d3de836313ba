"""Tensors in sealed files, in the safetensors format: written as a stream, read from anywhere.

The library for this format wants whole files in memory or memory-mapped plain files; a sealed file
is neither. The format is 8 bytes little-endian header length, a JSON header that gives dtype, shape
and byte range of every tensor, and the bytes (https://github.com/huggingface/safetensors).

Rules kept here: only numbers and names are read, nothing is unpickled; one tensor at a time is in
memory.

Called by `checkpoint` and `export`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Protocol

import torch

from appliance.core.errors import Internal, Tampered
from appliance.crypto.sealed import SealedReader
from appliance.jobs.train.parallel.slices import Box, inside, shape_of

LENGTH_SIZE = 8
ALIGNMENT = 8
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Append bytes."""


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor as a flat uint8 tensor, on the same memory if it is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8)


class TensorWriter:
    """Writes a file of tensors whose shapes are known beforehand.

    Args:
        sink: the file.
        shapes: of every tensor by name, in the order in which they will come.
        dtype: of all of them.
    """

    def __init__(
        self, sink: Sink, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        self._sink = sink
        self._dtype = dtype
        self._left = list(shapes.items())
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name, shape in self._left:
            end = start + math.prod(shape) * dtype.itemsize
            header[name] = {
                "dtype": NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            start = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        sink.write(len(text).to_bytes(LENGTH_SIZE, "little") + text)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor; it is converted to the dtype of the file."""
        expected = self._left.pop(0)
        if expected != (name, tuple(tensor.shape)):
            raise Internal(f"{name} of shape {tuple(tensor.shape)} came instead of {expected}.")
        self._sink.write(as_bytes(tensor.detach().to("cpu", self._dtype)).numpy().data)


class TensorReader:
    """Reads boxes of the tensors of a file.

    Raises:
        Tampered: the file is authentic, but no file of tensors.
    """

    def __init__(self, file: SealedReader) -> None:
        self._file = file
        length = int.from_bytes(file.read(LENGTH_SIZE), "little")
        if not 0 < length <= file.size - LENGTH_SIZE:
            raise file.place.tampered("it is no file of tensors")
        try:
            self._header = json.loads(file.read(length))
        except ValueError as error:
            raise file.place.tampered("its header is no JSON") from error
        self._start = LENGTH_SIZE + length

    def read(self, name: str, held: Box, wanted: Box) -> torch.Tensor:
        """A part of a tensor, on the CPU.

        Args:
            name: of the tensor.
            held: which box of a larger tensor the stored one is.
            wanted: which box of the larger tensor to read; lies in `held`.
        """
        entry = self._header.get(name)
        if entry is None or tuple(entry["shape"]) != shape_of(held):
            raise Tampered(f"{self._file.place} does not hold {name} as its index says.")
        dtype = DTYPES[entry["dtype"]]
        rows, *columns = inside(wanted, held)
        # Rows are contiguous in the file: whole rows are read, columns are cut in memory.
        part = torch.empty((rows.stop - rows.start, *entry["shape"][1:]), dtype=dtype)
        row = math.prod(entry["shape"][1:]) * dtype.itemsize
        self._file.seek(self._start + entry["data_offsets"][0] + rows.start * row)
        self._file.readinto(as_bytes(part).numpy().data)
        return part[(slice(None), *columns)]
