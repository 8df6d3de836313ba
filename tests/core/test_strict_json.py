"""JSON that two readers could read differently."""

from __future__ import annotations

import pytest

from appliance.core.errors import InvalidInput
from appliance.core.strict_json import read_object


def test_an_object_is_read() -> None:
    assert read_object("a.json", b'{"a": [1, {"b": null}], "c": {"a": "x"}}') == {
        "a": [1, {"b": None}],
        "c": {"a": "x"},
    }


@pytest.mark.attack
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a": 1, "a": 2}', "has the same key twice"),
        (b'{"a": 1, "\\u0061": 2}', "has the same key twice"),
        (b'{"x": [{"a": 1, "a": 1}]}', "has the same key twice"),
        (b'{"a": NaN}', "has NaN where a number belongs"),
        (b'{"a": -Infinity}', "has -Infinity where a number belongs"),
        (b"[1]", "is not a JSON object"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"a":' * 100_000, "is not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_object("a.json", data)
    assert caught.value.message == f"a.json {why}."
    assert caught.value.fields == {"a.json": why}
