"""A curve as a small PNG picture, without a library: grey grid, black axes, one blue line.

It has no letters; its caption says what the axes are and where they begin and end. For what wants
more, a job brings its own PNG bytes. The format: PNG, third edition (W3C 2025); lines: Bresenham
1965.

Pure. Called by kinds of jobs that write a report.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

from appliance.core.png import SIGNATURE

WIDTH, HEIGHT, MARGIN = 640, 360, 12
_GRID = 4
_WHITE, _GREY, _BLACK, _BLUE = range(4)
_PALETTE = bytes((255, 255, 255, 224, 224, 224, 0, 0, 0, 31, 119, 180))


def curve(points: Sequence[tuple[float, float]]) -> bytes:
    """A PNG file with a line through points; the axes reach from the least to the largest value.

    Args:
        points: (x, y), finite, one or more.
    """
    columns = _scaled([x for x, _ in points], WIDTH)
    # Rows are counted from above.
    rows = [HEIGHT - 1 - row for row in _scaled([y for _, y in points], HEIGHT)]
    pixels = [bytearray(WIDTH) for _ in range(HEIGHT)]
    left, right, top, bottom = MARGIN, WIDTH - 1 - MARGIN, MARGIN, HEIGHT - 1 - MARGIN
    for part in range(1, _GRID + 1):
        row = bottom - (bottom - top) * part // _GRID
        column = left + (right - left) * part // _GRID
        _draw(pixels, (left, row), (right, row), _GREY)
        _draw(pixels, (column, top), (column, bottom), _GREY)
    _draw(pixels, (left, bottom), (right, bottom), _BLACK)
    _draw(pixels, (left, top), (left, bottom), _BLACK)
    corners = list(zip(columns, rows, strict=True))
    for begin, end in zip(corners, corners[1:] or corners, strict=False):
        _draw(pixels, begin, end, _BLUE)
        _draw(pixels, (begin[0], begin[1] - 1), (end[0], end[1] - 1), _BLUE)
    return _png(pixels)


def _scaled(values: Sequence[float], size: int) -> list[int]:
    """Where values lie between the margins."""
    least, most = min(values), max(values)
    room = size - 1 - 2 * MARGIN
    span = most - least
    if span <= 0:
        return [size // 2] * len(values)
    return [MARGIN + round((value - least) / span * room) for value in values]


def _draw(
    pixels: Sequence[bytearray], begin: tuple[int, int], end: tuple[int, int], colour: int
) -> None:
    for x, y in _line(begin, end):
        pixels[y][x] = colour


def _line(begin: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The pixels of a line, both ends included."""
    (x, y), (to_x, to_y) = begin, end
    wide, high = abs(to_x - x), -abs(to_y - y)
    step_x, step_y = (1 if x < to_x else -1), (1 if y < to_y else -1)
    error = wide + high
    while True:
        yield x, y
        if (x, y) == (to_x, to_y):
            return
        twice = 2 * error
        if twice >= high:
            error += high
            x += step_x
        if twice <= wide:
            error += wide
            y += step_y


def _png(pixels: Sequence[bytearray]) -> bytes:
    # One byte a pixel, an index into the palette; each row says that it is not filtered.
    header = struct.pack(">IIBBBBB", len(pixels[0]), len(pixels), 8, 3, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(row) for row in pixels), 9)
    chunks = ((b"IHDR", header), (b"PLTE", _PALETTE), (b"IDAT", rows), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
