"""Which files a model may bring, and what its configuration may say. Pure.

A model from outside is input of an attacker. Only formats that cannot hold code are taken
(safetensors, JSON, text), each under a name of its own; everything else is refused by its name
before a byte of it is kept. A configuration must describe an architecture of `ARCHITECTURES` and
nothing that makes a library fetch or run something.

The attack: a pickle (`pytorch_model.bin`, or renamed), `auto_map` with a Python file beside it,
`trust_remote_code`, a path or an address where a library would look, numbers chosen to exhaust
memory, and the same JSON key twice so that two readers see two documents.

Called by `services.models` while files come in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from appliance.core.errors import InvalidInput
from appliance.core.names import shown
from appliance.core.numbers import written
from appliance.core.strict_json import read_object
from appliance.core.tokenizers import LARGEST_TEMPLATE, LARGEST_TOKENIZER
from appliance.crypto.tensors import INDEX, is_weights

LARGEST_JSON = 64 << 20
LARGEST_CONFIG = 1 << 20
_LARGEST = {
    "tokenizer.json": LARGEST_TOKENIZER,
    "chat_template.jinja": LARGEST_TEMPLATE,
    "config.json": LARGEST_CONFIG,
    "generation_config.json": LARGEST_CONFIG,
}
_MOST_DIGITS = 18
"""Of a token id that is written as a text."""

_CONFIGS = frozenset({"config.json", "generation_config.json"})
_JSON = _CONFIGS | {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    INDEX,
}
_TEXT = frozenset({"merges.txt", "chat_template.jinja"})
IGNORED = frozenset({"LICENSE", "LICENSE.txt", "README.md", "NOTICE", ".gitattributes"})
"""Files that models carry for people; they are read past and not kept."""

REQUIRED = ("config.json", "tokenizer.json")
_CODE_ENDINGS = frozenset(
    {"bin", "ckpt", "gz", "h5", "msgpack", "npy", "npz", "onnx", "pickle", "pkl", "pt", "pth"}
    | {"py", "pyc", "so", "tar", "tgz", "zip"}
)
_FORBIDDEN = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "custom_generate"})
_ELSEWHERE = re.compile(r"^(/|~|\\|[A-Za-z]:\\)|(^|/)\.\.(/|$)|[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Architecture:
    """A model class that the trainer, the quantizer and the workers know; its `model_type`."""

    model_type: str


ARCHITECTURES: dict[str, Architecture] = {"LlamaForCausalLM": Architecture("llama")}

_SIZES: dict[str, tuple[int, int]] = {
    "hidden_size": (1, 1 << 16),
    "intermediate_size": (1, 1 << 18),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "vocab_size": (1, 1 << 21),
    "max_position_embeddings": (1, 1 << 24),
    "head_dim": (1, 1 << 12),
}


@dataclass(frozen=True)
class ModelConfig:
    """What a checked `config.json` says; sizes as in Hugging Face's Llama configuration."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    layers: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocabulary_size: int
    context_length: int
    tie_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    format: str


def check_name(file: str) -> bool:
    """Whether to keep a file; False for what is read past. Raises InvalidInput for all else."""
    if file in IGNORED:
        return False
    if file in _JSON or file in _TEXT or is_weights(file):
        return True
    ending = file.rpartition(".")[2].lower()
    if ending in _CODE_ENDINGS:
        why = (
            f"{shown(file)} is refused: .{ending} files can hold code. "
            "Convert the weights to safetensors and leave the file out"
        )
    else:
        why = (
            f"{shown(file)} is refused: a model brings {', '.join(sorted(_JSON | _TEXT))} and "
            "model*.safetensors, nothing else. Leave the file out"
        )
    raise InvalidInput(f"{why}.", fields={"file": why})


def check_complete(files: Iterable[str]) -> None:
    """Raise InvalidInput when a file that every model needs is missing."""
    present = set(files)
    for name in REQUIRED:
        if name not in present:
            raise _wrong(name, "is missing; add it to the folder, then import again")
    weights = sorted(name for name in present if is_weights(name))
    if not weights:
        raise _wrong("model.safetensors", "is missing; a model without weights cannot be served")
    if len(weights) > 1 and INDEX not in present:
        raise _wrong(INDEX, "is missing beside several weight files")
    if len(weights) > 1 and "model.safetensors" in weights:
        raise _wrong("model.safetensors", "stands beside numbered weight files; keep one kind")


