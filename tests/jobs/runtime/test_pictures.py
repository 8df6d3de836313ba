"""A curve that any reader of PNG shows as it was drawn."""

from __future__ import annotations

import struct
import zlib

import pytest

from appliance.core.png import check_picture
from appliance.jobs.runtime.pictures import HEIGHT, MARGIN, WIDTH, curve


def pixels(data: bytes) -> list[bytes]:
    """The rows of a picture with one byte a pixel."""
    start = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[start - 4 : start])
    rows = zlib.decompress(data[start + 4 : start + 4 + length])
    return [rows[row * (WIDTH + 1) + 1 : (row + 1) * (WIDTH + 1)] for row in range(HEIGHT)]


def test_a_line_goes_from_its_first_point_to_its_last() -> None:
    data = curve([(0, 1.0), (10, 3.0)])
    assert check_picture("curve.png", data) == (WIDTH, HEIGHT)
    found = pixels(data)
    assert found[HEIGHT - 1 - MARGIN][MARGIN] == 3
    assert found[MARGIN][WIDTH - 1 - MARGIN] == 3
    # In each column between the margins there is some of the line.
    assert all(any(row[column] == 3 for row in found) for column in range(MARGIN, WIDTH - MARGIN))
    assert not any(row[0] or row[-1] for row in found)


@pytest.mark.parametrize("points", [[(1, 1.0)], [(1, 5.0), (2, 5.0)], [(3, 1e300), (3, -1e300)]])
def test_points_without_extent_are_drawn_too(points: list[tuple[float, float]]) -> None:
    assert any(3 in row for row in pixels(curve(points)))


def test_many_points_make_a_small_file() -> None:
    assert len(curve([(n, n % 7) for n in range(5000)])) < 20_000
