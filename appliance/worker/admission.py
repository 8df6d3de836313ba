"""Which models the worker starts: an allow-list, checked before vLLM sees anything of a model.

The attack: a model whose files carry code (`auto_map`, custom Python files, pickled weights), or
whose configuration makes a library open another path or fetch an address. Rules kept here:
* only the architectures named here, whose code is vLLM's own;
* only files of formats that cannot hold code;
* no member of the configuration, at any depth, that names code, and no text in it that is a path or
  an address;
* what vLLM reads is the checked value written anew, never the file.

Called by `appliance.worker.main` before vLLM is imported; pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.crypto.tensors import is_weights

ARCHITECTURES: Mapping[str, str] = {
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "GemmaForCausalLM": "gemma",
    "GraniteForCausalLM": "granite",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "Olmo2ForCausalLM": "olmo2",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
"""Architectures that may be served, and the module of vLLM's that has their code."""

_DATA = re.compile(r"[A-Za-z0-9_.-]+\.(json|jsonl|txt|jinja|model|md)")
_CODE = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "code_revision"})
_PLACE = re.compile(r"://|^[/~\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)|\.py(\b|$)")
# Where a model was loaded from when it was saved; transformers ignores it, and so do we.
_IGNORED = frozenset({"_name_or_path"})
_DTYPES = frozenset({"float32", "float16", "bfloat16"})
CACHE_BLOCK = 128
"""Tokens of a block of the key-value cache: a sequence takes whole blocks."""


def weight_files(files: Iterable[str]) -> list[str]:
    """The weight files among the files of a model.

    Raises InvalidInput naming a file that may not be part of a served model, or when there are no
    weights.
    """
    weights = []
    for file in files:
        if is_weights(file):
            weights.append(file)
        elif not _DATA.fullmatch(file):
            raise InvalidInput(
                f"the model has a file {file}, which could hold code: remove it, then import the "
                "model again",
                file=file,
            )
    if not weights:
        raise InvalidInput("the model has no weights: it needs model.safetensors")
    return sorted(weights)


def checked_config(config: object) -> dict[str, Any]:
    """The model's `config.json`, safe to hand to vLLM.

    Raises InvalidInput naming the member that is refused.
    """
    if not isinstance(config, dict):
        raise InvalidInput("the model's config.json is not a JSON object")
    clean = {key: value for key, value in config.items() if key not in _IGNORED}
    _check_value(clean, "")
    architectures = clean.get("architectures")
    if (
        not isinstance(architectures, list)
        or len(architectures) != 1
        or architectures[0] not in ARCHITECTURES
    ):
        raise _refused(
            "architectures", f"must be one of {', '.join(sorted(ARCHITECTURES))}, and only one"
        )
    if dtype_of(clean) not in _DTYPES:
        raise _refused("dtype", f"must be one of {', '.join(sorted(_DTYPES))}")
    quantization = clean.get("quantization_config")
    if quantization is not None and (
        not isinstance(quantization, dict)
        or quantization.get("quant_method") != "compressed-tensors"
    ):
        raise _refused("quantization_config", "must be of the method compressed-tensors")
    return clean


def architecture_of(config: Mapping[str, Any]) -> str:
    """The architecture of a checked configuration."""
    return str(config["architectures"][0])


def dtype_of(config: Mapping[str, Any]) -> str:
    """The type that a model computes in; bfloat16 when its configuration names none."""
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def _refused(member: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"the model's config.json is refused: {member} {why}", fields={f"config.{member}": why}
    )


def _check_value(value: object, path: str) -> None:
    if isinstance(value, Mapping):
        for key, member in value.items():
            where = f"{path}.{key}" if path else str(key)
            if key in _CODE and member not in (None, False):
                raise _refused(where, "names code, and a model may not bring its own")
            _check_value(member, where)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            _check_value(member, f"{path}[{index}]")
    elif isinstance(value, str) and _PLACE.search(value):
        raise _refused(path, "is a path or an address, and a model may not point outside itself")


def sequence_length(config: Mapping[str, Any], wanted: int) -> int:
    """Most tokens of a prompt and its answer.

    Args:
        config: a checked configuration.
        wanted: the most that the orders allow; 0: whatever the model can.

    Raises InvalidInput when the model cannot do as many, or does not say how many it can.
    """
    longest = config.get("max_position_embeddings")
    if type(longest) is not int or longest < 1:
        raise _refused("max_position_embeddings", "must say how many tokens the model can take")
    if wanted > longest:
        raise InvalidInput(
            f"the endpoint asks for sequences of {wanted} tokens, but the model takes at most "
            f"{longest}",
            fields={"max_sequence_length": f"at most {longest}"},
        )
    return wanted or longest


def check_cache(config: Mapping[str, Any], length: int, cache_bytes: int) -> None:
    """Refuse a key-value cache that cannot hold one longest sequence.

    A token takes a key and a value of each head in each layer; a rank of a tensor-parallel engine
    holds its share of the heads in its share of the cache.

    Raises FailedPrecondition with the number of bytes that would do.
    """
    heads = _number(config, "num_attention_heads")
    key_heads = _number(config, "num_key_value_heads", heads)
    head_size = _number(config, "head_dim", _number(config, "hidden_size") // heads)
    size = 4 if dtype_of(config) == "float32" else 2
    blocks = -(-length // CACHE_BLOCK) + 1
    layers = _number(config, "num_hidden_layers")
    needed = 2 * layers * key_heads * head_size * size * blocks * CACHE_BLOCK
    if cache_bytes < needed:
        raise FailedPrecondition(
            f"the key-value cache of {cache_bytes} bytes cannot hold one sequence of {length} "
            f"tokens: give the endpoint at least {needed} bytes of cache, or shorter sequences",
            needed=needed,
        )


def check_ranks(config: Mapping[str, Any], ranks: int) -> None:
    """Refuse a tensor-parallel degree that does not divide the heads. Raises InvalidInput."""
    heads = _number(config, "num_attention_heads")
    key_heads = _number(config, "num_key_value_heads", heads)
    if heads % ranks or (key_heads % ranks and ranks % key_heads):
        raise InvalidInput(
            f"{ranks} tensor-parallel ranks cannot share {heads} attention heads ({key_heads} of "
            "keys): choose a number that divides both",
            fields={"tensor_parallel": "does not divide the model's heads"},
        )


def _number(config: Mapping[str, Any], member: str, default: int | None = None) -> int:
    value = config.get(member)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise _refused(member, "must be a whole number of at least 1")
    return value
