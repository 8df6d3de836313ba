"""Configuration: one frozen dataclass tree per process, read once from one TOML file.

Rules kept here:
* the dataclasses are the only list of keys: an unknown key is an error that names the nearest known
  one;
* types and ranges are checked by msgspec, never guessed: a string where a number belongs is an
  error that names the key. A range stands in the type: `Annotated[int, Meta(ge=1)]`;
* everything that is wrong in a file is said at once;
* a key that was retired lives for one release more: the class of the file names it in `RETIRED`,
  with its successor or with what to do. A start that finds one takes its value for the successor's
  and says so in the log; both at once are refused;
* every key has a sentence (`field(metadata=doc(...))`); `document` prints them all with their
  defaults;
* a relative path means relative to the folder of the file it stands in, whatever the working
  directory is;
* nothing is read from the environment or the command line, and a secret is the path of a file, not
  a value.

Called by each process' composition root (`load`) and by the documentation (`document`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import math
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from appliance.core.errors import FailedPrecondition, InvalidInput

T = TypeVar("T")

logger = logging.getLogger(__name__)

_NOTHING = object()
_WORDS: Mapping[type[inspect.Type], str] = {
    inspect.BoolType: "true or false",
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.StrType: "text in quotes",
    inspect.CustomType: "a path",
}


def doc(text: str) -> dict[str, str]:
    """Metadata of a field: the sentence that says what the key is for."""
    return {"doc": text}


@dataclasses.dataclass(frozen=True)
class Retired:
    """What became of a key; it is taken in the releases of one number, and is unknown after them.

    Args:
        since: the release that retired it, `major.minor`.
        successor: the key that its value is taken for, with its tables: `routing.wait_seconds`.
        advice: what to do, when no key means the same; the value is then ignored.
    """

    since: str
    successor: str = ""
    advice: str = ""

    @property
    def sentence(self) -> str:
        """What to do about it."""
        return f"write {self.successor}" if self.successor else self.advice


def load(cls: type[T], path: Path) -> T:
    """Read `path` into the frozen dataclass `cls`.

    Raises:
        FailedPrecondition: the file is missing or cannot be read.
        InvalidInput: it is not TOML, or keys are unknown, missing, of the wrong type or out of
            range; the sentence names each, and `fields` has them by key.
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
    reader = _Reader(path)
    settings = reader.read(cls, values)
    if settings is None:
        raise reader.refusal()
    return settings


class _Reader:
    """Turns parsed TOML into dataclasses and collects what is wrong, by key.

    Knows the file for its messages and its relative paths.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problems: dict[str, str] = {}
        self._written: dict[str, str] = {}

    def read(self, cls: type[T], values: dict[str, Any]) -> T | None:
        """The configuration; None when something is wrong."""
        for old, retired in _retired(cls).items():
            self._replace(values, old, retired)
        settings = self._table(cls, values, "")
        return None if self._problems else settings

    def refusal(self) -> InvalidInput:
        """All that is wrong, in the order of the file's keys."""
        said = "; ".join(f"{key}: {problem}" for key, problem in self._problems.items())
        many = f"{len(self._problems)} keys are wrong: " if len(self._problems) > 1 else ""
        return InvalidInput(f"{self._path}: {many}{said}", fields=self._problems)

    def _wrong(self, key: str, problem: str) -> None:
        # A value that came from a retired key is named as it is written in the file.
        self._problems[self._written.get(key, key)] = problem

    def _replace(self, values: dict[str, Any], old: str, retired: Retired) -> None:
        """Put the value of a retired key where its successor stands."""
        value = _take(values, old)
        if value is _NOTHING:
            return
        if retired.successor:
            *tables, name = retired.successor.split(".")
            for table in tables:
                values = values.setdefault(table, {})
                if not isinstance(values, dict):
                    return  # it is said to be no table when it is read
            if name in values:
                self._wrong(old, f"is now {retired.successor}, which is set too: remove {old}")
                return
            values[name] = value
            self._written[retired.successor] = old
        logger.warning("%s: %s is no longer a key: %s", self._path, old, retired.sentence)

    def _table(self, cls: type[T], values: object, at: str) -> T | None:
        if not isinstance(values, dict):
            self._wrong(at, f"must be a table, not {values!r}")
            return None
        before = len(self._problems)
        fields = {field.name: field for field in _fields(cls)}
        hints = typing.get_type_hints(cls, include_extras=True)
        for key in values:
            if key not in fields:
                self._wrong(_join(at, key), _unknown(key, list(fields)))
        arguments: dict[str, Any] = {}
        for name, field in fields.items():
            key, hint = _join(at, name), hints[name]
            if dataclasses.is_dataclass(hint):
                arguments[name] = self._table(_class(hint), values.get(name, {}), key)
            elif name in values:
                arguments[name] = self._value(hint, values[name], key)
            elif not _has_default(field):
                self._wrong(key, f"is missing: {field.metadata['doc']}")
        if len(self._problems) > before:
            return None
        try:
            return cls(**arguments)
        except InvalidInput as error:
            self._wrong(at or "the file", error.message)
            return None

    def _value(self, hint: object, value: object, at: str) -> object:
        # TOML has `inf` and `nan`; no setting means them.
        if not isinstance(value, float) or math.isfinite(value):
            with contextlib.suppress(msgspec.ValidationError):
                return msgspec.convert(value, hint, dec_hook=self._path_of)
        self._wrong(at, f"must be {_words(inspect.type_info(hint))}, not {value!r}")
        return None

    def _path_of(self, hint: type[object], value: object) -> Path:
        """What msgspec does not know: a path."""
        if hint is not Path or not isinstance(value, str) or not value:
            raise ValueError
        return self._path.parent / value


