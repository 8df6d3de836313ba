"""What protobuf's JSON of a resource leaves to wish for: order, numbers, enums in words."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

Value = Any  # JSON of any shape, or a descriptor, which has no one type
_TEXT_NUMBERS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
MAX_DEPTH = 3
"""Messages within messages whose fields can be named."""


def tidy(found: dict[str, Value], descriptor: Any, *, words: bool) -> dict[str, Value]:
    """A message that protobuf has made a dictionary of, as people and programs expect it.

    Args:
        found: the dictionary: set fields first, 64-bit numbers as text.
        descriptor: of the message.
        words: whether enums lose the prefix that their proto must give them.
    """
    return {
        field.name: _value(found[field.name], field, words=words)
        for field in descriptor.fields
        if field.name in found
    }


def _value(value: Value, field: FieldDescriptor, *, words: bool) -> Value:
    inside = field.message_type
    if inside is not None and inside.GetOptions().map_entry:
        member = inside.fields_by_name["value"]
        return {key: _value(each, member, words=words) for key, each in value.items()}
    if isinstance(value, list):
        return [_one(each, field, words=words) for each in value]
    return _one(value, field, words=words)


def _one(value: Value, field: FieldDescriptor, *, words: bool) -> Value:
    if isinstance(value, dict) and field.message_type is not None:
        return tidy(value, field.message_type, words=words)
    if field.cpp_type in _TEXT_NUMBERS:
        return int(value)
    if words and field.enum_type is not None:
        return str(value).removeprefix(prefix_of(field.enum_type.name))
    return value


def prefix_of(enum: str) -> str:
    """What the values of an enum begin with: `STATE_` of State."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum).upper() + "_"


def paths_of(descriptor: Any, depth: int = MAX_DEPTH) -> list[str]:
    """Every field of a message as it stands in JSON, `progress.step`; `metrics.*` of a map."""
    found = []
    for field in descriptor.fields:
        found.append(field.name)
        inside = field.message_type
        if inside is None or inside.file.package == "google.protobuf" or depth == 1:
            continue
        if inside.GetOptions().map_entry:
            found.append(f"{field.name}.*")
        else:
            found += [f"{field.name}.{path}" for path in paths_of(inside, depth - 1)]
    return found
