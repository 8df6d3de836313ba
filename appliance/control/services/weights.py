"""Weights from outside: the header of a safetensors file, and whether the tensors fit the model.

The format is an 8-byte little-endian length, a JSON header, then the tensors' bytes
(https://github.com/huggingface/safetensors, "Format"). It cannot hold code, but a header can lie.
Rules kept here:
* the header is bounded in bytes and in entries before it is parsed, and has no key twice;
* every tensor's range has exactly the size of its shape and dtype; the ranges cover the data
  without overlap or hole;
* the tensors are exactly those of the configuration's architecture, in its shapes.

The attack: a pickle renamed to `.safetensors`, a header of a million entries, ranges that overlap
or reach past the end, tensors that make the engine allocate what nobody counted.

Pure. Called by `services.models` while files come in.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.control.services.model_files import ModelConfig, read_json
from appliance.core.errors import InvalidInput
from appliance.core.names import shown

LENGTH_SIZE = 8
LARGEST_HEADER = 16 << 20
MOST_TENSORS = 1 << 16
_MOST_AXES = 8
_LARGEST_AXIS = 1 << 40

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
_SCALES = (".weight_scale", ".weight_zero_point", ".input_scale")


@dataclass(frozen=True)
class Tensor:
    """One entry of a header."""

    dtype: str
    shape: tuple[int, ...]


class HeaderCheck:
    """Checks one safetensors file while its bytes pass by.

    Args:
        file: its name, for messages.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._start = bytearray()
        self._size = 0
        self._end: int | None = None
        self.tensors: dict[str, Tensor] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises InvalidInput as soon as the header is seen to be wrong."""
        self._size += len(data)
        if self._end is not None:
            return
        self._start += data
        if len(self._start) < LENGTH_SIZE:
            return
        length = int.from_bytes(self._start[:LENGTH_SIZE], "little")
        if not 2 <= length <= LARGEST_HEADER:
            raise self._wrong("is not a safetensors file: its header has an impossible length")
        if len(self._start) >= LENGTH_SIZE + length:
            header = bytes(self._start[LENGTH_SIZE : LENGTH_SIZE + length])
            self._end = LENGTH_SIZE + length + self._parse(header)
            self._start.clear()

    def skip(self, count: int) -> None:
        """Count bytes behind the header without looking at them."""
        self._size += count

    def finish(self) -> None:
        """The file has ended. Raises InvalidInput unless its size is what the header says."""
        if self._end is None:
            raise self._wrong("is not a safetensors file: it ends inside its header")
        if self._size != self._end:
            raise self._wrong(
                f"has {self._size} bytes, but its header describes {self._end}; copy it again"
            )

    def _parse(self, header: bytes) -> int:
        """Fill `tensors`; the number of bytes of data they cover."""
        if header.count(b'"data_offsets"') > MOST_TENSORS:
            raise self._wrong(f"has more than {MOST_TENSORS} tensors")
        entries = read_json(self._file, header)
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()
        ):
            raise self._wrong("has metadata that is not text")
        ranges: list[tuple[int, int]] = []
        for name, entry in entries.items():
            self.tensors[name], span = self._entry(name, entry)
            ranges.append(span)
        position = 0
        for begin, end in sorted(ranges):
            if begin != position:
                raise self._wrong("has tensors that overlap or leave a hole between them")
            position = end
        return position

    def _entry(self, name: str, entry: object) -> tuple[Tensor, tuple[int, int]]:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._wrong(f"has a malformed entry {shown(name)}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise self._wrong(f"has an unknown number format in {shown(name)}")
        if not _whole_numbers(shape, _MOST_AXES) or not _whole_numbers(offsets, 2):
            raise self._wrong(f"has an impossible shape or range in {shown(name)}")
        begin, end = offsets if len(offsets) == 2 else (1, 0)
        if end - begin != math.prod(shape) * _BITS[dtype] // 8:
            raise self._wrong(f"has a range in {shown(name)} that is not the size of its tensor")
        return Tensor(dtype, tuple(shape)), (begin, end)

    def _wrong(self, why: str) -> InvalidInput:
        return InvalidInput(f"{self._file} {why}.", fields={self._file: why})


def read_header(file: str, reader: io.RawIOBase, size: int) -> dict[str, Tensor]:
    """The checked entries of a stored file of `size` bytes, of which only the header is read."""
    check = HeaderCheck(file)
    start = reader.read(LENGTH_SIZE) or b""
    check.feed(start)
    length = int.from_bytes(start, "little")
    header = reader.read(length) or b""
    check.feed(header)
    check.skip(size - len(start) - len(header))
    check.finish()
    return check.tensors


def _whole_numbers(value: object, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(item) is int and 0 <= item <= _LARGEST_AXIS for item in value)
    )


def check_index(index: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise InvalidInput unless `model.safetensors.index.json` says which file holds which tensor.

    Args:
        index: the parsed index.
        files: tensors by file.
    """
    found = {name: file for file, tensors in files.items() for name in tensors}
    if index.get("weight_map") != found:
        why = "does not say exactly which file holds which tensor"
        file = "model.safetensors.index.json"
        raise InvalidInput(f"{file} {why}; save the model again.", fields={file: why})


def count_parameters(config: ModelConfig, tensors: Mapping[str, Tensor]) -> int:
    """Parameters in the weights, once the tensors are seen to be those of the configuration.

    Scales of quantized weights are not counted; a tied output projection is counted once.

    Raises:
        InvalidInput: a tensor is missing, unknown or of another shape; the message names it.
    """
    wanted = dict(shapes(config))
    for name, shape in wanted.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise _misfit(name, "is missing")
        if tensor.shape != shape:
            raise _misfit(name, f"has the shape {list(tensor.shape)}, not {list(shape)}")
    for name in tensors:
        tied = config.tie_embeddings and name == "lm_head.weight"
        scale = any(name.removesuffix(end) + ".weight" in wanted for end in _SCALES)
        if name not in wanted and not tied and not scale and not name.endswith(".inv_freq"):
            raise _misfit(name, "does not belong to this architecture")
    return sum(math.prod(shape) for shape in wanted.values())


def shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight of a Llama model (Hugging Face `LlamaForCausalLM`)."""
    width, feed = config.hidden_size, config.intermediate_size
    queries = config.attention_heads * config.head_dim
    keys = config.key_value_heads * config.head_dim
    yield "model.embed_tokens.weight", (config.vocabulary_size, width)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        for name, rows, columns, bias in (
            ("self_attn.q_proj", queries, width, config.attention_bias),
            ("self_attn.k_proj", keys, width, config.attention_bias),
            ("self_attn.v_proj", keys, width, config.attention_bias),
            ("self_attn.o_proj", width, queries, config.attention_bias),
            ("mlp.gate_proj", feed, width, config.mlp_bias),
            ("mlp.up_proj", feed, width, config.mlp_bias),
            ("mlp.down_proj", width, feed, config.mlp_bias),
        ):
            yield f"{prefix}.{name}.weight", (rows, columns)
            if bias:
                yield f"{prefix}.{name}.bias", (rows,)
        yield f"{prefix}.input_layernorm.weight", (width,)
        yield f"{prefix}.post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    if not config.tie_embeddings:
        yield "lm_head.weight", (config.vocabulary_size, width)


def _misfit(name: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"The weights do not fit config.json: {shown(name)} {why}. Import the files of one model.",
        fields={"model.safetensors": f"{shown(name)} {why}"},
    )