def check_file(file: str, data: bytes) -> int:
    """Check the content of a file that is not weights; return its highest token id, or -1.

    Raises InvalidInput naming the file.
    """
    if file in _TEXT:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise _wrong(file, "is not UTF-8 text") from error
        return -1
    value = read_object(file, data)
    # The keys of the others are words of a vocabulary.
    if file not in {"tokenizer.json", "vocab.json", "added_tokens.json"}:
        _check_members(file, value, paths=file in _CONFIGS)
    if file == "tokenizer_config.json":
        _check_templates(file, value.get("chat_template"))
    return max(_ids(file, value), default=-1)


def check_ids(config: ModelConfig, highest: Mapping[str, int]) -> None:
    """Raise InvalidInput for a token that the embedding has no row for.

    Args:
        config: checked.
        highest: token id by file, as `check_file` returns it.
    """
    for file, found in highest.items():
        if found >= config.vocabulary_size:
            raise _wrong(
                file,
                f"has the token id {found}, but the model's embedding has "
                f"{config.vocabulary_size} rows; take both from the same model",
            )


# Members of a configuration whose numbers are token ids, beside those named *_token_id.
_TOKENS = frozenset(
    {"bad_words_ids", "begin_suppress_tokens", "force_words_ids", "forced_decoder_ids"}
    | {"sequence_bias", "suppress_tokens"}
)


def _ids(file: str, value: Mapping[str, Any]) -> Iterator[int]:
    """The token ids that a file names."""
    if file in _CONFIGS:
        for key, found in value.items():
            if key.endswith("_token_id") or key in _TOKENS:
                yield from _numbers(found)
    elif file in {"vocab.json", "added_tokens.json"}:
        yield from filter(_whole, value.values())
    elif file == "tokenizer_config.json":
        added = value.get("added_tokens_decoder")
        if isinstance(added, dict):
            yield from (int(key) for key in added if key.isdecimal() and len(key) <= _MOST_DIGITS)
    elif file == "tokenizer.json":
        yield from _of_tokenizer(value)


def _of_tokenizer(value: Mapping[str, Any]) -> Iterator[int]:
    model, added = value.get("model"), value.get("added_tokens")
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, dict):
        yield from filter(_whole, words.values())
    elif isinstance(words, list):
        yield len(words) - 1
    if isinstance(added, list):
        yield from (n for t in added if isinstance(t, dict) and _whole(n := t.get("id")))
    yield from _processed(value.get("post_processor"))


def _processed(processor: object) -> Iterator[int]:
    """Ids of the tokens that a post-processor puts around a text, whichever kind it is."""
    waiting = [processor]
    while waiting:
        item = waiting.pop()
        if not isinstance(item, dict):
            continue
        processors, tokens = item.get("processors"), item.get("special_tokens")
        waiting.extend(processors if isinstance(processors, list) else ())
        for token in tokens.values() if isinstance(tokens, dict) else ():
            yield from _numbers(token.get("ids") if isinstance(token, dict) else None)
        yield from _numbers([item.get("sep"), item.get("cls")])


