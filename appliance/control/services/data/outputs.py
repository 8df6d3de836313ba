"""Facts of what a job made, read from its sealed files.

Called by `services.work.registration` before an output is registered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from appliance.control.services.data import model_facts
from appliance.core import artifact_kinds
from appliance.core.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_facts,
    check_adapter_config,
)
from appliance.core.errors import InvalidInput
from appliance.core.model_files import MAX_CONFIG
from appliance.core.report_content import check_report, check_sizes
from appliance.core.strict_json import read_object
from appliance.crypto.artifacts import ArtifactReader
from appliance.crypto.tensors import read_entries
from appliance.kinds.kind import SlotOutput

INDEX = "index.json"
REPORT = "report.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_MAX_COUNT = 1 << 62
_PART = re.compile(r"part-[0-9]{5}\.jsonl")
_PIECE = 1 << 20


def facts_of(kind: str, reader: ArtifactReader, outputs: Iterable[SlotOutput]) -> dict[str, Any]:
    """The facts of an output.

    Args:
        kind: artifact kind that it must be.
        reader: of the verified artifact.
        outputs: all that its job makes.

    Raises:
        InvalidInput: it is not what this slot holds.
    """
    match kind:
        case artifact_kinds.TEXT | artifact_kinds.PAIRS:
            return _lines(reader, kind)
        case artifact_kinds.MODEL:
            return model_facts.inspect(reader)
        case artifact_kinds.ADAPTER:
            return _adapter(reader)
        case artifact_kinds.TOKENS:
            names = (made.name for made in outputs if made.kind == artifact_kinds.TOKENIZER)
            return _tokens(reader, next(names, ""))
        case artifact_kinds.TOKENIZER:
            return _tokenizer(reader)
        case artifact_kinds.REPORT:
            return _report(reader)
    raise InvalidInput(f"this version cannot register a {kind}")


def _lines(reader: ArtifactReader, kind: str) -> dict[str, Any]:
    """Its lines are counted, one document or pair each; who reads them checks what they say."""
    if any(_PART.fullmatch(file) is None for file in reader.files()):
        raise InvalidInput(f"a version of {kind} has files part-00000.jsonl and so on, no others")
    documents = 0
    for file in reader.files():
        with reader.open(file) as raw:
            while piece := raw.read(_PIECE):
                documents += piece.count(b"\n")
    return {"kind": kind, "documents": documents, "tokens": 0}


def _adapter(reader: ArtifactReader) -> dict[str, Any]:
    _need(reader, ADAPTER_CONFIG, ADAPTER_WEIGHTS)
    if len(reader.files()) > len((ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        raise InvalidInput(f"an adapter has {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, no others")
    if reader.entry(ADAPTER_CONFIG).plain_size > MAX_CONFIG:
        raise InvalidInput(f"{ADAPTER_CONFIG} has more than {MAX_CONFIG} bytes")
    config = check_adapter_config(read_object(ADAPTER_CONFIG, reader.read_bytes(ADAPTER_CONFIG)))
    with reader.open(ADAPTER_WEIGHTS) as file:
        tensors = {entry.name: (entry.dtype, entry.shape) for entry in read_entries(file)}
    size = reader.entry(ADAPTER_WEIGHTS).plain_size
    return {"kind": artifact_kinds.ADAPTER} | adapter_facts(config, tensors, size)


def _tokens(reader: ArtifactReader, tokenizer: str) -> dict[str, Any]:
    _need(reader, INDEX, REPORT, TOKENIZER)
    index, report = _object(reader, INDEX), _object(reader, REPORT)
    tokens = index.get("tokens")
    if not isinstance(tokens, dict):
        raise InvalidInput(f"{INDEX} counts no tokens")
    return {
        "kind": artifact_kinds.TOKENS,
        "documents": _count(report, "kept", REPORT),
        "tokens": sum(_count(tokens, split, INDEX) for split in tokens),
        "vocabulary_size": _count(index, "vocabulary_size", INDEX),
        "tokenizer": tokenizer,
    }


def _tokenizer(reader: ArtifactReader) -> dict[str, Any]:
    _need(reader, TOKENIZER, TOKENIZER_CONFIG)
    tokenizer = _object(reader, TOKENIZER)
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens", [])
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    is_list = isinstance(added, list) and all(isinstance(token, dict) for token in added)
    if not isinstance(vocabulary, dict) or not is_list:
        raise InvalidInput(f"{TOKENIZER} has no vocabulary")
    words = set(vocabulary) | {str(token.get("content")) for token in added}
    return {"vocabulary_size": len(words)}


def _report(reader: ArtifactReader) -> dict[str, Any]:
    check_sizes({file: reader.entry(file).plain_size for file in reader.files()})
    content = check_report({file: reader.read_bytes(file) for file in reader.files()})
    return {
        "kind": artifact_kinds.REPORT,
        "title": content["title"],
        "pictures": len(reader.files()) - 1,
    }


def _need(reader: ArtifactReader, *files: str) -> None:
    for file in files:
        if file not in reader.files():
            raise InvalidInput(f"it has no {file}")


def _object(reader: ArtifactReader, file: str) -> dict[str, Any]:
    return read_object(file, reader.read_bytes(file))


def _count(value: dict[str, Any], member: str, file: str) -> int:
    # JSON of a protobuf message writes 64-bit numbers as text, and leaves zero out.
    number = value.get(member, 0)
    try:
        count = int(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{file} has no number {member}") from error
    if not 0 <= count <= _MAX_COUNT:
        raise InvalidInput(f"{file} has an impossible {member}")
    return count
