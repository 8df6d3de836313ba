"""What may be asked of the choice of tokens, at the gateway and at the worker."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.api.inference.v1.generation_pb2 import Sampling
from appliance.core.errors import InvalidInput
from appliance.wire.sampling import HOTTEST, MAX_SEED, check_choice


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"temperature": 0.0, "top_p": 0.0, "top_k": 0, "seed": 0, "max_tokens": 1},
        {"temperature": HOTTEST, "top_p": 1.0, "seed": MAX_SEED},
        {"seed": -MAX_SEED, "stop": ["x"] * 100},
    ],
)
def test_what_an_engine_takes_is_taken(asked: dict[str, Any]) -> None:
    check_choice(Sampling(**asked))


@pytest.mark.attack
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", each) for each in (-0.5, 2.5, float("nan"), float("inf"))),
        *(("top_p", each) for each in (-0.5, 1.5, float("nan"))),
        ("top_k", -1),
        ("max_tokens", 0),
        ("seed", -MAX_SEED - 1),
    ],
)
def test_what_no_engine_takes_is_refused_by_its_field(field: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"^{field} ") as refused:
        check_choice(Sampling(**{field: value}))
    assert set(refused.value.fields) == {field}
