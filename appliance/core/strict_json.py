"""JSON of strangers, read in the one way that every reader reads it.

The attack: a document in which a key stands twice, so that the reader that checks sees another
value than the reader that acts; `NaN`, which some readers take and no comparison catches; nesting
so deep that the parser ends the process.

Pure. Called where files of models come in (`appliance.control.services.model_files`,
`appliance.crypto.tensors`).
"""

from __future__ import annotations

import json
from typing import Any

from appliance.core.errors import InvalidInput


def read_object(file: str, data: bytes) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        file: what to call it in messages.
        data: its bytes, as many as the caller has bounded them to.

    Raises:
        InvalidInput: broken JSON, a key twice, NaN, deep nesting, or no object at the top; names
            the file.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise _wrong(file, "has the same key twice")
        return value

    def number(text: str) -> float:
        raise _wrong(file, f"has {text} where a number belongs")

    try:
        value = json.loads(data, object_pairs_hook=once, parse_constant=number)
    except (ValueError, RecursionError) as error:
        raise _wrong(file, "is not JSON") from error
    if not isinstance(value, dict):
        raise _wrong(file, "is not a JSON object")
    return value


def _wrong(file: str, why: str) -> InvalidInput:
    return InvalidInput(f"{file} {why}.", fields={file: why})
