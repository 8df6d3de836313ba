"""What a report may say, and what a picture is."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import pytest

from appliance.core.errors import InvalidInput
from appliance.core.png import MAX_SIDE, SIGNATURE, check_picture
from appliance.core.report_content import (
    MAX_PICTURE_BYTES,
    MAX_PICTURES,
    MAX_REPORT_BYTES,
    check_report,
)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 2, height: int = 2, *more: bytes, end: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(6))
    parts = (chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND"))
    return SIGNATURE + b"".join(parts) + end


CONTENT: dict[str, Any] = {
    "title": "Perplexity",
    "sections": [
        {
            "heading": "Result",
            "text": "Two lines\nof text: äöü \U0001f600",
            "numbers": [{"name": "perplexity", "value": 12.5, "unit": ""}],
            "tables": [
                {
                    "caption": "Along the text",
                    "columns": ["tokens", "what"],
                    "rows": [{"cells": [{"number": 1}, {"text": "a"}]}, {"cells": [{}, {}]}],
                }
            ],
            "pictures": [{"file": "curve.png", "caption": "A curve"}],
        }
    ],
}


def files(content: Any = None, **pictures: bytes) -> dict[str, bytes]:
    data = content if isinstance(content, bytes) else json.dumps(content or CONTENT).encode()
    return {"report.json": data, "curve.png": png()} | pictures


def changed(path: str, value: Any) -> dict[str, Any]:
    """The content with a member changed; `a/0/b` is the path of one."""
    content = json.loads(json.dumps(CONTENT))
    *folders, last = path.split("/")
    place: Any = content
    for part in folders:
        place = place[int(part) if part.isdigit() else part]
    place[int(last) if last.isdigit() else last] = value
    return dict(content)


def test_a_report_is_read_as_it_was_written() -> None:
    assert check_report(files()) == CONTENT
    assert check_report({"report.json": b'{"title": "T"}'}) == {"title": "T"}


TABLE = "sections/0/tables/0"


@pytest.mark.attack
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[]", "not a JSON object"),
        (b'{"title": "a", "title": "b"}', "same key twice"),
        (b'{"title": NaN}', "where a number belongs"),
        ({"sections": []}, "title is empty"),
        (changed("title", "x" * 301), "title is no text of at most 300"),
        (changed("title", "two\nlines"), "title has a control character"),
        (changed("title", "\x1b]0;evil\x07"), "control character"),
        (changed("sections/0/text", "\x1b[2J"), r"sections\[0\]\.text has a control character"),
        (changed("sections/0/text", "\x9b2J"), "control character"),
        (changed("sections/0/text", "a\rb"), "control character"),
        (changed("sections/0/script", "x"), "is not part of a report"),
        (changed("sections", {"a": 1}), "is no list of at most 50"),
        (changed("sections", [{}] * 51), "is no list of at most 50"),
        (changed("sections/0", "text"), "is no object"),
        (changed("sections/0/numbers/0/value", True), "is no number"),
        (changed("sections/0/numbers/0/value", "1"), "is no number"),
        (changed("sections/0/numbers/0/value", 10**400), "is no number"),
        (changed(f"{TABLE}/columns", ["one"]), "has not a cell for each of 1 columns"),
        (changed(f"{TABLE}/rows/0/cells/0", {"text": "a", "number": 1}), "both a text and"),
        (changed(f"{TABLE}/rows/0/cells/0", {"html": "a"}), "is not part of a report"),
        (changed("sections/0/pictures/0/file", "other.png"), "but the files are"),
        (changed("sections/0/pictures", []), "but the files are"),
    ],
)
def test_what_is_no_report_is_refused(content: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        check_report(files(content))


@pytest.mark.attack
def test_all_tables_together_have_so_many_cells() -> None:
    """275,000 of them fit into a MiB, and took a second of the control plane for each reader."""
    table = {"columns": [""] * 32, "rows": [{"cells": [{}] * 32}] * 1000}
    largest = {"title": "T", "sections": [{"tables": [table]}]}
    assert check_report({"report.json": json.dumps(largest).encode()}) == largest
    largest["sections"] = [{"tables": [table]}, {"tables": [{"rows": [{}]}]}]
    with pytest.raises(InvalidInput, match="tables have more than 33000 rows and cells in all"):
        check_report({"report.json": json.dumps(largest).encode()})


@pytest.mark.attack
@pytest.mark.parametrize(
    "content",
    [
        changed("sections", [{"pictures": [{"file": "x" * 300}] * 16}] * 50),
        CONTENT | {"\x1b]0;evil\x07\u202e" * 1000: 1},
    ],
)
def test_a_refusal_quotes_little_and_nothing_that_acts(content: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_report(files(content))
    assert len(caught.value.message) < 600
    assert caught.value.message.isprintable()


@pytest.mark.attack
@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"curve.png": png()}, "no report.json"),
        (files() | {"evil.svg": b"<svg/>"}, r"evil\.svg is no picture of a report"),
        (files() | {"page.html": b"<html/>"}, "holds .png files alone"),
        (files() | {f"{n}.png": b"" for n in range(MAX_PICTURES)}, "17 pictures, 16 are allowed"),
        (files() | {"report.json": b" " * (MAX_REPORT_BYTES + 1)}, r"report\.json has"),
        (files() | {"curve.png": bytes(MAX_PICTURE_BYTES + 1)}, r"curve\.png has"),
    ],
)
def test_what_is_no_file_of_a_report_is_refused(found: dict[str, bytes], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        check_report(found)


def test_a_picture_says_its_size() -> None:
    assert check_picture("a.png", png(2, 3)) == (2, 3)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is no PNG"),
        (b"<svg onload='x'/>", "is no PNG"),
        (b"GIF89a" + bytes(20), "is no PNG"),
        (SIGNATURE, "does not end"),
        (png()[:-1], "is cut"),
        (png(end=b"MZ"), "is cut"),
        (png(end=chunk(b"IEND")), "does not end"),
        (png(end=chunk(b"zTXt", b"hidden")), "part 'zTXt' that no picture needs"),
        (png(2, 2, chunk(b"tEXt", b"Comment\0hidden")), "part 'tEXt'"),
        (png(2, 2, chunk(b"acTL", bytes(8))), "part 'acTL'"),
        (png(2, 2, chunk(b"pHYs", bytes(10))), "more in pHYs"),
        (png(2, 2, chunk(b"gAMA", bytes(4)), chunk(b"gAMA", bytes(4))), "more in gAMA"),
        (png().replace(chunk(b"IEND"), chunk(b"IEND", b"MZ")), "more in IEND"),
        (png(2, 2, chunk(b"IHDR", bytes(13))), "does not begin with its size"),
        (png(MAX_SIDE + 1, 1), "4097 x 1 pixels"),
        (png(0, 1), "0 x 1 pixels"),
        (SIGNATURE + chunk(b"IHDR", bytes(12)) + chunk(b"IEND"), "header that is none"),
        (SIGNATURE + chunk(b"IDAT") + chunk(b"IEND"), "does not begin with its size"),
        (png().replace(b"IDAT", b"IDAU"), "is damaged"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InvalidInput, match=rf"a\.png .*{why}"):
        check_picture("a.png", data)
