"""What a report may say: its shape, and how much of it.

A report is `report.json` and PNG pictures. The JSON is `ReportContent` of the protos. Rules kept
here:
* members are those of the shape and no others; numbers are finite; texts have no control
  characters;
* each picture that is named is there, each that is there is named, and each is a PNG picture. SVG
  is refused: it can hold scripts and fetch from elsewhere, in whatever shows it later;
* bounds, so that a report is read in one answer and shown on one page.

The attack: a job that was taken over writes what acts on the terminal, or in the browser, of
whoever reads its report. Pure. Called by jobs when they write one, and by the control plane before
it is registered.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from appliance.core.errors import InvalidInput
from appliance.core.names import shown
from appliance.core.png import check_picture
from appliance.core.strict_json import plain, read_object

REPORT_FILE = "report.json"
MAX_REPORT_BYTES = 1 << 20
MAX_PICTURES = 16
MAX_PICTURE_BYTES = 1 << 20
MAX_SECTIONS, MAX_NUMBERS, MAX_TABLES, MAX_COLUMNS, MAX_ROWS = 50, 200, 20, 32, 1000
MAX_CELLS = (MAX_COLUMNS + 1) * MAX_ROWS
"""Rows and cells of all tables: each is an object, made anew for whoever asks for the report."""
MAX_LINE, MAX_TEXT = 300, 20_000
_PICTURE = ".png"
_NAMED = 3
"""Files that a refusal names."""


def check_report(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The content of a report, checked.

    Args:
        files: all of it, each within its bytes (`check_sizes`).

    Raises InvalidInput naming the file and the place in it.
    """
    check_sizes({file: len(data) for file, data in files.items()})
    content = read_object(REPORT_FILE, files[REPORT_FILE])
    _object(content, "", _CONTENT)
    if not content.get("title"):
        raise _wrong("title", "is empty: say what it is about")
    cells = sum(len(row.get("cells", ())) + 1 for row in _rows(content))
    if cells > MAX_CELLS:
        raise _wrong("tables", f"have more than {MAX_CELLS} rows and cells in all")
    named = list(_pictures(content))
    there = sorted(set(files) - {REPORT_FILE})
    if sorted(named) != there:
        raise _wrong("pictures", f"are {_few(named)}, but the files are {_few(there)}")
    for file in there:
        check_picture(file, files[file])
    return content


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raise InvalidInput unless these are files of a report: before a byte of them is read.

    Args:
        sizes: bytes by file.
    """
    if REPORT_FILE not in sizes:
        raise InvalidInput(f"it has no {REPORT_FILE}")
    pictures = [file for file in sizes if file != REPORT_FILE]
    if len(pictures) > MAX_PICTURES:
        raise InvalidInput(f"it has {len(pictures)} pictures, {MAX_PICTURES} are allowed")
    for file, size in sizes.items():
        most = MAX_REPORT_BYTES if file == REPORT_FILE else MAX_PICTURE_BYTES
        if file != REPORT_FILE and not file.endswith(_PICTURE):
            raise InvalidInput(f"{file} is no picture of a report: a report holds .png files alone")
        if size > most:
            raise InvalidInput(f"{file} has {size} bytes, {most} are allowed")


Check = Callable[[Any, str], None]


def _line(value: object, at: str) -> None:
    _text_within(value, at, MAX_LINE, "")


def _text(value: object, at: str) -> None:
    _text_within(value, at, MAX_TEXT, "\n")


def _text_within(value: object, at: str, most: int, allowed: str) -> None:
    if not isinstance(value, str) or len(value) > most:
        raise _wrong(at, f"is no text of at most {most} characters")
    if any(unicodedata.category(each) == "Cc" and each not in allowed for each in value):
        raise _wrong(at, "has a control character")


def _number(value: object, at: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise _wrong(at, "is no number")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # A whole number of hundreds of digits.
        return False


def _list_of(check: Check, most: int) -> Check:
    def look(value: object, at: str) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise _wrong(at, f"is no list of at most {most}")
        for index, each in enumerate(value):
            check(each, f"{at}[{index}]")

    return look


def _members(shape: Mapping[str, Check]) -> Check:
    return lambda value, at: _object(value, at, shape)


def _object(value: object, at: str, shape: Mapping[str, Check]) -> None:
    if not isinstance(value, dict):
        raise _wrong(at, "is no object")
    for key, member in value.items():
        if key not in shape:
            raise _wrong(f"{at}.{plain(key)}".lstrip("."), "is not part of a report")
        shape[key](member, f"{at}.{key}".lstrip("."))


def _table(value: object, at: str) -> None:
    _object(value, at, _TABLE)
    columns = len(value.get("columns", ())) if isinstance(value, dict) else 0
    for index, row in enumerate(value.get("rows", ()) if isinstance(value, dict) else ()):
        if len(row.get("cells", ())) != columns:
            raise _wrong(f"{at}.rows[{index}]", f"has not a cell for each of {columns} columns")


def _cell(value: object, at: str) -> None:
    _object(value, at, {"text": _line, "number": _number})
    if isinstance(value, dict) and len(value) > 1:
        raise _wrong(at, "holds both a text and a number")


def _pictures(content: Mapping[str, Any]) -> Iterator[str]:
    for section in content.get("sections", ()):
        for picture in section.get("pictures", ()):
            yield picture.get("file", "")


def _rows(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for section in content.get("sections", ()):
        for table in section.get("tables", ()):
            yield from table.get("rows", ())


_ROW = {"cells": _list_of(_cell, MAX_COLUMNS)}
_TABLE = {
    "caption": _line,
    "columns": _list_of(_line, MAX_COLUMNS),
    "rows": _list_of(_members(_ROW), MAX_ROWS),
}
_NUMBER = {"name": _line, "value": _number, "unit": _line}
_PICTURE_SHAPE = {"file": _line, "caption": _line}
_SECTION = {
    "heading": _line,
    "text": _text,
    "numbers": _list_of(_members(_NUMBER), MAX_NUMBERS),
    "tables": _list_of(_table, MAX_TABLES),
    "pictures": _list_of(_members(_PICTURE_SHAPE), MAX_PICTURES),
}
_CONTENT = {"title": _line, "sections": _list_of(_members(_SECTION), MAX_SECTIONS)}


def _few(files: list[str]) -> str:
    """Some of them, in a sentence."""
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return (", ".join(shown(file) for file in sorted(files)[:_NAMED]) or "none") + more


def _wrong(at: str, why: str) -> InvalidInput:
    where = f"{REPORT_FILE}: {at or 'the whole'}"
    return InvalidInput(f"{where} {why}.", fields={REPORT_FILE: f"{at} {why}"})
