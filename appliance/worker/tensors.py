"""Tensors out of a sealed safetensors file, decrypted straight into their own memory.

Rule kept here: plaintext exists in the tensor alone and in the reader's one segment, never in a
file and never as a second copy of the whole.

Called by `appliance.worker.loader`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from appliance.core.errors import InvalidInput
from appliance.crypto.sealed_reader import SealedReader
from appliance.crypto.tensors import TensorEntry, read_entries

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
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "U8": torch.uint8,
}
"""All types of `appliance.crypto.tensors.SIZES`."""


def read_tensor(reader: SealedReader, entry: TensorEntry) -> torch.Tensor:
    """One tensor, on the CPU. Raises Tampered when its bytes are not what was sealed."""
    # On the CPU whatever the default device is: the loader runs with the engine's.
    raw = torch.empty(entry.end - entry.begin, dtype=torch.uint8, device="cpu")
    if raw.numel():
        reader.seek(entry.begin)
        if reader.readinto(raw.numpy().data) != raw.numel():
            raise InvalidInput(f"the weights end within the tensor {entry.name}")
    return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)


def read_tensors(reader: SealedReader) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file one after another; each is the caller's alone.

    Raises:
        InvalidInput: the header is not what the format says.
        Tampered: the bytes are not what was sealed.
    """
    for entry in read_entries(reader):
        yield entry.name, read_tensor(reader, entry)
