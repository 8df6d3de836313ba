from __future__ import annotations

from typing import Any

import pytest

from appliance.api.inference.v1 import generation_pb2, worker_service_pb2
from appliance.core.errors import InvalidInput
from appliance.worker.requests import EngineLimits, EngineRequest, request_of

LIMITS = EngineLimits(sequence_length=10, vocabulary=100)


def submit(prompt: Any = (1, 2, 3), ends: Any = (9,), **sampling: Any) -> worker_service_pb2.Submit:
    return worker_service_pb2.Submit(
        id=1,
        prompt_token_ids=prompt,
        end_token_ids=ends,
        sampling=generation_pb2.Sampling(**sampling),
    )


def test_what_is_not_said_is_made_definite() -> None:
    assert request_of(submit(), LIMITS) == EngineRequest([1, 2, 3], 7, 0.0, 1.0, 0, None, [9])


def test_what_is_said_is_kept() -> None:
    found = request_of(
        submit(max_tokens=2, temperature=0.5, top_p=0.25, top_k=3, seed=0, ignore_end=True), LIMITS
    )
    assert found == EngineRequest([1, 2, 3], 2, 0.5, 0.25, 3, 0, [])


def test_a_share_of_nothing_leaves_the_likeliest_token() -> None:
    found = request_of(submit(temperature=1.5, top_p=0.0), LIMITS)
    assert (found.temperature, found.top_p) == (0.0, 1.0)


def test_an_answer_ends_with_the_context() -> None:
    assert request_of(submit(max_tokens=50), LIMITS).max_tokens == 7


@pytest.mark.parametrize(
    "wrong",
    [
        submit(prompt=()),
        submit(prompt=range(10)),
        submit(prompt=[100]),
        submit(ends=[100]),
        submit(ends=[1] * 65),
        submit(max_tokens=-1),
        submit(max_tokens=0),
        submit(temperature=-0.5),
        submit(temperature=float("nan")),
        submit(temperature=float("inf")),
        submit(temperature=2.5),
        submit(top_p=1.5),
        submit(top_p=float("nan")),
        submit(top_k=-1),
        submit(stop=["x"]),
    ],
)
def test_what_the_engine_cannot_do_is_refused(wrong: worker_service_pb2.Submit) -> None:
    with pytest.raises(InvalidInput):
        request_of(wrong, LIMITS)