def _numbers(value: object) -> Iterator[int]:
    """Whole numbers in lists within lists."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if _whole(item):
            yield item
        elif isinstance(item, list):
            waiting.extend(item)


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def largest(file: str) -> int:
    """Most bytes that a file other than weights may have."""
    return _LARGEST.get(file, LARGEST_JSON)


def _check_members(file: str, value: object, *, paths: bool) -> None:
    """No member that runs or fetches code; with `paths`, no text that points out of the model."""
    waiting: list[tuple[str, object]] = [("", value)]
    while waiting:
        where, item = waiting.pop()
        if isinstance(item, dict):
            for key, member in item.items():
                if key in _FORBIDDEN:
                    raise _wrong(
                        file,
                        f"names code to run ({shown(key)}). Models bring no code here: use a model "
                        "whose architecture is built in",
                    )
                waiting.append((key, member))
        elif isinstance(item, list):
            waiting.extend((where, member) for member in item)
        elif paths and isinstance(item, str) and _ELSEWHERE.search(item):
            raise _wrong(file, f"points outside the model in {shown(where)}; remove that member")


def _check_templates(file: str, found: object) -> None:
    """No chat template that a gateway would not take; there may be several, each with a name."""
    named = found if isinstance(found, list) else [{"template": found}]
    for template in (each.get("template") for each in named if isinstance(each, dict)):
        if isinstance(template, str) and len(template.encode(errors="replace")) > LARGEST_TEMPLATE:
            raise _wrong(
                file,
                f"has a chat template of more than {written(LARGEST_TEMPLATE)} bytes, so no gateway"
                " could serve the model: make it shorter, then import again",
            )


def check_config(config: dict[str, Any]) -> ModelConfig:
    """Read `config.json`; InvalidInput names the first member that is not acceptable."""
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise _wrong("config.json", "does not name exactly one architecture")
    name = architectures[0]
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise _wrong(
            "config.json",
            f"has the architecture {shown(str(name))}; built in are "
            f"{', '.join(sorted(ARCHITECTURES))}",
        )
    if config.get("model_type") != ARCHITECTURES[name].model_type:
        raise _wrong("config.json", f"has a model_type that is not {name}'s")
    size = {member: _size(config, member) for member in _SIZES if config.get(member) is not None}
    for member in _SIZES:
        if member not in size and member not in {"num_key_value_heads", "head_dim"}:
            raise _wrong("config.json", f"has no {member}")
    heads = size["num_attention_heads"]
    key_value_heads = size.get("num_key_value_heads", heads)
    if heads % key_value_heads:
        raise _wrong("config.json", "has attention heads that its key and value heads do not share")
    if "head_dim" not in size and size["hidden_size"] % heads:
        raise _wrong("config.json", "has a hidden_size that its attention heads do not share")
    return ModelConfig(
        architecture=name,
        hidden_size=size["hidden_size"],
        intermediate_size=size["intermediate_size"],
        layers=size["num_hidden_layers"],
        attention_heads=heads,
        key_value_heads=key_value_heads,
        head_dim=size.get("head_dim", size["hidden_size"] // heads),
        vocabulary_size=size["vocab_size"],
        context_length=size["max_position_embeddings"],
        tie_embeddings=_flag(config, "tie_word_embeddings"),
        attention_bias=_flag(config, "attention_bias"),
        mlp_bias=_flag(config, "mlp_bias"),
        format=_format(config),
    )


def _size(config: dict[str, Any], member: str) -> int:
    value, (low, high) = config[member], _SIZES[member]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong("config.json", f"has {member} outside {low} to {high}")
    return value


def _flag(config: dict[str, Any], member: str) -> bool:
    value = config.get(member, False)
    if not isinstance(value, bool):
        raise _wrong("config.json", f"has a {member} that is neither true nor false")
    return value


def _format(config: dict[str, Any]) -> str:
    """Number format of the weights: that of the quantization, else the dtype."""
    quantization = config.get("quantization_config")
    if quantization is None:
        dtype = config.get("dtype", config.get("torch_dtype", "float32"))
        if dtype not in {"bfloat16", "float16", "float32"}:
            raise _wrong("config.json", "has a dtype that is not bfloat16, float16 or float32")
        return str(dtype)
    if (
        not isinstance(quantization, dict)
        or quantization.get("quant_method") != "compressed-tensors"
    ):
        raise _wrong("config.json", "has a quantization that is not compressed-tensors")
    groups = quantization.get("config_groups")
    found = list(groups.values()) if isinstance(groups, dict) else []
    group = found[0] if len(found) == 1 else None
    if not isinstance(group, dict):
        raise _wrong("config.json", "has a quantization without exactly one group")
    weights, inputs = group.get("weights"), group.get("input_activations")
    if _is_int8(weights) and _is_int8(inputs):
        return "w8a8-int8"
    raise _wrong("config.json", "has a quantization that is not 8-bit integers on both sides")


def _is_int8(arguments: object) -> bool:
    return (
        isinstance(arguments, dict)
        and arguments.get("num_bits") == 8
        and arguments.get("type") == "int"
    )


def _wrong(file: str, why: str) -> InvalidInput:
    return InvalidInput(f"{file} {why}.", fields={file: why})
