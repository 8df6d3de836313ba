"""Which files a model may bring, and what may stand in those that are not weights. Pure.

A model from outside is input of an attacker. Only formats that cannot hold code are taken
(safetensors, JSON, text), each under a name of its own. Of everything else is said at once what it
is: left out, because nobody needs it here, or refused, with what to do.

The attack: a pickle (`pytorch_model.bin`, or renamed), a Python file, the same JSON key twice so
that two readers see two documents, a token that the embedding has no row for.

Called by the command before an import begins, by the control plane before a byte is sent, while
files come in and when it registers what a job made, and by a worker before it starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.core import model_config
from appliance.core.errors import InvalidInput
from appliance.core.model_config import CONFIG, ModelConfig
from appliance.core.names import shown
from appliance.core.numbers import written
from appliance.core.strict_json import read_object
from appliance.core.token_ids import CONFIGS, TOKENIZER, token_ids
from appliance.core.tokenizers import MAX_TEMPLATE, MAX_TOKENIZER

INDEX = "model.safetensors.index.json"
"""Says which of several weight files holds which tensor."""
MAX_JSON = 64 << 20
MAX_CONFIG = 1 << 20
_LARGEST = dict.fromkeys(CONFIGS, MAX_CONFIG) | {
    TOKENIZER: MAX_TOKENIZER,
    "chat_template.jinja": MAX_TEMPLATE,
}

_JSON = CONFIGS | {
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    INDEX,
}
_TEXT = frozenset({"merges.txt", "chat_template.jinja"})
_KEPT = _JSON | _TEXT
_WEIGHTS = re.compile(r"model(-[0-9]{5}-of-[0-9]{5})?\.safetensors")
_PLAIN = re.compile(r"[^/\\.\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*")
_COPY = re.compile(r"consolidated.*\.safetensors")
"""Mistral's own names for the weights that lie beside as `model*.safetensors`."""

_PICKLED = frozenset({"bin", "ckpt", "h5", "ot", "pt", "pth"})
_OTHER_WEIGHTS = _PICKLED | {"gguf", "msgpack", "onnx", "tflite"}
_CODE = frozenset(
    {"dll", "exe", "gz", "jar", "npy", "npz", "pickle", "pkl", "py", "pyc", "sh", "so", "tar"}
    | {"tgz", "whl", "zip"}
)
_UNREAD = re.compile(
    r"(?i)(licen[cs]e|notice|copying|copyright|readme|use_policy|tokenizer\.model)([-_.].*)?"
)
_HARMLESS = frozenset(
    {"bib", "cff", "csv", "gif", "gitattributes", "html", "ipynb", "jpeg", "jpg", "json", "jsonl"}
    | {"log", "md", "model", "pdf", "png", "rst", "spm", "svg", "tiktoken", "tsv", "txt", "webp"}
    | {"yaml", "yml"}
)
"""Endings of what people and other programs read, and nobody here."""
_MOVE = "Move it out of the folder"
_CONVERT = (
    "There are no model*.safetensors: load the model with transformers and save it again "
    "(`save_pretrained`), then import that folder"
)
_MAKE_TOKENIZER = (
    "is missing; `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)` of transformers "
    "writes it"
)


@dataclass(frozen=True)
class Sorted:
    """What becomes of the files of a folder.

    Attributes:
        kept: names of those that are taken, in their order.
        left_out: name -> why it is not needed.
        problems: name -> why it is refused, or what is missing; to follow the name.
    """

    kept: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Verdict:
    """Why a file is not kept, and whether that is a reason to refuse the whole."""

    why: str
    refused: bool


def is_weights(file: str) -> bool:
    """Whether a file of a model holds weights, by its name."""
    return _WEIGHTS.fullmatch(file) is not None


def sort_files(files: Iterable[str]) -> Sorted:
    """What becomes of each file, and whether what a model needs is among them."""
    names = list(files)
    found, beside = Sorted(), any(map(is_weights, names))
    for name in names:
        verdict = _judge(name, beside=beside)
        if verdict is None:
            found.kept.append(name)
        elif verdict.refused:
            found.problems[shown(name)] = f"is refused: {verdict.why}"
        else:
            found.left_out[name] = verdict.why
    missing = _missing(set(found.kept))
    if any(_CONVERT in why for why in found.problems.values()):
        # What to do about weights in another format says it already.
        missing.pop("model.safetensors", None)
    found.problems.update(missing)
    return found


def _judge(name: str, *, beside: bool) -> _Verdict | None:
    """None for a file that is kept; `beside`: there are weights in a format that is taken."""
    if name in _KEPT or is_weights(name):
        return None
    ending = name.rpartition(".")[2].lower()
    other = ending in _OTHER_WEIGHTS or _COPY.fullmatch(name)
    if other and beside:
        return _Verdict("weights in another format", refused=False)
    if other:
        danger = f".{ending} files can hold code. " if ending in _PICKLED else ""
        return _Verdict(danger + _CONVERT, refused=True)
    why = _why_refused(name, ending)
    return _Verdict(why, refused=True) if why else _Verdict("nobody here reads it", refused=False)


