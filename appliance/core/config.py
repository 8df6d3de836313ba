"""Configuration: one frozen dataclass tree per process, read once from one TOML file.

Rules kept here:
* the dataclasses are the only list of keys: an unknown key is an error that names the nearest known
  one;
* a key that was retired is taken for one release and said, with what came in its place: a class
  names them in `RETIRED` (key -> sentence);
* types are checked, never guessed: a string where a number belongs is an error that names the key;
* every key has a sentence (`field(metadata=doc(...))`); `document` prints them all with their
  defaults;
* a relative path means relative to the folder of the file it stands in, whatever the working
  directory is;
* nothing is read from the environment or the command line, and a secret is the path of a file, not
  a value.

A field may be a bool, int, float, str, Path, Enum (by value), Literal, `X | None`, `tuple[X, ...]`,
`dict[str, X]` or another such dataclass. Called by each process' composition root (`load`) and by
the documentation (`document`).
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from appliance.core.errors import FailedPrecondition, InvalidInput

T = TypeVar("T")

logger = logging.getLogger(__name__)


def doc(text: str) -> dict[str, str]:
    """Metadata of a field: the sentence that says what the key is for."""
    return {"doc": text}


def load(cls: type[T], path: Path) -> T:
    """Read `path` into the frozen dataclass `cls`.

    Raises:
        FailedPrecondition: the file is missing or cannot be read.
        InvalidInput: it is not TOML, or a key is unknown, missing or of the wrong type; the
            sentence names the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FailedPrecondition(f"there is no configuration file {path}") from error
    except PermissionError as error:
        raise FailedPrecondition(f"{path} cannot be read by this user") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path} is not valid TOML: {error}") from error
    return _Reader(path).table(cls, values, "")


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Turns parsed TOML into dataclasses.

    Knows the file for its messages and its relative paths.
    """

    path: Path

    def wrong(self, key: str, problem: str) -> InvalidInput:
        return InvalidInput(f"{self.path}: {key}: {problem}", fields={key: problem})

    def table(self, cls: type[T], values: object, at: str) -> T:
        if not isinstance(values, dict):
            raise self.wrong(at, "must be a table")
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in _fields(cls)}
        retired: Mapping[str, str] = getattr(cls, "RETIRED", {})
        for key in values:
            if key in retired:
                logger.warning("%s: %s is no longer a key: %s", self.path, key, retired[key])
            elif key not in fields:
                raise self.wrong(_join(at, key), _unknown(key, list(fields)))
        arguments: dict[str, Any] = {}
        for name, field in fields.items():
            if name in values:
                arguments[name] = self.value(hints[name], values[name], _join(at, name))
            elif not _has_default(field):
                raise self.wrong(_join(at, name), f"is missing: {field.metadata.get('doc', name)}")
        try:
            return cls(**arguments)
        except InvalidInput as error:
            raise self.wrong(at or "the file", error.message) from error

    def value(self, hint: object, value: object, at: str) -> object:
        origin = typing.get_origin(hint)
        inner = typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            (only,) = (arm for arm in inner if arm is not type(None))
            return self.value(only, value, at)
        if origin is typing.Literal:
            return self.choice(list(inner), value, at)
        if origin is tuple:
            if not isinstance(value, list):
                raise self.wrong(at, "must be a list")
            return tuple(
                self.value(inner[0], item, f"{at}[{index}]") for index, item in enumerate(value)
            )
        if origin is dict:
            if not isinstance(value, dict):
                raise self.wrong(at, "must be a table")
            return {key: self.value(inner[1], item, _join(at, key)) for key, item in value.items()}
        if dataclasses.is_dataclass(hint):
            return self.table(typing.cast("type[object]", hint), value, at)
        return self.scalar(typing.cast("type[object]", hint), value, at)

    def scalar(self, hint: type[object], value: object, at: str) -> object:
        if issubclass(hint, Enum):
            return hint(self.choice([member.value for member in hint], value, at))
        if hint is Path:
            if not isinstance(value, str) or not value:
                raise self.wrong(at, "must be a path")
            return self.path.parent / value
        if hint is float and type(value) is int:
            return float(value)
        # `type(...) is`: True is an int to isinstance, and `port = true` must not mean port 1.
        if type(value) is not hint:
            raise self.wrong(at, f"must be {_WORDS[hint]}, not {value!r}")
        return value

    def choice(self, allowed: list[object], value: object, at: str) -> object:
        if value not in allowed:
            raise self.wrong(at, f"must be one of {', '.join(map(str, allowed))}; {value!r} is not")
        return value


_WORDS: dict[type[object], str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
}


def _fields(cls: type[object]) -> tuple[dataclasses.Field[Any], ...]:
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is not a dataclass")
    return dataclasses.fields(cls)


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return (
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    )


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    hint = f"did you mean {near[0]}?" if near else "there are no keys here"
    return f"is not a key; {hint}"


def document(cls: type[object]) -> str:
    """A Markdown table of every key of a configuration: key, type, default, what it is for."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += [
        f"| `{key}` | {kind} | {default} | {doc} |" for key, kind, default, doc in _rows(cls, "")
    ]
    return "\n".join(rows) + "\n"


def _rows(cls: type[object], at: str) -> Iterator[tuple[str, str, str, str]]:
    hints = typing.get_type_hints(cls)
    for field in _fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _rows(typing.cast("type[object]", hint), _join(at, field.name))
            continue
        yield (
            _join(at, field.name),
            _type_text(hint),
            _default_text(field),
            field.metadata["doc"],
        )


def _type_text(hint: object) -> str:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(f"`{member.value}`" for member in hint)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(hint))
    if typing.get_origin(hint) is None and isinstance(hint, type):
        return {
            "str": "text",
            "int": "whole number",
            "float": "number",
            "bool": "true or false",
        }.get(hint.__name__, hint.__name__.lower())
    inner = [_type_text(arm) for arm in typing.get_args(hint) if arm not in (type(None), ...)]
    if typing.get_origin(hint) is tuple:
        return f"list of {inner[0]}"
    if typing.get_origin(hint) is dict:
        return f"table of {inner[1]}"
    return f"{inner[0]}, optional"


def _default_text(field: dataclasses.Field[Any]) -> str:
    if not _has_default(field):
        return "required"
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = field.default
    if value is None:
        return "unset"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple):
        return f"`[{', '.join(repr(item) for item in value)}]`"
    return f"`{value}`" if isinstance(value, (str, Path)) else f"`{str(value).lower()}`"
