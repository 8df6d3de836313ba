"""Weights from outside: checked while they come in, and whether the tensors fit the model.

Rules kept here:
* the header of a file is checked as soon as it has come, the size when the file ends
  (`appliance.crypto.tensors` says what a header may be);
* the tensors are exactly those of the configuration's architecture, in its shapes.

The attack: a file that is no safetensors file or whose header lies, and tensors that make the
engine allocate what nobody counted.

Pure. Called by `services.models` while files come in, and by `services.model_facts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.control.services.model_files import ModelConfig
from appliance.core.errors import InvalidInput
from appliance.core.names import shown
from appliance.crypto import tensors as layouts
from appliance.crypto.tensors import INDEX, LENGTH_SIZE, Entry, Layout

_SCALES = (".weight_scale", ".weight_zero_point", ".input_scale")


@dataclass(frozen=True)
class Tensor:
    """What counts of a tensor here."""

    dtype: str
    shape: tuple[int, ...]


def by_name(entries: Iterable[Entry]) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    return {entry.name: Tensor(entry.dtype, entry.shape) for entry in entries}


class HeaderCheck:
    """Checks one safetensors file while its bytes pass by.

    Args:
        file: its name, for messages.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._start = bytearray()
        self._size = 0
        self._layout: Layout | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, once the header has come."""
        return by_name(self._layout.entries) if self._layout else {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises InvalidInput as soon as the header is seen to be wrong."""
        self._size += len(data)
        if self._layout is not None:
            return
        self._start += data
        if len(self._start) < LENGTH_SIZE:
            return
        end = LENGTH_SIZE + layouts.header_length(self._file, bytes(self._start[:LENGTH_SIZE]))
        if len(self._start) >= end:
            header = bytes(self._start[LENGTH_SIZE:end])
            self._layout = layouts.parse_header(self._file, header)
            self._start.clear()

    def finish(self) -> None:
        """The file has ended. Raises InvalidInput unless its size is what the header says."""
        layouts.check_size(self._file, self._layout, self._size)


def check_index(index: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Raise InvalidInput unless `model.safetensors.index.json` says which file holds which tensor.

    Args:
        index: the parsed index.
        files: tensors by file.
    """
    found = {name: file for file, tensors in files.items() for name in tensors}
    if index.get("weight_map") != found:
        why = "does not say exactly which file holds which tensor"
        raise InvalidInput(f"{INDEX} {why}; save the model again.", fields={INDEX: why})


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
