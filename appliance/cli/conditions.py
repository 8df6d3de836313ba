"""`--filter` of every list: conditions on the fields that `-o json` shows.

`state=RUNNING`, `name!=first`, `description~news`, `progress.step>100`, `age<2d`,
`create_time>=2026-11-01`. Rules kept here: a field that there is not is an error that names those
there are, before a row is read; capital letters do not count; a resource's name is found by its
whole name and by what is typed for it; a time and a duration compare by how far away the time is.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import click

from appliance.cli.moments import seconds_of, time_of
from appliance.cli.output import at, short_name

Value = Any  # JSON of any shape
_FORM = re.compile(r"([A-Za-z_][\w.]*)\s*(!=|>=|<=|=|~|<|>)\s*(.*)", re.DOTALL)
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([KMGT]i?B?|B)?")
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
_ENUM = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
AGE = "age"
"""A field that every resource with a `create_time` has: how long it has been there."""
_EXAMPLES = "state=RUNNING, state!=FAILED, name~chat, progress.step>100 or age<2d"


@dataclass(frozen=True)
class Condition:
    """One expression: what must hold of a resource."""

    path: str
    sign: str
    text: str

    @classmethod
    def parse(cls, expression: str) -> Condition:
        """Read an expression. Raises click.UsageError with what is wrong."""
        found = _FORM.fullmatch(expression.strip())
        if found is None:
            raise click.UsageError(f"--filter {expression!r}: write it like {_EXAMPLES}")
        made = cls(*found.groups())
        if made.sign in _ORDER and _measure(made.text) is None:
            raise click.UsageError(
                f"--filter {expression!r}: {made.sign} takes a number such as 100 or 2GiB, a "
                "duration such as 2d, or a time such as 2026-11-28T10:00"
            )
        return made

    def holds(self, row: Value, now: datetime) -> bool:
        """Whether it is true of a resource."""
        values = list(_values(row, "create_time" if self.path == AGE else self.path))
        if self.sign == "!=":
            return not any(_same(value, self.text) for value in values)
        if self.sign == "~":
            text = self.text.casefold()
            return any(text in str(value).casefold() for value in values)
        if self.sign == "=":
            return any(_same(value, self.text) for value in values)
        return any(self._in_order(value, now) for value in values)

    def _in_order(self, value: Value, now: datetime) -> bool:
        wanted, moment = _measure(self.text), time_of(value)
        if moment is not None:
            if isinstance(wanted, datetime):
                return _ORDER[self.sign](moment, wanted)
            return _ORDER[self.sign](abs((now - moment).total_seconds()), wanted)
        number = _number(value)
        return (
            number is not None
            and not isinstance(wanted, datetime)
            and bool(_ORDER[self.sign](number, wanted))
        )


def _values(row: Value, path: str) -> Iterable[Value]:
    """What stands at a path; each of a list."""
    head, _, rest = path.partition(".")
    if isinstance(row, list):
        for each in row:
            yield from _values(each, path)
    elif isinstance(row, dict) and head in row:
        found = row[head]
        if rest:
            yield from _values(found, rest)
        elif isinstance(found, list) and not any(isinstance(each, dict) for each in found):
            yield from found
        else:
            yield found


def _same(value: Value, text: str) -> bool:
    if isinstance(value, bool):
        return text.casefold() in (("true", "yes") if value else ("false", "no"))
    if isinstance(value, int | float):
        return _number(value) == _number(text)
    said, wanted = str(value).casefold(), text.casefold()
    if _ENUM.fullmatch(str(value)):
        return said == wanted or said.endswith("_" + wanted)
    if "/" in said:
        return wanted in {said, short_name(said)} or said.endswith("/" + (wanted or "/"))
    return said == wanted


def _measure(text: str) -> float | datetime | None:
    """A number, a duration in seconds or a time; None when it is none of them."""
    number = _number(text)
    if number is not None:
        return number
    return found if (found := seconds_of(text)) is not None else time_of(text)


def _number(value: Value) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    found = _NUMBER.fullmatch(str(value).strip())
    if found is None:
        return None
    unit = found[2] or ""
    base = 1024 if "i" in unit else 1000
    return float(found[1]) * float(base ** _POWERS.get(unit[:1], 0))


def check_path(path: str, known: Sequence[str], option: str) -> None:
    """Raise click.UsageError for a field that no row has; it names the nearest and all there are.

    Args:
        path: what was typed.
        known: paths, as `values.paths_of` writes them.
        option: in which it was typed.
    """
    above, _, _ = path.rpartition(".")
    if path in known or f"{above}.*" in known or f"{path.partition('.')[0]}.*" in known:
        return
    if path == AGE and "create_time" in known:
        return
    prefix = above + "." if above in known else ""
    fields = [each for each in known if each.startswith(prefix) and "." not in each[len(prefix) :]]
    known = [each for each in known if not each.endswith(".*")]
    if not prefix and "create_time" in known:
        fields.append(AGE)
    near = get_close_matches(path, known, n=1) or get_close_matches(path, fields, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise click.UsageError(
        f"{option}: there is no field {path!r}.{hint} There are {', '.join(sorted(fields))}; "
        "-o json shows what stands in them"
    )


def sort_key(path: str) -> Callable[[Value], tuple[int, Any]]:
    """A key by which rows are sorted: nothing, then numbers, then text."""
    of_age = path == AGE

    def key(row: Value) -> tuple[int, Any]:
        value = at(row, "create_time" if of_age else path)
        moment = time_of(value)
        if moment is not None:
            seconds = moment.timestamp()
            return (1, -seconds if of_age else seconds)
        if isinstance(value, int | float):
            return (1, float(value))
        return (0, 0) if value is None else (2, str(value))

    return key


def now() -> datetime:
    """The time by which ages count."""
    return datetime.now(UTC)
