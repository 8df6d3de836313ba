"""What a LoRA adapter is: its configuration, and the tensors that this says it has. Pure.

The form is PEFT's (`adapter_config.json` beside `adapter_model.safetensors`). Rules kept here:
* for each module that it changes an adapter has two matrices, `lora_A` of [rank, inputs] and
  `lora_B` of [outputs, rank], and it has nothing else;
* the modules are a list of names; a member that would make the matrices mean something else, or
  bring weights of its own beside them, is refused while it says anything;
* an adapter names the version that it belongs to, and the digest of that version's manifest in
  PEFT's member `revision`: with other weights it is noise.

The attack: a pattern instead of names, which takes for ever to match; whole layers that replace
those of the model under cover of an adapter; numbers chosen to exhaust memory.

Called by `appliance.control.services.data.outputs` when a job's adapter is registered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.errors import InvalidInput
from appliance.core.names import Name, shown
from appliance.core.strict_json import plain

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_RANK = 1024
MAX_ALPHA = 65536
MAX_TARGETS = 64

_TARGET = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}(\.[A-Za-z0-9_]{1,64}){0,7}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>[A-Za-z0-9_.]{1,200})\.lora_(?P<side>[AB])\.weight"
)
_DTYPES = frozenset({"F32", "F16", "BF16"})
_READ = frozenset(
    {"base_model_name_or_path", "lora_alpha", "peft_type", "r", "revision", "target_modules"}
)
_MEANS_NOTHING = frozenset(
    {"inference_mode", "init_lora_weights", "lora_dropout", "megatron_core", "peft_version"}
    | {"task_type"}
)
"""Members that matter while an adapter is trained, and not for what it does."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class AdapterConfig:
    """What a checked `adapter_config.json` says; `digest` is that of the base's manifest."""

    rank: int
    alpha: float
    targets: frozenset[str]
    base: str
    digest: str


def check_adapter_config(config: Mapping[str, Any]) -> AdapterConfig:
    """Read `adapter_config.json`. Raises InvalidInput naming everything that is not acceptable."""
    problems = {
        plain(member): "is not known here, and changes what the adapter is: leave it out"
        for member, value in config.items()
        if member not in _READ | _MEANS_NOTHING and value not in (None, False, "none", {}, [])
    }
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    targets: Any = config.get("target_modules")
    base: Any = config.get("base_model_name_or_path")
    digest: Any = config.get("revision")
    if config.get("peft_type") != "LORA":
        problems["peft_type"] = "must be LORA"
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        problems["r"] = f"must be a whole number of 1 to {MAX_RANK}"
    if type(alpha) not in (int, float) or not 0 < alpha <= MAX_ALPHA:
        problems["lora_alpha"] = f"must be more than 0 and at most {MAX_ALPHA}"
    if not _are_targets(targets):
        problems["target_modules"] = f"must list 1 to {MAX_TARGETS} names of modules, each once"
    if not _is_version(base):
        problems["base_model_name_or_path"] = "must name the model version it belongs to"
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        problems["revision"] = "must be the digest of that version's manifest, 64 hex digits"
    if problems:
        sentences = " ".join(f"{member} {sentence}." for member, sentence in problems.items())
        raise InvalidInput(f"{ADAPTER_CONFIG}: {sentences}", fields=problems)
    return AdapterConfig(rank, float(alpha), frozenset(targets), base, digest)


def _are_targets(value: object) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MAX_TARGETS
        and all(isinstance(name, str) and _TARGET.fullmatch(name) for name in value)
        and len(set(value)) == len(value)
    )


def _is_version(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(Name.parse(value, "modelVersion"))
    except InvalidInput:
        return False


def check_adapter_tensors(
    config: AdapterConfig, tensors: Mapping[str, tuple[str, Shape]]
) -> dict[str, tuple[int, int]]:
    """The modules that an adapter changes: name -> (outputs, inputs).

    Args:
        config: checked.
        tensors: by name, type and shape.

    Raises:
        InvalidInput: a tensor is not one of a pair of the configuration, or its pair is missing.
    """
    sides: dict[str, dict[str, Shape]] = {}
    for name, (dtype, shape) in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise _wrong(name, "is no matrix of an adapter")
        module, side = match["module"], match["side"]
        if not any(module == target or module.endswith(f".{target}") for target in config.targets):
            raise _wrong(name, "is of a module that target_modules does not name")
        if dtype not in _DTYPES:
            raise _wrong(name, f"has the type {dtype}; save it as {', '.join(sorted(_DTYPES))}")
        if len(shape) != 2 or min(shape) < 1 or shape[side == "B"] != config.rank:
            raise _wrong(name, f"has the shape {list(shape)}, not one of rank {config.rank}")
        sides.setdefault(module, {})[side] = shape
    for module, shapes in sides.items():
        if len(shapes) != 2:
            raise _wrong(module, "has only one of its two matrices")
    if not sides:
        raise InvalidInput(f"{ADAPTER_WEIGHTS} holds no tensor.")
    return {module: (shapes["B"][0], shapes["A"][1]) for module, shapes in sides.items()}


def adapter_facts(
    config: AdapterConfig, tensors: Mapping[str, tuple[str, Shape]], size: int
) -> dict[str, Any]:
    """The facts of an adapter; `size` in bytes. Raises InvalidInput as `check_adapter_tensors`."""
    modules = check_adapter_tensors(config, tensors)
    numbers = [math.prod(shape) for _, shape in tensors.values()]
    return {
        "rank": config.rank,
        "alpha": config.alpha,
        "targets": sorted(config.targets),
        "modules": len(modules),
        "base": config.base,
        "base_digest": config.digest,
        "parameters": sum(numbers),
        "largest_tensor": max(numbers),
        "weight_bytes": size,
    }


def _wrong(name: str, why: str) -> InvalidInput:
    return InvalidInput(f"{ADAPTER_WEIGHTS}: {shown(name)} {why}.", fields={ADAPTER_WEIGHTS: why})
