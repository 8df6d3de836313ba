"""Weights in sealed files, one tensor at a time: out of them, and into those of a new model.

The library for the format wants whole files in memory or memory-mapped plain files; a sealed file
is neither (`appliance.crypto.tensors` has the format). Rules kept here: a tensor's plaintext exists
in the tensor alone; nothing is unpickled; the files of a new model are planned before the first is
written, since their headers come first.

Called by the kinds that take or make a model: train, quantize, evaluate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.model_config import ORIGIN
from appliance.core.model_files import INDEX
from appliance.crypto.artifacts import ArtifactReader, ArtifactWriter
from appliance.crypto.sealed_reader import SealedReader
from appliance.crypto.tensors import TensorEntry, header, read_entries, weight_files

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""What jobs compute with."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_FILE = 4 << 30
"""Bytes of data in one file of a new model."""


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor as a flat uint8 tensor, on the same memory if it is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8)


def finite_bytes(name: str, tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor on the CPU that is to be kept.

    Raises FailedPrecondition when a number in it is NaN or infinite: nothing good comes of it.
    """
    if tensor.is_floating_point() and tensor.itemsize > 1 and not tensor.isfinite().all():
        raise FailedPrecondition(
            f"{name} holds a number that is none (NaN or infinite), so nothing was kept of it. Go"
            " back to the version or the checkpoint before; for training, lower learning_rate."
        )
    found: memoryview = as_bytes(tensor).numpy().data
    return found


def read_tensor(
    reader: SealedReader, entry: TensorEntry, rows: slice | None = None
) -> torch.Tensor:
    """A tensor of a file, on the CPU; the caller's alone.

    Args:
        reader: the file.
        entry: of the tensor in it.
        rows: from start to stop along the first dim, which lie together in the file; None for all.

    Raises:
        InvalidInput: no job computes with its type.
        Tampered: the bytes are not what was sealed.
    """
    dtype, shape, begin = _dtype(entry.dtype), entry.shape, entry.begin
    if rows is not None:
        begin += rows.start * math.prod(shape[1:]) * dtype.itemsize
        shape = (rows.stop - rows.start, *shape[1:])
    tensor = torch.empty(shape, dtype=dtype)
    raw = as_bytes(tensor)
    reader.seek(begin)
    if reader.readinto(raw.numpy().data) != raw.numel():
        raise InvalidInput(f"{reader.place} ends within the tensor {entry.name}")
    return tensor


class Weights:
    """The tensors of a sealed model.

    Raises:
        InvalidInput: it has no weights, or a file is not in the safetensors format.
        Tampered: a file is not what was sealed.
    """

    def __init__(self, model: ArtifactReader) -> None:
        self._model = model
        self._entries: dict[str, tuple[str, TensorEntry]] = {}
        for file in sorted(model.files()):
            if file.endswith(".safetensors"):
                with model.open(file) as reader:
                    for entry in read_entries(reader):
                        self._entries[entry.name] = (file, entry)
        if not self._entries:
            raise InvalidInput("the model has no weights: it needs model.safetensors")

    def plans(self) -> list[TensorPlan]:
        """Every tensor, in the order of the files."""
        return [
            TensorPlan(name, _dtype(entry.dtype), entry.shape)
            for name, (_, entry) in self._entries.items()
        ]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of every tensor, in the order of `plans`; each is the caller's alone."""
        opened, reader = "", None
        try:
            for name, (file, entry) in self._entries.items():
                if reader is None or file != opened:
                    if reader is not None:
                        reader.close()
                    opened, reader = file, self._model.open(file)
                yield name, read_tensor(reader, entry)
        finally:
            if reader is not None:
                reader.close()


def write(
    output: ArtifactWriter, plans: Sequence[TensorPlan], tensors: Iterator[torch.Tensor]
) -> None:
    """Write the weight files of a model, and their index when there are several.

    Args:
        output: the new model.
        plans: every tensor, in order.
        tensors: their values, in the same order.
    """
    groups = _files(plans)
    weight_map: dict[str, str] = {}
    for file, group in zip(weight_files(len(groups)), groups, strict=True):
        weight_map.update((plan.name, file) for plan in group)
        with output.create(file) as sink:
            sink.write(header((plan.name, NAMES[plan.dtype], plan.shape) for plan in group))
            for plan in group:
                tensor = next(tensors)
                if (tensor.dtype, tuple(tensor.shape)) != (plan.dtype, plan.shape):
                    raise InvalidInput(f"{plan.name} is not what was planned")
                sink.write(finite_bytes(plan.name, tensor))
    if len(groups) > 1:
        total = sum(plan.size for plan in plans)
        output.write_json(INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def linear_names(config: dict[str, Any]) -> set[str]:
    """Names of the linear layers inside the decoder of a model with this `config.json`.

    The output projection is not among them: quantizing it costs quality and saves little.
    """
    model = skeleton(config)
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def skeleton(config: dict[str, Any]) -> torch.nn.Module:
    """The model of a `config.json` without memory for its weights, in 32-bit floats."""
    with torch.device("meta"):
        return _model(config)


def unfilled(config: dict[str, Any]) -> torch.nn.Module:
    """The model of a `config.json`, in 32-bit floats on the CPU; its weights have no value yet.

    What is no weight has one: rotary frequencies, scales of an embedding and the like, which a
    model makes while it is built and which no file holds.
    """
    from transformers.initialization import no_init_weights  # noqa: PLC0415 - seconds to import

    with no_init_weights():
        model = _model(config)
    cast("Any", model).tie_weights()
    return model


def _model(config: dict[str, Any]) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - seconds to import

    left_out = ("quantization_config", ORIGIN)
    plain = {key: _decoded(value) for key, value in config.items() if key not in left_out}
    made = AutoConfig.for_model(plain.pop("model_type"), **plain)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
    return model


def _decoded(value: object) -> object:
    """A member, with infinity where transformers writes `{"__float__": "Infinity"}` in its place.

    Time steps of state-space models have no upper limit.
    """
    if value == {"__float__": "Infinity"}:
        return math.inf
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def _files(plans: Sequence[TensorPlan]) -> list[list[TensorPlan]]:
    groups: list[list[TensorPlan]] = [[]]
    size = 0
    for plan in plans:
        if groups[-1] and size + plan.size > MAX_FILE:
            groups.append([])
            size = 0
        groups[-1].append(plan)
        size += plan.size
    return groups


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InvalidInput(f"weights of the type {name} cannot be read by this kind of job")
    return DTYPES[name]
