"""What benches call a miss, and what they only say."""

from __future__ import annotations

from typing import Any

from bench import flood, prompt_pause


def row(**changes: Any) -> dict[str, Any]:
    calm = {"flood": "pings", "listener": "control", "missed": []}
    return {**calm, "shared_lost": 0, "shared_calls": 75, **changes}


def test_records_that_come_late_have_a_bar() -> None:
    assert flood.misses([row()], late=10) == []
    assert flood.misses([row(missed=["2 calls lost"])], late=11) == [
        "pings control: 2 calls lost",
        "11 records in the minute after the last flood",
    ]


def test_what_a_shared_address_loses_is_said_and_is_no_miss() -> None:
    rows = [row(), row(flood="resets", shared_lost=9)]
    assert flood.notes(rows) == ["resets control: 9 of 75"]
    assert flood.misses(rows, late=0) == []


def test_the_worst_pause_stands_beside_the_median() -> None:
    found = prompt_pause.summary("text_1", [1.0, 2.0, 3.0], [11.0, 12.0, 203.0])
    assert found == {
        "text_1_quiet_gap_milliseconds": 2.0,
        "text_1_gap_milliseconds": 12.0,
        "text_1_worst_gap_milliseconds": 203.0,
        "text_1_median_pause_milliseconds": 10.0,
        "text_1_worst_pause_milliseconds": 200.0,
    }
