"""What a model's `config.json` may say: one meaning of every check, for import, jobs and workers.

Rules kept here:
* one architecture of the table in `appliance.core.families`, every size within its bounds;
* no member, at any depth, that names code, and no text that is a path or an address;
* no member by which a library would read other sizes than those that were checked: another name of
  a size, a configuration within this one, sizes layer by layer;
* a refusal names everything that is wrong, member by member.

The attack: `auto_map` with a Python file beside it, `trust_remote_code`, an attention
implementation that a library would fetch from the Hub, a path where a library would look, numbers
chosen to exhaust memory.

Pure. Called by the command before an import begins, by the control plane while files come in and
when it registers what a job made, and by a worker before it imports its engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from appliance.core.config_members import BOUNDS, Members
from appliance.core.errors import InvalidInput
from appliance.core.families import BY_CLASS, FAMILIES, Family
from appliance.core.family_tensors import Shape, Sizes
from appliance.core.names import shown
from appliance.core.strict_json import plain

CONFIG = "config.json"
ORIGIN = "_name_or_path"
"""Where a model was loaded from when it was saved. Nobody reads it: not checked, not handed on."""
DTYPES = frozenset({"bfloat16", "float16", "float32"})

_CODE = frozenset(
    {"auto_map", "trust_remote_code", "custom_pipelines", "custom_generate", "code_revision"}
)
_KERNELS = frozenset({"attn_implementation", "_attn_implementation", "experts_implementation"})
_PLACE = re.compile(r"://|^[/~\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)|\.py(\b|$)")
_OTHER_SIZES = frozenset(
    {"text_config", "text_encoder", "decoder", "generator", "per_layer_config", "block_configs"}
    | {"n_head_kv", "num_kv_heads", "multi_query_group_num", "num_attention_groups"}
    | {"hidden_size_per_head", "kv_lora_rank", "compression_config"}
)
"""Where transformers or vLLM look for sizes, or for the format, before the members of the table."""
_ROTARY = frozenset({"rope_scaling", "rope_parameters"})
_SCALES = (".weight_scale", ".weight_zero_point", ".input_scale")


@dataclass(frozen=True)
class ModelConfig:
    """What a checked `config.json` says.

    Attributes:
        family: its row.
        architecture: its Hugging Face class.
        sizes: under names that are the same for every family.
        format: of the weights: a dtype, or `w8a8-int8`.
        shapes: of every weight, by name.
    """

    family: Family
    architecture: str
    sizes: Sizes
    format: str
    shapes: Mapping[str, Shape]


def refused(file: str, problems: Mapping[str, str]) -> InvalidInput:
    """The error for a file.

    Args:
        file: its name.
        problems: by member: what is wrong, to follow the file's name.
    """
    whys = "; ".join(dict.fromkeys(problems.values()))
    fields = {f"{file}.{member}" if member else file: why for member, why in problems.items()}
    return InvalidInput(f"{file} {whys}.", fields=fields)


def dtype_of(config: Mapping[str, Any]) -> str:
    """The type of the numbers; 32-bit floats where a configuration names none, as in its format."""
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def check_members(file: str, value: object, *, paths: bool) -> None:
    """No member that runs or fetches code; with `paths`, no text that points out of the model.

    Raises InvalidInput naming every member that is refused.
    """
    problems: dict[str, str] = {}
    waiting: list[tuple[str, str, object]] = [("", "", value)]
    while waiting:
        path, name, item = waiting.pop()
        if _is_code(name, item):
            problems[path] = (
                f"names code to run ({shown(name)}). Models bring no code here: remove that "
                "member, and use a model whose architecture is built in"
            )
        elif isinstance(item, (dict, list)):
            waiting.extend(_below(path, item))
        elif paths and path != ORIGIN and isinstance(item, str) and _PLACE.search(item):
            problems[path] = f"points outside the model in {shown(path)}; remove that member"
    if problems:
        raise refused(file, dict(reversed(problems.items())))


def _is_code(name: str, value: object) -> bool:
    """Whether a member makes a library run what is not its own."""
    if name in _KERNELS:
        # A name, or a name for each part of a model; one of a repository has a slash.
        return "/" in str(value)
    # `false` says that no code is wanted.
    return name in _CODE and value is not None and value is not False


def _below(path: str, value: dict[str, Any] | list[Any]) -> Iterator[tuple[str, str, object]]:
    """Path, name and value of what is in an object or a list."""
    if isinstance(value, dict):
        for key, member in value.items():
            shown_key = plain(str(key))
            yield f"{path}.{shown_key}" if path else shown_key, str(key), member
    else:
        for index, member in enumerate(value):
            yield f"{path}[{index}]", "", member


def check_config(config: Mapping[str, Any]) -> ModelConfig:
    """Read `config.json`. Raises InvalidInput naming everything that is not acceptable."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise refused(CONFIG, {"architectures": "does not name exactly one architecture"})
    name = architectures[0]
    family = BY_CLASS.get(name) if isinstance(name, str) else None
    if family is None:
        known = ", ".join(f"{row.name} ({', '.join(row.classes)})" for row in FAMILIES)
        why = f"has the architecture {shown(str(name))}; built in are {known}"
        raise refused(CONFIG, {"architectures": why})
    members = Members(config)
    if config.get("model_type") != family.model_type:
        members.wrong("model_type", f"has a model_type that is not {name}'s {family.model_type}")
    sizes = _sizes(family, members)
    _check_one_reading(config, family, sizes, members)
    _check_positions(config, sizes, members)
    number_format = _format(config, members)
    shapes = dict(family.classes[name](sizes, members))
    if members.problems:
        raise refused(CONFIG, members.problems)
    return ModelConfig(family, name, sizes, number_format, shapes)


