"""Options that are fields of a request: what is typed, and the message that is made of it.

`Field` says once what the flag is called, where its value goes and what it means; the help and the
completion come from it. Those of a job's spec are read from its proto (`fields_of`). What a field
is when it is not given, the help reads from there too, and only when it is printed: importing
protobuf takes longer than all else.

Called by the commands that make jobs, endpoints and tokens.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from appliance.client.naming import SHORT

Resolve = Callable[[str, str], str]
"""Turns a kind of resource and what was typed into a full name."""


@dataclass(frozen=True)
class Field:
    """One flag.

    Attributes:
        path: field of the message, `architecture.layers`; the flag is its last part.
        kind: what it takes: int, float, bool, a tuple of choices, a dictionary of choices and what
            each is in the message, or a kind of resource.
        help: what it means.
        required: whether it must be given.
        many: whether it may be given more than once.
        otherwise: what it is when it is not given, where that depends on other fields.
    """

    path: str
    kind: Any
    help: str
    required: bool = False
    many: bool = False
    otherwise: str = ""

    @property
    def flag(self) -> str:
        """What is typed."""
        return "--" + self.variable.replace("_", "-")

    @property
    def variable(self) -> str:
        """Name of the value in the command's function."""
        leaf = self.path.rpartition(".")[2]
        return leaf.removesuffix("s") if self.many else leaf

    def option(self, message: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """The click option for the field of a message."""
        settings: dict[str, Any] = {
            "cls": FieldOption,
            "default_of": (message, self.path, self.otherwise),
            "help": self.help,
            "required": self.required,
        }
        if self.kind is bool:
            return click.option(self.flag, is_flag=True, **settings)
        if isinstance(self.kind, tuple | dict):
            settings["type"] = click.Choice(tuple(self.kind))
        else:
            settings["type"] = self.kind if self.kind in (int, float) else str
            if isinstance(self.kind, str):
                settings["metavar"] = SHORT.get(self.kind, self.kind.upper())
        return click.option(self.flag, multiple=self.many, **settings)


class FieldOption(click.Option):
    """An option whose help says what the field of a request is when it is not given.

    Args:
        settings: for `click.Option`; and `default_of`: the message, below `appliance.api`, the path
            of the field in it, and what is said instead of the proto's default.
    """

    def __init__(self, *args: Any, default_of: tuple[str, str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._default_of = default_of

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its text in the help."""
        record = super().get_help_record(ctx)
        message, path, otherwise = self._default_of
        default = otherwise or default_text(message, path)
        if record is None or not default:
            return record
        return record[0], f"{record[1]}  [default: {default}]"


def default_text(message: str, path: str) -> str:
    """What a field is when it is not given, as it would be typed; empty when the proto has none.

    Args:
        message: `jobs.v1.job.TrainSpec`.
        path: of the field.
    """
    from appliance.core import values  # noqa: PLC0415 - for the help alone, as protobuf
    from appliance.core.numbers import typed  # noqa: PLC0415 - as above

    module, _, name = message.rpartition(".")
    descriptor = getattr(importlib.import_module(f"appliance.api.{module}_pb2"), name).DESCRIPTOR
    *parts, leaf = path.split(".")
    for part in parts:
        descriptor = descriptor.fields_by_name[part].message_type
    field = descriptor.fields_by_name[leaf]
    default = values.default_of(field)
    if default is not None:
        return typed(default)
    value = values.value_of(field)
    return next(iter(value.words), "") if value is not None else ""


def fields_of(descriptor: Any) -> tuple[Field, ...]:
    """One field for each of a message, and of its parts, as its proto says."""
    from appliance.core.values import value_of  # noqa: PLC0415 - as above

    found: list[Field] = []
    for field in descriptor.fields:
        if field.message_type is not None:
            inside = fields_of(field.message_type)
            found += [replace(each, path=f"{field.name}.{each.path}") for each in inside]
        elif (value := value_of(field)) is not None:
            taken = value.names or _taken(field, value.words)
            found.append(
                Field(
                    field.name,
                    taken,
                    value.help,
                    required=value.required,
                    many=field.is_repeated,
                    otherwise=value.otherwise,
                )
            )
    return tuple(found)


def _taken(field: Any, words: Sequence[str]) -> Any:
    """What a flag takes for a field that names no resource."""
    if field.enum_type is not None:
        prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", field.enum_type.name).upper() + "_"
        said = [each.name for each in field.enum_type.values if each.number]
        return {name.removeprefix(prefix).lower().replace("_", "-"): name for name in said}
    if words:
        return tuple(words)
    if field.cpp_type == field.CPPTYPE_BOOL:
        return bool
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return float
    return "text" if field.cpp_type == field.CPPTYPE_STRING else int


def was_typed(value: object) -> bool:
    """Whether somebody gave an option. A zero that was asked for is a zero, and equals False."""
    return not (value is None or value is False or value == ())


def options(
    message: str, fields: Sequence[Field]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function the options of a message's fields, in the order of the table."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(fields):
            function = field.option(message)(function)
        return function

    return decorate


def message_of(
    fields: Sequence[Field], values: Mapping[str, Any], resolve: Resolve
) -> dict[str, Any]:
    """The message as nested dictionaries; what was not given is left out."""
    made: dict[str, Any] = {}
    for field in fields:
        value = values[field.variable]
        if not was_typed(value):
            continue
        if isinstance(field.kind, dict):
            value = field.kind[value]
        elif isinstance(field.kind, str):
            value = (
                [resolve(field.kind, each) for each in value]
                if field.many
                else resolve(field.kind, value)
            )
        head, _, leaf = field.path.rpartition(".")
        (made.setdefault(head, {}) if head else made)[leaf] = value
    return made


def numbers_of(text: str, flag: str, known: Sequence[str]) -> dict[str, int]:
    """Numbers of `data=2,tensor=2`. Raises click.UsageError for anything else."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in known or name in found or not number.isdecimal():
            example = ",".join(f"{each}=2" for each in known[:-1]) + f",{known[-1]}=1"
            raise click.UsageError(f"{flag} {text}: write it like {example}")
        found[name] = int(number)
    return found
