"""JSON of strangers, read in the one way that every reader reads it.

Rules kept here:
* the bytes are UTF-8, a key stands once in its object, numbers are numbers, nesting is bounded;
* every text, keys too, is text: half of a surrogate pair is none (RFC 8259, section 8.2), and
  whoever encodes it later fails in a place where nobody expects it;
* what is refused is named by its path in the document.

The attack: a document in which a key stands twice, so that the reader that checks sees another
value than the reader that acts; `NaN`, which some readers take and no comparison catches; nesting
so deep that a reader ends; an escape for half a character that ends the call as a fault of ours.

Pure. Called where JSON comes in: files of models (`appliance.core.model_files`,
`appliance.crypto.tensors`), requests (`appliance.gateway.openai_request`), documents.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from appliance.core.errors import InvalidInput

MAX_DEPTH = 64
"""Objects and lists within each other; JSON that people and programs write has a dozen at most."""
MAX_DIGITS = 1000
MAX_KEY_IN_PATH = 40
_TOO_DEEP = f"is nested more than {MAX_DEPTH} deep"

# Only an escape can bring half a pair into text that was decoded strictly.
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def read_object(file: str, data: bytes) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        file: what to call it in messages.
        data: its bytes, as many as the caller has bounded them to.

    Raises:
        InvalidInput: broken JSON, a key twice, NaN, deep nesting, text that is none, or no object
            at the top; names the file, and the place of a text.
    """
    value = read_value(file, data)
    if not isinstance(value, dict):
        raise _wrong(file, "is not a JSON object")
    return value


def read_value(file: str, data: bytes | str) -> Any:  # noqa: ANN401 - JSON of any shape
    """Any value in JSON, of bytes or of text. Raises InvalidInput as `read_object` does."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise _wrong(file, "has the same key twice")
        return value

    def number(text: str) -> float:
        raise _wrong(file, f"has {text} where a number belongs")

    def whole(text: str) -> int:
        if len(text) > MAX_DIGITS:
            raise _wrong(file, f"has a number of {len(text)} digits, {MAX_DIGITS} are allowed")
        return int(text)

    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=once, parse_constant=number, parse_int=whole)
    except RecursionError as error:
        raise _wrong(file, _TOO_DEEP) from error
    except json.JSONDecodeError as error:
        raise _wrong(file, f"is not JSON: see {_place(error)}") from error
    except ValueError as error:
        raise _wrong(file, "is not JSON") from error
    _check(file, value, look_at_texts=_HALF_PAIR.search(text) is not None)
    return value


def _check(file: str, value: object, *, look_at_texts: bool) -> None:
    """Raise InvalidInput for nesting that is too deep and for half of a surrogate pair."""
    # Not by recursion: what is too deep must not end the one who finds it.
    waiting: list[tuple[object, str, int]] = [(value, "", 0)]
    while waiting:
        value, path, depth = waiting.pop()
        if isinstance(value, str):
            if not is_text(value):
                raise InvalidInput(
                    f"{file} has half of a surrogate pair at {path or 'the top'}: "
                    "write whole characters.",
                    fields={path or file: "has half of a surrogate pair"},
                )
            continue
        if depth >= MAX_DEPTH:
            raise _wrong(file, _TOO_DEEP)
        for member, name in _members(value, path):
            if isinstance(member, (dict, list)) or (look_at_texts and isinstance(member, str)):
                waiting.append((member, name, depth + 1))
        if look_at_texts and isinstance(value, dict):
            waiting.extend((key, f"a key of {path or 'the top'}", depth + 1) for key in value)


def _members(value: object, path: str) -> Iterator[tuple[object, str]]:
    """What is in an object or a list, each with its path."""
    if isinstance(value, dict):
        dot = "." if path else ""
        for key, member in value.items():
            yield member, f"{path}{dot}{plain(key)}"
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield member, f"{path}[{index}]"


def plain(key: str) -> str:
    """A key as it may stand in a path: printable, short, without quotes."""
    short = key if len(key) <= MAX_KEY_IN_PATH else key[:MAX_KEY_IN_PATH] + "..."
    return ascii(short)[1:-1]


def _place(error: json.JSONDecodeError) -> str:
    """Where a reader stopped; the only line of a text has no number."""
    column = f"column {error.colno}"
    return f"line {error.lineno}, {column}" if "\n" in error.doc.strip() else column


def is_text(text: str) -> bool:
    """Whether a text has an encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(file: str, why: str) -> InvalidInput:
    return InvalidInput(f"{file} {why}.", fields={file: why})