def _fields(cls: type[object]) -> tuple[dataclasses.Field[Any], ...]:
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is not a dataclass")
    return dataclasses.fields(cls)


def _class(hint: object) -> type[Any]:
    return typing.cast("type[Any]", hint)


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return (
        field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    )


def _take(values: object, path: str) -> object:
    """Take the value of a key with its tables out, and tables that are empty then."""
    name, _, rest = path.partition(".")
    if not isinstance(values, dict) or name not in values:
        return _NOTHING
    value = _take(values[name], rest) if rest else values.pop(name)
    if rest and values[name] == {}:
        del values[name]
    return value


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(known)}"
    return f"is not a key; {hint}"


def _words(kind: inspect.Type) -> str:
    """What a value has to be, to a person."""
    if isinstance(kind, inspect.UnionType):
        (kind,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
    if isinstance(kind, inspect.LiteralType):
        return f"one of {', '.join(map(str, kind.values))}"
    return _WORDS[type(kind)] + _range(kind)


def _range(kind: inspect.Type) -> str:
    least, most, above = (getattr(kind, name, None) for name in ("ge", "le", "gt"))
    if least is not None and most is not None:
        return f" from {least:,} to {most:,}"
    parts = []
    if least is not None:
        parts.append(f"{least:,} or more")
    if above is not None:
        parts.append(f"more than {above:,}")
    if most is not None:
        parts.append(f"at most {most:,}")
    return f", {' and '.join(parts)}" if parts else ""


def document(cls: type[object]) -> str:
    """A Markdown table of every key of a configuration: key, type, default, what it is for."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += [
        f"| `{key}` | {kind} | {default} | {doc} |" for key, kind, default, doc in _rows(cls, "")
    ]
    rows += [
        f"| `{key}` | retired in {retired.since} | | {retired.sentence} |"
        for key, retired in _retired(cls).items()
    ]
    return "\n".join(rows) + "\n"


def _retired(cls: type[object]) -> Mapping[str, Retired]:
    retired: Mapping[str, Retired] = getattr(cls, "RETIRED", {})
    return retired


def _rows(cls: type[object], at: str) -> Iterator[tuple[str, str, str, str]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in _fields(cls):
        hint = hints[field.name]
        key = _join(at, field.name)
        if dataclasses.is_dataclass(hint):
            yield from _rows(_class(hint), key)
        else:
            kind = inspect.type_info(hint)
            yield key, _type_text(kind), _default_text(field), field.metadata["doc"]


def _type_text(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(f"`{value}`" for value in kind.values)
    text = _words(kind).removeprefix("a ").replace("text in quotes", "text")
    return f"{text}, optional" if isinstance(kind, inspect.UnionType) else text


def _default_text(field: dataclasses.Field[Any]) -> str:
    if not _has_default(field):
        return "required"
    if field.default is None:
        return "unset"
    text = str(field.default)
    return f"`{text.lower() if isinstance(field.default, bool) else text}`"
