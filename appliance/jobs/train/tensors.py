"""Tensors of a run in sealed files: written as a stream, boxes of them read from anywhere.

Rules kept here: tensors come in the order that the header says; what is read has the shape that the
index beside it says; one tensor at a time is in memory.

Called by `checkpoint` and `export`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from appliance.core.errors import Internal, InvalidInput, Tampered
from appliance.crypto.sealed_reader import SealedReader
from appliance.crypto.tensors import header, read_entries
from appliance.jobs.runtime.weights import NAMES, finite_bytes, read_tensor
from appliance.jobs.train.parallel.slices import Box, inside, shape_of


class TensorSink(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Append bytes."""


class TensorWriter:
    """Writes a file of tensors whose shapes are known beforehand.

    Args:
        sink: the file.
        shapes: of every tensor by name, in the order in which they will come.
        dtype: of all of them.
    """

    def __init__(
        self, sink: TensorSink, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        self._sink = sink
        self._dtype = dtype
        self._left = list(shapes.items())
        sink.write(header((name, NAMES[dtype], shape) for name, shape in self._left))

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor; it is converted to the dtype of the file.

        Raises FailedPrecondition when a number in it is none.
        """
        expected = self._left.pop(0)
        if expected != (name, tuple(tensor.shape)):
            raise Internal(f"{name} of shape {tuple(tensor.shape)} came instead of {expected}.")
        self._sink.write(finite_bytes(name, tensor.detach().to("cpu", self._dtype)))


class TensorReader:
    """Reads boxes of the tensors of a file.

    Raises:
        Tampered: the file is authentic, but no file of tensors.
    """

    def __init__(self, file: SealedReader) -> None:
        self._file = file
        try:
            self._entries = {entry.name: entry for entry in read_entries(file)}
        except InvalidInput as error:
            raise file.place.tampered("it is no file of tensors") from error

    def read(self, name: str, held: Box, wanted: Box) -> torch.Tensor:
        """A part of a tensor, on the CPU.

        Args:
            name: of the tensor.
            held: which box of a larger tensor the stored one is.
            wanted: which box of the larger tensor to read; lies in `held`.
        """
        entry = self._entries.get(name)
        if entry is None or entry.shape != shape_of(held):
            raise Tampered(f"{self._file.place} does not hold {name} as its index says.")
        # Rows are contiguous in the file: whole rows are read, columns are cut in memory.
        rows, *columns = inside(wanted, held)
        return read_tensor(self._file, entry, rows)[(slice(None), *columns)]
