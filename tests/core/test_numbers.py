"""Numbers in sentences are digits that a person reads."""

import math

import pytest

from appliance.core.numbers import span, written


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (-5, "-5"),
        (100, "100"),
        (65536, "65,536"),
        (99_999_999, "99,999,999"),
        (1 << 63, "9,223,372,036,854,775,808"),
        (0.0, "0"),
        (0.5, "0.5"),
        (0.001, "0.001"),
        (1e-9, "0.000000001"),
        (1e6, "1,000,000"),
        (1e22, "10,000,000,000,000,000,000,000"),
        (1234.5, "1,234.5"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_a_number_is_written_in_digits(value: float, text: str) -> None:
    assert written(value) == text


def test_a_span_has_an_end_or_says_that_it_has_none() -> None:
    assert span(1) == "1 or more"
    assert span(512, 65536) == "512 to 65,536"
    assert span(0.000001, 10.0) == "0.000001 to 10"