def _why_refused(name: str, ending: str) -> str:
    """Why a file is refused whatever lies beside it; "" when it is not."""
    taken = ", ".join(sorted(_KEPT))
    meant = name.lower()
    harmless = ending in _HARMLESS or _UNREAD.fullmatch(name) is not None
    rules = (
        (
            ending in _CODE,
            f".{ending} files can hold code. {_MOVE}: no code is taken, and none is needed",
        ),
        (name == ".gitattributes", ""),
        (not _PLAIN.fullmatch(name), f"it is no plain name of a file. {_MOVE}"),
        (meant in _KEPT or is_weights(meant), f"it is {meant}, spelled otherwise. Rename the file"),
        (name.startswith("adapter_"), "it is of an adapter. Merge that into its model first"),
        (
            ending == "safetensors",
            "weights are called model.safetensors, or model-00001-of-00002.safetensors and so on",
        ),
        (not harmless, f"a model brings {taken} and model*.safetensors. {_MOVE}"),
    )
    return next((why for holds, why in rules if holds), "")


def _missing(names: set[str]) -> dict[str, str]:
    """What a model needs and does not have."""
    problems: dict[str, str] = {}
    weights = sorted(filter(is_weights, names))
    if CONFIG not in names:
        problems[CONFIG] = "is missing; add it to the folder, then import again"
    if TOKENIZER not in names:
        problems[TOKENIZER] = _MAKE_TOKENIZER
    if not weights:
        problems["model.safetensors"] = "is missing; a model without weights cannot be served"
    if len(weights) > 1 and INDEX not in names:
        problems[INDEX] = "is missing beside several weight files"
    if len(weights) > 1 and "model.safetensors" in weights:
        problems["model.safetensors"] = "stands beside numbered weight files; keep one kind"
    return problems


def raise_any(problems: Mapping[str, str]) -> None:
    """Raise InvalidInput that names all of them: file -> what is wrong, to follow its name."""
    if problems:
        sentences = (f"{name} {why}." for name, why in problems.items())
        raise InvalidInput(" ".join(sentences), fields=dict(problems))


def check_name(file: str) -> bool:
    """Whether to keep a file; False for what is read past. Raises InvalidInput for all else.

    For a file of which the others are not known: weights in other formats are refused.
    """
    verdict = _judge(file, beside=False)
    if verdict is not None and verdict.refused:
        raise_any({shown(file): f"is refused: {verdict.why}"})
    return verdict is None


def check_complete(files: Iterable[str]) -> None:
    """Raise InvalidInput naming each file that a model needs and does not have."""
    raise_any(_missing(set(files)))


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
    if file not in {TOKENIZER, "vocab.json", "added_tokens.json"}:
        model_config.check_members(file, value, paths=file in CONFIGS)
    if file == "tokenizer_config.json":
        _check_templates(file, value.get("chat_template"))
    return max(token_ids(file, value), default=-1)


def _check_templates(file: str, found: object) -> None:
    """No chat template that a gateway would not take; there may be several, each with a name."""
    named = found if isinstance(found, list) else [{"template": found}]
    for template in (each.get("template") for each in named if isinstance(each, dict)):
        if isinstance(template, str) and len(template.encode(errors="replace")) > MAX_TEMPLATE:
            raise _wrong(
                file,
                f"has a chat template of more than {written(MAX_TEMPLATE)} bytes, so no gateway"
                " could serve the model: make it shorter, then import again",
            )


def check_ids(config: ModelConfig, highest: Mapping[str, int]) -> None:
    """Raise InvalidInput for tokens that the embedding has no row for.

    Args:
        config: checked.
        highest: token id by file, as `check_file` returns it.
    """
    rows = config.sizes.vocabulary_size
    raise_any(
        {
            file: f"has the token id {found}, but the model's embedding has {rows} rows; take both "
            "from the same model"
            for file, found in highest.items()
            if found >= rows
        }
    )


def check_index(index: Mapping[str, Any], files: Mapping[str, Iterable[str]]) -> None:
    """Raise InvalidInput unless `model.safetensors.index.json` says which file holds which tensor.

    Args:
        index: the parsed index.
        files: names of tensors by file.
    """
    found = {name: file for file, tensors in files.items() for name in tensors}
    if index.get("weight_map") != found:
        raise _wrong(
            INDEX, "does not say exactly which file holds which tensor; save the model again"
        )


def largest(file: str) -> int:
    """Most bytes that a file other than weights may have."""
    return _LARGEST.get(file, MAX_JSON)


def _wrong(file: str, why: str) -> InvalidInput:
    return InvalidInput(f"{file} {why}.", fields={file: why})
