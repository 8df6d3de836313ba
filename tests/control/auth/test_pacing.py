"""Paced work is all of the work, with pauses."""

import pytest

from appliance.control.auth import pacing


@pytest.mark.parametrize(("slice_seconds", "pauses"), [(-1.0, 3), (1e6, 0)])
def test_paced_work_pauses_after_each_slice(
    monkeypatch: pytest.MonkeyPatch, slice_seconds: float, pauses: int
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(pacing.time, "sleep", slept.append)
    monkeypatch.setattr(pacing, "SLICE_SECONDS", slice_seconds)
    assert list(pacing.paced("abc")) == ["a", "b", "c"]
    assert slept == [pacing.PAUSE_SECONDS] * pauses
