import asyncio

import pytest

from appliance.api.inference.v1 import generation_pb2, inference_service_pb2
from appliance.client.connection import Connection
from appliance.client.inference import AsyncInference, generate, question
from appliance.core.errors import NotFound
from appliance.core.identity import PrincipalKind
from tests.fakes.control_api import FakeApi

ENDPOINT = "projects/p/endpoints/e"
PIECES = [
    inference_service_pb2.GenerateResponse(text="one ", token_ids=[1]),
    inference_service_pb2.GenerateResponse(
        text="two", token_ids=[2], finish_reason=generation_pb2.FINISH_REASON_STOP
    ),
]


async def test_an_answer_streams_to_code_with_an_event_loop(api: FakeApi) -> None:
    api.answers["InferenceService.Generate"] = PIECES
    async with AsyncInference(api.gateway_address, api.ca_pem, "token") as client:
        pieces = [
            piece
            async for piece in client.generate(
                ENDPOINT, messages=[("user", "hi")], max_tokens=5, temperature=0.0
            )
        ]
    assert "".join(piece.text for piece in pieces) == "one two"
    (call,) = api.calls
    assert call.token == "token"
    assert call.request.chat.messages[0].content == "hi"
    assert call.request.sampling.max_tokens == 5


async def test_a_refusal_is_our_error(api: FakeApi) -> None:
    api.answers["InferenceService.Generate"] = NotFound("no such endpoint")
    async with AsyncInference(api.gateway_address, api.ca_pem, "token") as client:
        with pytest.raises(NotFound, match="no such endpoint"):
            await asyncio.wait_for(anext(client.generate(ENDPOINT, prompt="x")), 10)


def test_an_answer_streams_to_code_without_one(api: FakeApi) -> None:
    api.answers["InferenceService.Generate"] = PIECES
    request = question(ENDPOINT, prompt="x", sampling=generation_pb2.Sampling(seed=3))
    address, kind = api.gateway_address, PrincipalKind.GATEWAY
    with Connection(address, api.ca_pem, "token", server=kind) as connection:
        assert [piece.text for piece in generate(connection, request)] == ["one ", "two"]
    assert api.calls[0].request.prompt == "x"
