"""Bodies of the OpenAI-compatible API: what is taken, what is refused, and by which name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import InvalidInput
from appliance.gateway import openai_request as requests

CHAT: dict[str, Any] = {"model": "p/e", "messages": [{"role": "user", "content": "hi"}]}


def test_a_short_name_is_an_endpoint() -> None:
    assert requests.endpoint_of("p/e") == "projects/p/endpoints/e"
    assert requests.endpoint_of("projects/p/endpoints/e") == "projects/p/endpoints/e"
    assert requests.endpoint_of("gpt-9") == "gpt-9"


def test_a_chat_as_clients_send_it() -> None:
    request = requests.chat(
        {
            **CHAT,
            "temperature": 0,
            "top_p": 0.5,
            "max_completion_tokens": 7,
            "stop": "x",
            "seed": 3,
            "n": 1,
            "user": "u",
            "stream": True,
            "stream_options": {"include_usage": True},
            "tools": None,
        }
    )
    sampling = request.question.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.0, 0.5, 7)
    assert (list(sampling.stop), sampling.seed) == (["x"], 3)
    assert (request.stream, request.include_usage) == (True, True)
    assert request.question.messages == [{"role": "user", "content": "hi"}]


def test_defaults_are_the_apis() -> None:
    sampling = requests.chat(CHAT).question.sampling
    assert (sampling.temperature, sampling.top_p) == (1.0, 1.0)
    assert not sampling.HasField("max_tokens")
    assert not sampling.HasField("seed")
    text = requests.completion({"model": "p/e", "prompt": [1, 2]})
    assert (text.question.sampling.max_tokens, text.question.tokens) == (16, [1, 2])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": 1, "content": ""}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0]",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"stop": [1]}, "stop"),
        ({"seed": 1 << 70}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"model": ""}, "model"),
        ({"speed": 9}, "speed"),
    ],
)
def test_what_is_refused_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        requests.chat({**CHAT, **change})
    assert any(name.strip("'\"") == field for name in raised.value.fields)


@pytest.mark.attack
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"NaN", b'{"a": NaN}', b"\xff", b"[" * 100_000, b"9" * 5000]
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        requests.document(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [*requests.COMMON, *requests.UNSUPPORTED, "messages", "prompt", "max_completion_tokens"]
)


@pytest.mark.attack
@given(st.dictionaries(FIELDS, JSON, max_size=6))
def test_any_body_is_taken_or_refused(body: dict[str, Any]) -> None:
    for parse in (requests.chat, requests.completion):
        for base in ({}, CHAT):
            try:
                parse({**base, **body})
            except InvalidInput:
                continue
