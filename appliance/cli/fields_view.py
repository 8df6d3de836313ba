"""One resource as lines for people: a label and a value each, aligned; what is nested is indented.

The words of the proto become labels: `create_time` is `Create time`, with the time and how long
ago that is; `size_bytes` is `Size`; a list of messages is a small table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.cli import moments
from appliance.cli.output import in_bytes, safe, table_lines, text_of

Value = Any  # JSON of any shape
_SPELLED = {word: word.upper() for word in ("id", "uid", "ca", "url", "mfa", "totp")}
_SPELLED["openai"] = "OpenAI"
_INDENT = "  "


def lines(value: dict[str, Value], indent: str = "") -> Iterator[str]:
    """The lines of a resource; what is empty is left out."""
    shown = {key: entry for key, entry in value.items() if entry not in ("", [], {}, None)}
    labels = {key: f"{label(key)}:" for key in shown}
    flat = [labels[key] for key, entry in shown.items() if not _is_nested(entry)]
    room = max(map(len, flat), default=0)
    for key, entry in shown.items():
        if not _is_nested(entry):
            yield f"{indent}{labels[key].ljust(room)} {safe(text(key, entry))}"
            continue
        yield f"{indent}{labels[key]}"
        inside = lines(entry, indent + _INDENT) if isinstance(entry, dict) else rows(entry, indent)
        yield from inside


def rows(found: list[dict[str, Value]], indent: str = "") -> Iterator[str]:
    """A list of messages as a small table: columns in which something stands."""
    keys = list(dict.fromkeys(key for row in found for key in row))
    used = [key for key in keys if any(row.get(key) not in ("", [], {}, None) for row in found)]
    cells = [[label(key).upper() for key in used]]
    cells += [[safe(cell(key, row.get(key))) for key in used] for row in found]
    for line in table_lines(cells):
        yield indent + _INDENT + line


def label(key: str) -> str:
    """What a field is called: `Create time`, `Size`."""
    short = key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")
    text = " ".join(_SPELLED.get(word, word) for word in short.split(" "))
    return text[:1].upper() + text[1:]


def text(key: str, value: Value) -> str:
    """The value of a field in a line of its own."""
    if key.endswith("_time") and isinstance(value, str):
        return f"{moments.clock(value)} ({moments.ago(value)})"
    return cell(key, value)


def cell(key: str, value: Value) -> str:
    """The value of a field in a table."""
    if value is None:
        return ""
    if key.endswith("_time") and isinstance(value, str):
        return moments.ago(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if key.endswith("_bytes"):
            return in_bytes(int(value))
        if key.endswith("_seconds"):
            return moments.duration(value)
    return text_of(value)


def _is_nested(value: Value) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    )
