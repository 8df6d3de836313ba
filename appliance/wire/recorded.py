"""What the audit records of a call say about it beyond who, what and how it ended.

Beside each RPC, in the same option as its access rule, stand the fields that its records carry:
`asked` of the request, `made` of the response. Rules kept here:
* an RPC that changes something says which, or `-` for none; a server with one that says nothing
  does not start, and neither does one whose path is misspelt;
* a field that holds a secret, a document or a free text is refused by its name and type when the
  server starts;
* of a text only what is shaped like a name goes into a record: whatever a caller puts into a field
  that is recorded, neither a sentence nor the secret part of a token gets there;
* a path to a oneof stands for what is set of it, and for the resources that this names: a further
  member needs no further path.

The attack: a right given or a thing made without a trace of which one; a secret that ends up in a
log that is never deleted. Called by `appliance.wire.rules` at start and by the gate for each call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from appliance.core.log import redact
from appliance.core.values import value_of

NOTHING = "-"
UNSHAPED = "(not a name)"
VALIDATE_ONLY = "validate_only"
MAX_VALUES = 32
_SHAPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,254}")
_FORBIDDEN = frozenset(
    {
        *("password", "token", "code", "recovery_code", "recovery_codes", "secret", "key"),
        *("certificate", "certificate_request", "ca_certificate", "provisioning_uri"),
        *("text", "content", "prompt", "data", "description", "message", "lines"),
        *("public_key", "note", "facts", "tokenizer_json", "chat_template", "page_token"),
    }
)
_FREE = (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_GROUP)
_TIMESTAMP = Timestamp.DESCRIPTOR.full_name


@dataclass(frozen=True)
class Recorded:
    """Checked paths of fields.

    Attributes:
        asked: of the request.
        made: of the response.
    """

    asked: tuple[str, ...] = ()
    made: tuple[str, ...] = ()


def recorded_of(method: MethodDescriptor, asked: Sequence[str], made: Sequence[str]) -> Recorded:
    """What an RPC's option says, checked. Raises ValueError with what is wrong."""
    options = method.GetOptions()
    changes = options.idempotency_level != options.NO_SIDE_EFFECTS
    if changes and not (asked or made):
        raise ValueError(
            "it changes something and does not say which fields its records carry "
            "(`asked`, `made`, or `-` for none)"
        )
    return Recorded(_checked(method.input_type, asked), _checked(method.output_type, made))


def shaped(text: str) -> str:
    """A text that is shaped like a name, without the secret part of a token; else `UNSHAPED`."""
    if not text:
        return ""
    return redact(text) if _SHAPE.fullmatch(text) else UNSHAPED


def facts(message: Message | None, paths: Iterable[str]) -> dict[str, Any]:
    """The recorded fields of a message that are set, by path: numbers, names, lists of names."""
    if message is None:
        return {}
    values = {path: _value(message, path.split(".")) for path in paths}
    found = {path: value for path, value in values.items() if value not in (None, "", [])}
    if getattr(message, VALIDATE_ONLY, False):
        found[VALIDATE_ONLY] = True
    return found


def _checked(message: Descriptor, paths: Sequence[str]) -> tuple[str, ...]:
    if list(paths) == [NOTHING]:
        return ()
    for path in paths:
        _check(message, path)
    return tuple(each for path in paths for each in (path, *_named(message, path)))


def _named(message: Descriptor, path: str) -> Iterator[str]:
    """Of a path to a oneof of messages: the paths of fields in these that name resources."""
    *folders, last = path.split(".")
    inside: Descriptor | None = message
    for part in folders:
        inside = inside.fields_by_name[part].message_type if inside is not None else None
    if inside is None or last not in inside.oneofs_by_name:
        return
    for member in inside.oneofs_by_name[last].fields:
        for field in member.message_type.fields if member.message_type is not None else ():
            if (value := value_of(field)) is not None and value.names:
                named = ".".join((*folders, member.name, field.name))
                _check(message, named)
                yield named


def _check(message: Descriptor, path: str) -> None:
    *folders, last = path.split(".")
    inside: Descriptor | None = message
    for part in folders:
        field = inside.fields_by_name.get(part) if inside is not None else None
        inside = field.message_type if field is not None else None
    if inside is None or (last not in inside.fields_by_name and last not in inside.oneofs_by_name):
        raise ValueError(f"{message.name} has no field {path} to record")
    if last in inside.oneofs_by_name:
        return
    field = inside.fields_by_name[last]
    of_message = field.message_type is not None and field.message_type.full_name != _TIMESTAMP
    if last in _FORBIDDEN or field.type in _FREE or of_message:
        raise ValueError(f"{path} of {message.name} must not be recorded")


def _value(message: Message, path: Sequence[str]) -> Any:  # noqa: ANN401 - a JSON value
    """A field's value; None when it is not set. Of a repeated message, the values of all."""
    name, *rest = path
    if name in message.DESCRIPTOR.oneofs_by_name:
        return message.WhichOneof(name)
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if field.is_repeated:
        each = [_value(item, rest) if rest else _plain(item, field) for item in value[:MAX_VALUES]]
        return [item for item in each if item not in (None, "")]
    if field.has_presence and not message.HasField(name):
        return None
    return _value(value, rest) if rest else _plain(value, field)


def _plain(value: Any, field: Any) -> Any:  # noqa: ANN401 - a field of any type
    if field.enum_type is not None:
        number = field.enum_type.values_by_number.get(value)
        return number.name if number is not None else int(value)
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    return shaped(value) if isinstance(value, str) else value
