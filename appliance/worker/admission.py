"""Which models the worker starts: an allow-list, checked before vLLM sees anything of a model.

The attack: a model whose files carry code (`auto_map`, custom Python files, pickled weights), or
whose configuration makes a library open another path or fetch an address. Rules kept here:
* only the architectures of `appliance.core.families`, whose code is vLLM's own;
* files and configuration pass the checks that an import has to pass, the very same functions;
* what vLLM reads is the checked value written anew, never the file.

Called by `appliance.worker.main` before vLLM is imported; pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from appliance.core import families, model_config, model_files
from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.core.families import EngineCode, FamilyUse
from appliance.core.family_tensors import Sizes
from appliance.core.model_config import CONFIG, ORIGIN

CACHE_BLOCK = 128
"""Tokens of a block of the key-value cache: a sequence takes whole blocks."""


@dataclass(frozen=True)
class Admitted:
    """A configuration that may be served.

    Attributes:
        config: what vLLM reads.
        architecture: the one that it names.
        engine: where vLLM's code of it is.
        sizes: of the model.
        dtype: what it computes in.
    """

    config: dict[str, Any]
    architecture: str
    engine: EngineCode
    sizes: Sizes
    dtype: str


def weight_files(files: Iterable[str]) -> list[str]:
    """The weight files among the files of a model.

    Raises InvalidInput naming a file that may not be part of a served model, or when there are no
    weights.
    """
    names = list(files)
    for name in names:
        if not model_files.check_name(name):
            raise InvalidInput(
                f"the model has a file {name}, which is none of a model's: import it again",
                file=name,
            )
    weights = sorted(filter(model_files.is_weights, names))
    if not weights:
        raise InvalidInput("the model has no weights: it needs model.safetensors")
    return weights


def checked_config(config: object) -> Admitted:
    """The model's `config.json`, safe to hand to vLLM.

    Raises InvalidInput naming the members that are refused.
    """
    if not isinstance(config, dict):
        raise InvalidInput("the model's config.json is not a JSON object")
    model_config.check_members(CONFIG, config, paths=True)
    found = model_config.check_config(config)
    why = families.refusal(found.architecture, FamilyUse.TEXT)
    if why or found.family.engine is None:
        raise InvalidInput(f"the model {why}", fields={"config.json.architectures": why})
    return Admitted(
        config={key: value for key, value in config.items() if key != ORIGIN},
        architecture=found.architecture,
        engine=found.family.engine,
        sizes=found.sizes,
        dtype=model_config.dtype_of(config),
    )


def sequence_length(sizes: Sizes, wanted: int) -> int:
    """Most tokens of a prompt and its answer.

    Args:
        sizes: of the model.
        wanted: the most that the orders allow; 0: whatever the model can.

    Raises InvalidInput when the model cannot do as many.
    """
    longest = sizes.context_length
    if wanted > longest:
        raise InvalidInput(
            f"the endpoint asks for sequences of {wanted} tokens, but the model takes at most "
            f"{longest}",
            fields={"max_sequence_length": f"at most {longest}"},
        )
    return wanted or longest


def check_cache(model: Admitted, length: int, cache_bytes: int) -> None:
    """Refuse a key-value cache that cannot hold one longest sequence.

    A token takes a key and a value of each head in each layer; a rank of a tensor-parallel engine
    holds its share of the heads in its share of the cache.

    Raises FailedPrecondition with the number of bytes that would do.
    """
    size = 4 if model.dtype == "float32" else 2
    blocks = -(-length // CACHE_BLOCK) + 1
    needed = 2 * model.sizes.layers * model.sizes.keys * size * blocks * CACHE_BLOCK
    if cache_bytes < needed:
        raise FailedPrecondition(
            f"the key-value cache of {cache_bytes} bytes cannot hold one sequence of {length} "
            f"tokens: give the endpoint at least {needed} bytes of cache, or shorter sequences",
            needed=needed,
        )


def check_ranks(model: Admitted, ranks: int) -> None:
    """Refuse a tensor-parallel degree that does not divide the heads. Raises InvalidInput."""
    heads, key_heads = model.sizes.attention_heads, model.sizes.key_value_heads
    if heads % ranks or (key_heads % ranks and ranks % key_heads):
        raise InvalidInput(
            f"{ranks} tensor-parallel ranks cannot share {heads} attention heads ({key_heads} of "
            "keys): choose a number that divides both",
            fields={"tensor_parallel": "does not divide the model's heads"},
        )
    why = families.refusal(model.architecture, FamilyUse.SPREAD)
    if ranks > 1 and why:
        raise InvalidInput(f"the model {why}", fields={"tensor_parallel": why})
