"""Audit records: one canonical line each, whatever is in the fields."""

import json
from typing import Any

import hypothesis.strategies as some
import pytest
import rfc8785
from hypothesis import given, settings

from appliance.control.audit.record import MAX_TEXT, AuditEntry, line_of, prepare
from appliance.core.errors import InvalidInput
from appliance.wire.recorded import UNSHAPED
from tests.fakes.state import START

JSON_VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3),
    max_leaves=8,
)


def _line(entry: AuditEntry) -> bytes:
    return line_of(prepare(entry, START), 7, "0" * 64, 12)


def test_a_record() -> None:
    entry = AuditEntry(
        "result",
        request_id="r1",
        principal="users/alice",
        method="/x.Jobs/CreateJob",
        resource="projects/demo",
        outcome="OK",
        source="ipv4:10.0.0.7:5",
        details={"policy_version": 3, "seconds": 0.5},
    )
    assert _line(entry) == (
        b'{"details":{"policy_version":3,"seconds":0.5},"generation":12,"kind":"result","method":"/x.Jobs/CreateJob",'
        b'"outcome":"OK","previous":"' + b"0" * 64 + b'","principal":"users/alice",'
        b'"request_id":"r1","resource":"projects/demo","sequence":7,"source":"ipv4:10.0.0.7:5",'
        b'"time":"2026-11-22T12:00:00.000000Z"}'
    )


@pytest.mark.attack
@settings(max_examples=150, deadline=None)
@given(
    text=some.text(alphabet=some.characters(), max_size=40),
    details=some.dictionaries(some.text(), JSON_VALUES),
)
def test_every_field_makes_one_canonical_line(text: str, details: dict[str, Any]) -> None:
    entry = AuditEntry("denied", text, text, text, text, text, text, details)
    line = _line(entry)
    assert b"\n" not in line
    parsed = json.loads(line)
    assert rfc8785.dumps(parsed) == line
    assert parsed["method"] == text.encode(errors="replace").decode()
    assert parsed["resource"] in {text, UNSHAPED}
    assert set(parsed) == {
        "details", "generation", "kind", "method", "outcome", "previous", "principal", "request_id",
        "resource", "sequence", "source", "time",
    }  # fmt: skip


@pytest.mark.attack
@pytest.mark.parametrize(
    "hostile",
    ['x"}\n{"sequence":8', "a\r\nb", "\u202egnp.exe", "\u2028", "\ud800", "\0", "x" * 1_000_000],
)
def test_hostile_names_stay_in_their_field(hostile: str) -> None:
    line = _line(
        AuditEntry("denied", resource=hostile, details={hostile: hostile, "deep": [[[[[[1]]]]]]})
    )
    assert line.count(b"\n") == 0
    assert len(line) < 5 * MAX_TEXT
    assert json.loads(line)["sequence"] == 7


def test_numbers_that_json_has_not_become_text() -> None:
    details = {"big": 2**60, "inf": float("inf"), "nan": float("nan"), "small": -(2**53) + 1}
    assert json.loads(_line(AuditEntry("inference", details=details)))["details"] == {
        "big": str(2**60),
        "inf": "inf",
        "nan": "nan",
        "small": -(2**53) + 1,
    }


def test_an_unknown_kind_is_a_mistake() -> None:
    with pytest.raises(InvalidInput, match="not a kind"):
        AuditEntry("maybe")
