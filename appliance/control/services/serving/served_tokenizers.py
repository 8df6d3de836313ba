"""The tokenizer in a served model, and what it takes to make prompts and to know the end.

Rules kept here:
* it is read from the object store and sent piece by piece, so its size costs neither memory here
  nor a message that is too large;
* one that a gateway holds already is not sent again;
* the gateway can tell whether all of it arrived: sizes come first, a digest last.

Blocking: reads the object store. Called by `services.serving.routing`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Generator, Iterator
from typing import Any

from appliance.api.serving.v1 import routing_service_pb2 as rpc
from appliance.core.errors import FailedPrecondition, Tampered
from appliance.crypto.artifacts import ArtifactReader

PIECE_BYTES = 256 << 10
ONE_MESSAGE_BYTES = 15 << 20
"""Of a tokenizer and its template together; a gRPC message of ours has 16 MiB at most."""
_TOKENIZER = "tokenizer.json"


def whole(reader: ArtifactReader) -> rpc.ServedTokenizer:
    """All of it. Raises FailedPrecondition when one message cannot hold it."""
    found = _without_tokenizer(reader)
    size = reader.entry(_TOKENIZER).plain_size + len(found.chat_template.encode())
    if size > ONE_MESSAGE_BYTES:
        raise FailedPrecondition(
            f"the tokenizer of {reader.object} has {size} bytes with its chat template, more than"
            f" the {ONE_MESSAGE_BYTES} of one message: a gateway of this version reads it in pieces"
        )
    found.tokenizer_json = reader.read_bytes(_TOKENIZER)
    return found


def parts(reader: ArtifactReader, held: Collection[str]) -> Generator[rpc.ServedTokenizerPart]:
    """The pieces, each read when it is asked for.

    Args:
        reader: of the model.
        held: contents that the gateway has; of these only the first part is given.
    """
    found = _without_tokenizer(reader)
    template = found.chat_template.encode()
    found.ClearField("chat_template")
    yield rpc.ServedTokenizerPart(
        tokenizer=found,
        content=reader.digest,
        tokenizer_json_size=reader.entry(_TOKENIZER).plain_size,
        chat_template_size=len(template),
    )
    if reader.digest in held:
        return
    digest = hashlib.sha256()
    with reader.open(_TOKENIZER) as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            yield rpc.ServedTokenizerPart(data=piece)
    for start in range(0, len(template), PIECE_BYTES):
        piece = template[start : start + PIECE_BYTES]
        digest.update(piece)
        yield rpc.ServedTokenizerPart(data=piece)
    yield rpc.ServedTokenizerPart(digest=digest.digest())


def _without_tokenizer(reader: ArtifactReader) -> rpc.ServedTokenizer:
    """Everything but the `tokenizer.json` itself."""
    files = set(reader.files())
    settings = _object(reader, "tokenizer_config.json", files)
    template = settings.get("chat_template", "")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default", "")
    # A file of its own is the newer place, and counts before the older one, as in transformers.
    if "chat_template.jinja" in files:
        template = reader.read_bytes("chat_template.jinja").decode()
    ends: set[int] = set()
    for file in ("generation_config.json", "config.json"):
        value = _object(reader, file, files).get("eos_token_id")
        ends.update(_ids(value))
    return rpc.ServedTokenizer(
        chat_template=template if isinstance(template, str) else "",
        end_token_ids=sorted(ends),
        bos_token=_token(settings.get("bos_token")),
        eos_token=_token(settings.get("eos_token")),
    )


def _object(reader: ArtifactReader, file: str, files: set[str]) -> dict[str, Any]:
    if file not in files:
        return {}
    try:
        value = reader.read_json(file)
    except json.JSONDecodeError as error:
        raise Tampered(f"{file} of {reader.object} is not JSON", object=reader.object) from error
    return value if isinstance(value, dict) else {}


def _ids(value: object) -> Iterator[int]:
    """Token ids in a value that is one, a list of them, or something else."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 32:
            yield item


def _token(value: object) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
