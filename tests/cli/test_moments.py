"""Ages, durations and sizes as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from appliance.cli import moments, output

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0s"),
        (0.4, "0s"),
        (59, "59s"),
        (60, "1m"),
        (200, "3m20s"),
        (3599, "59m"),
        (3600, "1h"),
        (7000, "1h56m"),
        (52 * 3600, "2d4h"),
        (12 * 86400 + 5000, "12d"),
        (-5, "0s"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, said: str) -> None:
    assert moments.duration(seconds) == said


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1.5h", 5400), ("2d4h", 52 * 3600), ("1w", 7 * 86400)],
)
def test_durations_are_read_as_they_are_written(text: str, seconds: float) -> None:
    assert moments.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "-1h", "1y", "1h 2m", "nan"])
def test_what_is_no_duration(text: str) -> None:
    assert moments.seconds_of(text) is None


def test_a_time_is_said_by_how_far_away_it_is() -> None:
    assert moments.ago("2026-11-28T11:57:00.123456789Z", NOW) == "3m ago"
    assert moments.ago("2026-12-27T12:00:00Z", NOW) == "in 29d"
    assert moments.ago("whenever", NOW) == "whenever"
    assert moments.clock("2026-11-28T11:57:00.5Z") == "2026-11-28 11:57:00 UTC"


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (3 << 40, "3.0 TiB")],
)
def test_bytes(size: int, said: str) -> None:
    assert output.in_bytes(size) == said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("projects/demo/datasets/docs/versions/3", "docs/3"),
        ("projects/demo/jobs/first/checkpoints/e1-step-5", "first/e1-step-5"),
        ("projects/demo", "demo"),
        ("users/alice", "alice"),
        ("", ""),
        ("word", "word"),
    ],
)
def test_names_are_short_as_they_are_typed(name: str, said: str) -> None:
    assert output.short_name(name) == said
