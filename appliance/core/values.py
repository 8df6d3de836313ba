"""What a field of a request holds when it is not set, and what it may hold: read from its proto.

The option `(appliance.api.common.v1.value)` beside a field says it, and nothing else does. Rules
kept here:
* a zero that was asked for is a zero: a default stands for a field that was left out, and `x or
  default` cannot tell the two;
* a default that depends on other fields has one function, of the kind of job that has the field.

Pure: messages and their descriptors in, values out. Called by the control plane when it accepts,
by ranks, by the help of the command, and by the test of the documentation's tables.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from appliance.core.numbers import span

if TYPE_CHECKING:
    from google.protobuf.message import Message

Field = Any
"""A FieldDescriptor, of whichever implementation of protobuf is there."""

OPTION = "appliance.api.common.v1.value"


class Value(Protocol):
    """The option: see `proto/appliance/api/common/v1/value.proto`."""

    default: float
    least: float
    most: float
    words: Sequence[str]
    help: str
    required: bool
    otherwise: str
    names: str

    def HasField(self, field_name: str, /) -> bool:  # noqa: N802 - protobuf names it
        """Whether the option says it."""


def value_of(field: Field) -> Value | None:
    """What the proto says about a field's value; None when it says nothing."""
    for option, value in field.GetOptions().ListFields():
        if option.full_name == OPTION:
            return cast("Value", value)
    return None


def default_of(field: Field) -> float | None:
    """The number that a field is when it is not set; None when the proto has none."""
    value = value_of(field)
    if value is None or not value.HasField("default"):
        return None
    whole = field.cpp_type not in {field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT}
    return int(value.default) if whole else value.default


def given(message: Message, name: str, *, most: float | None = None) -> Any:  # noqa: ANN401 - of the field's type
    """The value of a field that was set, else its default.

    Args:
        message: the request.
        name: of a field with presence and a default.
        most: no default is above it; what was asked for may be.
    """
    if message.HasField(name):
        return getattr(message, name)
    default = default_of(message.DESCRIPTOR.fields_by_name[name])
    if default is None:
        raise KeyError(f"{message.DESCRIPTOR.full_name}.{name} has no default")
    return default if most is None else min(default, most)


def fill(message: Message) -> None:
    """Set every field that is not set and has a default, in parts of the message too."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and not field.is_repeated:
            fill(getattr(message, field.name))
        elif (default := default_of(field)) is not None and not message.HasField(field.name):
            setattr(message, field.name, default)


def wrong(message: Message, at: str = "") -> dict[str, str]:
    """Path of each field that holds what it may not, and a sentence that says what it may.

    Args:
        message: the request.
        at: path of the message, before the names of its fields.
    """
    found: dict[str, str] = {}
    for field in message.DESCRIPTOR.fields:
        path = f"{at}.{field.name}" if at else field.name
        if field.message_type is not None and not field.is_repeated:
            found |= wrong(getattr(message, field.name), path)
        elif not was_set(message, field):
            continue
        elif not _fits(field, getattr(message, field.name)):
            found[path] = f"must be {bounds_of(field)}"
    return found


def was_set(message: Message, field: Field) -> bool:
    """Whether a field was set. A text that is empty was not: clients of 0.1.0 write every text."""
    if not field.has_presence:
        return True
    return bool(message.HasField(field.name)) and getattr(message, field.name) != ""


def _fits(field: Field, held: Any) -> bool:  # noqa: ANN401 - of the field's type
    value = value_of(field)
    if value is None:
        return True
    if value.words:
        return held in value.words
    most = most_of(field)
    # NaN compares false with everything, so it is refused too; no end is no reason for infinity.
    most = sys.float_info.max if most is None else most
    return bool(value.least <= held <= most) if value.HasField("least") else True


def bounds_of(field: Field) -> str:
    """What a field may hold, for a person: `1 or more`, `one of 1F1B, GPipe`; empty: anything."""
    value = value_of(field)
    if value is None:
        return ""
    if value.words:
        return f"one of {', '.join(value.words)}"
    return span(value.least, most_of(field)) if value.HasField("least") else ""


def most_of(field: Field) -> float | None:
    """The most that a field may be; None when there is no end."""
    value = value_of(field)
    return value.most if value is not None and value.HasField("most") else None
