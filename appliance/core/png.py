"""Whether bytes are a PNG picture and nothing else (PNG, third edition, W3C 2025).

Rules kept here:
* every chunk is one of a few that hold pixels, colours and sizes, with a right checksum; text,
  dates, animations and profiles are not among them, and none holds more than belongs in it;
* the first chunk says size and colours, the last one ends the file, and nothing follows it;
* a picture has so many pixels at most: what is small as a file can be large as a picture.

The attack: another file under the name of a picture, something hidden behind its end, a picture
that takes all memory of who looks at it. Pixels are not decompressed here.

Pure. Called by whoever writes a report, and again before one is registered.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from appliance.core.errors import InvalidInput
from appliance.core.names import shown

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SIDE = 4096
_LARGEST = {
    b"IHDR": 13, b"PLTE": 768, b"tRNS": 256, b"gAMA": 4, b"sRGB": 1, b"pHYs": 9, b"IEND": 0
}  # fmt: skip
"""Bytes in a chunk, each of which a picture has once; of pixels there is no such bound."""
_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
"""Bits by kind of colour."""


def check_picture(file: str, data: bytes) -> tuple[int, int]:
    """Width and height of a picture. Raises InvalidInput naming the file."""
    kinds: list[bytes] = []
    size = (0, 0)
    for kind, content in _chunks(file, data):
        if kind != b"IDAT" and kind not in _LARGEST:
            raise _wrong(file, f"has a part {shown(kind.decode('latin-1'))} that no picture needs")
        if (kind == b"IHDR") is not (not kinds):
            raise _wrong(file, "does not begin with its size")
        again = kind not in {b"IDAT", b"IEND"} and kind in kinds
        if again or len(content) > _LARGEST.get(kind, len(content)):
            raise _wrong(file, f"has more in {kind.decode()} than a picture needs")
        if kind == b"IHDR":
            size = _size(file, content)
        kinds.append(kind)
    if kinds[-1:] != [b"IEND"] or b"IDAT" not in kinds or kinds.count(b"IEND") > 1:
        raise _wrong(file, "does not end as a PNG file does")
    return size


def _chunks(file: str, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not data.startswith(SIGNATURE):
        raise _wrong(file, "is no PNG picture")
    at = len(SIGNATURE)
    while at < len(data):
        if len(data) - at < 12:
            raise _wrong(file, "is cut")
        length, kind = struct.unpack_from(">I4s", data, at)
        content, end = data[at + 8 : at + 8 + length], at + 12 + length
        if end > len(data):
            raise _wrong(file, "is cut")
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(kind + content) != checksum:
            raise _wrong(file, "is damaged")
        yield kind, content
        at = end


def _size(file: str, header: bytes) -> tuple[int, int]:
    if len(header) != 13:
        raise _wrong(file, "has a header that is none")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(
        ">IIBBBBB", header
    )
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise _wrong(file, "has a header that is none")
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise _wrong(file, f"has {width} x {height} pixels; 1 to {MAX_SIDE} each way are allowed")
    return width, height


def _wrong(file: str, why: str) -> InvalidInput:
    return InvalidInput(f"{file} {why}.", fields={file: why})