def _sizes(family: Family, members: Members) -> Sizes:
    names = family.names
    width = members.size(names.hidden_size)
    heads = members.size(names.attention_heads)
    feed = members.size(names.intermediate_size, 4 * width if family.four_widths else None)

    def optional(member: str, otherwise: int) -> int:
        if not member:
            return otherwise
        return members.size(member, otherwise if member in family.optional else None)

    key_value_heads = optional(names.key_value_heads, heads)
    head_dim = optional(names.head_dim, max(width // heads, 1))
    found = Sizes(
        hidden_size=width,
        intermediate_size=feed,
        layers=members.size(names.layers),
        attention_heads=heads,
        key_value_heads=key_value_heads,
        head_dim=head_dim,
        vocabulary_size=members.size(names.vocabulary_size),
        context_length=members.size(names.context_length),
        tie_embeddings=members.flag("tie_word_embeddings", otherwise=family.tied),
    )
    if not members.problems:
        if heads % key_value_heads:
            why = "has attention heads that its key and value heads do not share"
            members.wrong(names.key_value_heads, why)
        if not members.has(names.head_dim) and width % heads:
            why = f"has a {names.hidden_size} that its attention heads do not share"
            members.wrong(names.hidden_size, why)
    return found


def _check_one_reading(
    config: Mapping[str, Any], family: Family, sizes: Sizes, members: Members
) -> None:
    """Note members by which a library would read something else than what was checked here."""
    for member in sorted(filter(members.has, _OTHER_SIZES)):
        members.wrong(member, f"has {member}, which no {family.name} has; remove that member")
    for member, name in family.aliases.items():
        if members.has(member) and config[member] != config.get(name):
            members.wrong(member, f"has {member}, which is another name of {name}; keep {name}")
    # Families whose heads are all equal have no members for these, and libraries look all the same.
    equal = {"num_key_value_heads": sizes.attention_heads, "head_dim": sizes.head_dim}
    named = {family.names.key_value_heads, family.names.head_dim}
    for member, value in equal.items():
        if member not in named and members.has(member) and config[member] != value:
            members.wrong(member, f"has {member} that is not {value}; remove that member")


def _check_positions(config: Mapping[str, Any], sizes: Sizes, members: Members) -> None:
    """Note scaled rotary embeddings for more positions than a context may have.

    An engine makes a table with a row for each of `factor` times the positions there were before.
    """
    most = BOUNDS["max_position_embeddings"][1]
    original = config.get("original_max_position_embeddings")  # Phi-3 has it here.
    if original is not None and (type(original) is not int or not 0 < original <= most):
        why = f"has original_max_position_embeddings outside 1 to {most}"
        members.wrong("original_max_position_embeddings", why)
    for member in sorted(_ROTARY & set(config)):
        value = config[member]
        inside = list(value.values()) if isinstance(value, dict) else []
        # Gemma 3 has an object for each kind of layer.
        for part in [value, *inside]:
            if not isinstance(part, dict):
                continue
            before = part.get("original_max_position_embeddings")
            factor = part.get("factor")
            numbers = [1 if each is None else each for each in (before, factor)]
            if not all(type(each) in {int, float} and 0 < each <= most for each in numbers) or (
                max(numbers[0], sizes.context_length) * numbers[1] > most
            ):
                members.wrong(member, f"has {member} for more than {most} positions, or for none")


def _format(config: Mapping[str, Any], members: Members) -> str:
    """Number format of the weights: that of the quantization, else the dtype."""
    if dtype_of(config) not in DTYPES:
        members.wrong("dtype", f"has a dtype that is not {', '.join(sorted(DTYPES))}")
    quantization = config.get("quantization_config")
    if quantization is None:
        return dtype_of(config)
    why = _wrong_quantization(quantization)
    if why:
        members.wrong("quantization_config", why)
    return "w8a8-int8"


def _wrong_quantization(quantization: object) -> str:
    if (
        not isinstance(quantization, dict)
        or quantization.get("quant_method") != "compressed-tensors"
    ):
        return "has a quantization that is not compressed-tensors"
    groups = quantization.get("config_groups")
    found = list(groups.values()) if isinstance(groups, dict) else []
    group = found[0] if len(found) == 1 else None
    if not isinstance(group, dict):
        return "has a quantization without exactly one group"
    if _is_int8(group.get("weights")) and _is_int8(group.get("input_activations")):
        return ""
    return "has a quantization that is not 8-bit integers on both sides"


def _is_int8(arguments: object) -> bool:
    return (
        isinstance(arguments, dict)
        and arguments.get("num_bits") == 8
        and arguments.get("type") == "int"
    )


def count_parameters(config: ModelConfig, tensors: Mapping[str, Shape]) -> int:
    """Parameters in the weights, once the tensors are seen to be those of the configuration.

    Scales of quantized weights are not counted; a tied output projection is counted once.

    Args:
        config: checked.
        tensors: name -> shape, of all weight files.

    Raises:
        InvalidInput: a tensor is missing, unknown or of another shape; the message names some.
    """
    family, wanted = config.family, config.shapes
    if family.prefix and not any(name.startswith(family.prefix) for name in tensors):
        wanted = {name.removeprefix(family.prefix): shape for name, shape in wanted.items()}
    problems: list[str] = []
    for name, shape in wanted.items():
        found = tensors.get(name)
        if found is None:
            problems.append(f"{shown(name)} is missing")
        elif found != shape:
            problems.append(f"{shown(name)} has the shape {list(found)}, not {list(shape)}")
    for name in tensors:
        tied = config.sizes.tie_embeddings and name in family.tied_names
        scale = any(name.removesuffix(end) + ".weight" in wanted for end in _SCALES)
        if name not in wanted and not tied and not scale and not name.endswith(family.buffers):
            problems.append(f"{shown(name)} does not belong to this architecture")
    if problems:
        raise _misfit(problems)
    return sum(math.prod(shape) for shape in wanted.values())


_NAMED = 3
"""Tensors that a refusal names; the others are counted."""


def _misfit(problems: list[str]) -> InvalidInput:
    more = len(problems) - _NAMED
    why = "; ".join(problems[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
    return InvalidInput(
        f"The weights do not fit config.json: {why}. Import the files of one model, or load it "
        "with transformers and save it again.",
        fields={"model.safetensors": why},
    )
