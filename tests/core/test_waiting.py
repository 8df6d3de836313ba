import pytest

from appliance.core.waiting import in_seconds


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1.0, "1 second"),
        (0.0, "1 second"),
        (0.2, "1 second"),
        (1.0, "1 second"),
        (1.01, "2 seconds"),
        (59.5, "60 seconds"),
    ],
)
def test_a_time_to_wait_is_rounded_up(seconds: float, said: str) -> None:
    assert in_seconds(seconds) == said
