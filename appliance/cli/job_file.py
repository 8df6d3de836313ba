"""A job as a file: YAML, or JSON, which is YAML.

The form is the resource as `job get -o yaml` prints it: names of fields as in the proto, or in
lowerCamelCase; whole names of resources; one spec, and `on_lost`. What the system says of a job
(its name, its state) may stand there and is left out.

Rules kept here:
* what is wrong is named all at once, each with its line and its path in the file;
* a file is bounded before it is read, and its nesting before it is walked; anchors and aliases are
  refused, so that nothing grows (the attack: ten lines that are a billion values), and so is a key
  that stands twice, of which another reader would take the other value;
* values are checked by protobuf's own rules for JSON.

Called by `appliance job create`.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.core.errors import InvalidInput
from appliance.core.strict_json import plain
from appliance.kinds import KINDS

if TYPE_CHECKING:
    from google.protobuf.message import Message

MAX_BYTES = 1 << 18
"""A hundred names of datasets take 20 KiB. PyYAML takes seconds for a file of this size."""
MAX_DEPTH = 16
MAX_SAID = 20
"""Mistakes that are named; a file that is something else altogether has thousands."""
STDIN = "-"
_MAX_VALUE = 60
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,99})")
_NUMBER = re.compile(r"[-+]?([0-9]{0,99}\.?[0-9]{0,99}([eE][-+]?[0-9]{1,9})?|\.inf|\.nan)")
_TEXTS = frozenset({"str", "timestamp", "value"})
"""What YAML takes a text for, without a tag: a date and `=` are texts here."""


def read(file: str) -> dict[str, Any]:
    """The spec, and `on_lost`, of the job in a file; `-` is standard input.

    Raises InvalidInput with everything that is wrong.
    """
    source = "standard input" if file == STDIN else file
    try:
        if file == STDIN and sys.stdin is None:
            raise InvalidInput("standard input is closed: name a file")
        if file == STDIN:
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(
            f"{source} cannot be read ({error.strerror}): make it readable"
        ) from error
    return parse(data, source)


def parse(data: bytes, source: str) -> dict[str, Any]:
    """As `read`, of bytes; `source` is what they are called in messages."""
    from appliance.api.jobs.v1 import job_pb2  # noqa: PLC0415 - protobuf, which the help saves

    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{source} has more than {MAX_BYTES >> 10} KiB: that is no job")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(f"{source} line {line}: is not UTF-8; convert it") from error
    root = _root(text, source)
    job, reader = job_pb2.Job(), _JobFileReader()
    reader.message(root, job, "")
    _check_specs(root, reader)
    if reader.problems:
        said = [f"line {line}: {sentence}" for line, sentence in sorted(reader.problems)]
        more = [f"and {len(said) - MAX_SAID} more"] if len(said) > MAX_SAID else []
        raise InvalidInput(f"{source} is no job: {'; '.join([*said[:MAX_SAID], *more])}")
    kind = job.WhichOneof("spec")
    found = {kind: getattr(job, kind)}
    return found | ({"on_lost": job.on_lost} if job.HasField("on_lost") else {})


def _root(text: str, source: str) -> Any:
    """The one document in a text, as nodes that know their lines. Raises InvalidInput."""
    import yaml  # noqa: PLC0415 - only this command needs it

    depth, documents = 0, 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = 1 if event.start_mark is None else event.start_mark.line + 1
            documents += isinstance(event, yaml.DocumentStartEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise InvalidInput(
                    f"{source} line {line}: anchors and aliases are not taken; write it out"
                )
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise InvalidInput(f"{source} line {line}: is nested more than {MAX_DEPTH} deep")
            if documents > 1:
                raise InvalidInput(
                    f"{source} line {line}: holds several documents; submit one job at a time"
                )
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise InvalidInput(f"{source} line {line}: is no YAML ({error.problem})") from error
    except yaml.YAMLError as error:
        raise InvalidInput(f"{source} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise InvalidInput(
            f"{source} is no job: write one of {', '.join(KINDS)}, a colon, and its fields below"
        )
    return root


@dataclass
class _JobFileReader:
    """Fills messages from nodes; notes what is wrong by line."""

    problems: list[tuple[int, str]] = field(default_factory=list)

    def message(self, node: Any, message: Message, path: str) -> None:
        """Fill a message from a mapping."""
        seen: set[str] = set()
        known = _fields(message.DESCRIPTOR)
        for word, value in self._pairs(node, path):
            key = str(word.value)
            at = f"{path}.{key}" if path else key
            named = known.get(key)
            if named is None:
                self._unknown(word, at, key, known)
            elif named.name in seen:
                self._note(word, at, "stands twice")
            elif not path and named.name not in _asked(message.DESCRIPTOR):
                pass  # What the system says of the job.
            else:
                seen.add(named.name)
                self._fill(value, message, named, at)

    def _pairs(self, node: Any, path: str) -> Iterator[tuple[Any, Any]]:
        """The nodes of each key that is a word, and of its value."""
        import yaml  # noqa: PLC0415 - as above

        if not isinstance(node, yaml.MappingNode):
            self._note(node, path, "has fields of its own: write them below it")
            return
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield key, value
            else:
                self._note(key, path, "has a key that is no name")

    def _fill(self, node: Any, message: Message, named: Any, at: str) -> None:
        """Set one field."""
        from google.protobuf.json_format import ParseDict, ParseError  # noqa: PLC0415 - as above

        if named.message_type is not None and not named.is_repeated:
            part = getattr(message, named.name)
            part.SetInParent()
            self.message(node, part, at)
            return
        try:
            value = _plain(node)
        except ValueError as error:
            self._note(node, at, str(error))
            return
        if value is None:
            return
        try:
            ParseDict({named.name: value}, message)
        except (ParseError, TypeError, ValueError):
            self._note(node, at, f"is {_shown(value)}, and must be {_wanted(named)}")

    def _unknown(self, node: Any, at: str, key: str, known: dict[str, Any]) -> None:
        names = sorted({each.name for each in known.values()})
        if at == key:
            names = [name for name in names if name in {*KINDS, "on_lost"}]
        close = difflib.get_close_matches(key, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        self._note(node, plain(at[:_MAX_VALUE]), f"is no field: {hint}")

    def _note(self, node: Any, at: str, sentence: str) -> None:
        self.problems.append((node.start_mark.line + 1, f"{at} {sentence}".strip()))


def _fields(descriptor: Any) -> dict[str, Any]:
    """Fields of a message by both of their names."""
    return {name: each for each in descriptor.fields for name in (each.name, each.json_name)}


def _asked(descriptor: Any) -> set[str]:
    """What somebody says of a job; the rest of it the system says."""
    return {each.name for each in descriptor.oneofs_by_name["spec"].fields} | {"on_lost"}


def _check_specs(root: Any, reader: _JobFileReader) -> None:
    """A job has one spec."""
    said = [str(key.value) for key, _ in root.value if str(key.value) in KINDS]
    line = root.start_mark.line + 1
    if not said and not reader.problems:
        reader.problems.append((line, f"it has no spec: write one of {', '.join(KINDS)}"))
    elif len(set(said)) > 1:
        reader.problems.append((line, f"it has more than one spec: {', '.join(sorted(said))}"))


def _plain(node: Any) -> Any:
    """A scalar, or a list of scalars. Raises ValueError with a sentence."""
    import yaml  # noqa: PLC0415 - as above

    if isinstance(node, yaml.SequenceNode):
        return [_plain(each) for each in node.value]
    if isinstance(node, yaml.MappingNode):
        raise ValueError("is one value, and has fields below it")  # noqa: TRY004 - its sentence
    tag = node.tag.rpartition(":")[2]
    if tag == "null":
        return None
    if tag == "bool":
        return yaml.constructor.SafeConstructor().construct_object(node)
    if tag in {"int", "float"}:
        return _number(node.value, whole=tag == "int")
    if tag not in _TEXTS:
        raise ValueError("has a tag, which is not taken: write the value alone")
    return node.value


def _number(text: str, *, whole: bool) -> float:
    """A number in decimal digits. Raises ValueError with a sentence.

    YAML 1.1 has more of them: 010 is eight and 1:30 is ninety, and YAML 1.2 reads them otherwise.
    """
    if _WHOLE.fullmatch(text) if whole else _NUMBER.fullmatch(text):
        return int(text) if whole else float(text.replace(".inf", "inf").replace(".nan", "nan"))
    raise ValueError(f"is {_shown(text)}, which is no number: write it in decimal digits")


def _wanted(named: Any) -> str:
    if named.enum_type is not None:
        return f"one of {', '.join(each.name for each in named.enum_type.values if each.number)}"
    kinds = {
        named.CPPTYPE_BOOL: "true or false",
        named.CPPTYPE_STRING: "a text",
        named.CPPTYPE_DOUBLE: "a number",
        named.CPPTYPE_FLOAT: "a number",
    }
    one = kinds.get(named.cpp_type, "a whole number")
    return f"a list, each {one}" if named.is_repeated else one


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."
