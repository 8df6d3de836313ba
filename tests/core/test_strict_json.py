"""JSON that two readers could read differently."""

from __future__ import annotations

import pytest

from appliance.core.errors import InvalidInput
from appliance.core.strict_json import read_object, read_value


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
        (b"{", "is not JSON: see column 2"),
        (b'{\n "a": 1,\n b}', "is not JSON: see line 3, column 2"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"a":' * 100_000, "is nested more than 64 deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", "has a number of 5000 digits, 1000 are allowed"),
        (b'{"a": "\xed\xa0\x80"}', "is not JSON"),
        ('{"a": 1}'.encode("utf-16"), "is not JSON"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "is nested more than 64 deep"),
        (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", "is nested more than 64 deep"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_object("a.json", data)
    assert caught.value.message == f"a.json {why}."
    assert caught.value.fields == {"a.json": why}


def test_nesting_up_to_the_limit_is_read() -> None:
    read_object("a.json", b'{"a":' * 64 + b"1" + b"}" * 64)


def test_a_mark_at_the_start_and_whole_pairs_are_read() -> None:
    read = read_object("a.json", b'\xef\xbb\xbf{"\\ud83d\\ude00": ["\\uD83D\\uDE00", "\\\\ud800"]}')
    assert read == {"\U0001f600": ["\U0001f600", "\\ud800"]}


@pytest.mark.attack
@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b'{"model": "\\ud800"}', "model"),
        (b'{"stop": ["x", "a\\uDFFFb"]}', "stop[1]"),
        (b'{"messages": [{"role": "user", "content": [{"text": "\\udc00"}]}]}', None),
        (b'{"metadata": {"k": {"deep": "\\ud83d"}}}', "metadata.k.deep"),
        (b'{"a": {"\\ud800": 1}}', "a key of a"),
        (b'{"\\ud800": 1}', "a key of the top"),
        (b'{"\\ud83d\\ud83d\\ude00": 1}', "a key of the top"),
    ],
)
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(data: bytes, path: str | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_object("the body", data)
    expected = path or "messages[0].content[0].text"
    assert caught.value.message == (
        f"the body has half of a surrogate pair at {expected}: write whole characters."
    )
    assert caught.value.fields == {expected: "has half of a surrogate pair"}
    caught.value.message.encode()


@pytest.mark.attack
def test_a_path_of_hostile_keys_stays_short_and_printable() -> None:
    key = "\\u0000\\u001b[2J'" + "x" * 1000
    with pytest.raises(InvalidInput) as caught:
        read_object("a.json", f'{{"{key}": ["\\ud800"]}}'.encode())
    (path,) = caught.value.fields
    assert path.isprintable()
    assert len(path) < 80


def test_any_value_may_stand_at_the_top() -> None:
    assert read_value("the line", b"[1, 2]") == [1, 2]
