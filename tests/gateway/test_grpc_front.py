"""The gRPC front, end to end: a client, a gateway, workers that say what is scripted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from appliance.core.errors import Exhausted, Internal
from appliance.core.identity import PrincipalKind
from appliance.gateway import service
from appliance.gateway.config import GatewayLimits
from appliance.wire.status import from_rpc_error
from tests.fakes.gateway import Stage, stage, until
from tests.fakes.routing import ENDPOINT
from tests.fakes.wire import connect
from tests.fakes.worker import STORY, Worker, story, tokenizer


async def test_an_answer_streams(tmp_path: Path) -> None:
    async with stage(tmp_path, Worker("a")) as found, found.client() as client:
        pieces = [piece async for piece in client.generate(ENDPOINT, prompt="Hallo", max_tokens=40)]
    tokens = [token for piece in pieces for token in piece.token_ids]
    assert tokens == story(5, 40)
    assert "".join(piece.text for piece in pieces) == tokenizer().decode(tokens)
    assert pieces[-1].totals.prompt_tokens == 5
    assert pieces[-1].totals.completion_tokens == 40
    assert STORY


REFUSED = {"UNAUTHENTICATED", "RESOURCE_EXHAUSTED"}
GENERATE = "/appliance.api.inference.v1.InferenceService/Generate"


@pytest.mark.attack
async def test_what_strangers_send_is_counted_and_holds_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No token, held or malformed: 300 calls are one row, and no usage of anybody."""
    async with stage(tmp_path, Worker("a")) as found, connect_to(found) as channel:
        held = channel.stream_stream(GENERATE)
        for _ in range(100):
            assert await reason(held()) in REFUSED
            assert await reason(channel.unary_stream(GENERATE)(b"\xff")) in REFUSED
            assert await reason(channel.unary_stream("/x/y")(b"")) == "UNKNOWN_METHOD"
        assert len(found.control.usages) == 0
        (row,) = found.gateway.refusals.drain()
        assert (row.source, row.principal, row.count) == ("127.0.0.1", "", 300)
        assert row.methods == {"inference": 200, "unknown": 100}
    assert "Traceback" not in caplog.text


@pytest.mark.attack
async def test_a_malformed_message_of_a_known_caller_is_a_record_with_its_name(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path, Worker("a")) as found, connect_to(found) as channel:
        metadata = (("authorization", f"Bearer {found.token}"),)
        call = channel.unary_stream(GENERATE)(b"\xff", metadata=metadata)
        assert await reason(call) == "INVALID_INPUT"
        await until(lambda: len(found.control.usages) == 1)
        (usage,) = found.control.usages
        assert (usage.principal, usage.reason) == ("serviceAccounts/app", "INVALID_INPUT")


async def test_what_a_known_caller_calls_that_is_none_is_no_inference(tmp_path: Path) -> None:
    async with stage(tmp_path, Worker("a")) as found, connect_to(found) as channel:
        metadata = (("authorization", f"Bearer {found.token}"),)
        call = channel.unary_stream("/x/y")(b"", metadata=metadata)
        assert await reason(call) == "UNKNOWN_METHOD"
        (row,) = found.gateway.refusals.drain()
        assert (row.principal, row.count) == ("serviceAccounts/app", 1)
        assert row.methods == {"unknown": 1}
        assert found.control.usages == []


@pytest.mark.attack
async def test_a_known_caller_makes_so_many_calls_a_second(tmp_path: Path) -> None:
    limits = GatewayLimits(calls_per_second=0.001, call_burst=2)
    async with stage(tmp_path, Worker("a"), limits=limits) as found, found.client() as client:
        for _ in range(2):
            async for _ in client.generate(ENDPOINT, prompt="Hallo", max_tokens=1):
                pass
        with pytest.raises(Exhausted) as refused:
            async for _ in client.generate(ENDPOINT, prompt="Hallo", max_tokens=1):
                pass
        assert refused.value.retry_after > 1


@pytest.mark.attack
@pytest.mark.parametrize("name", ["question_of", "_totals"])
async def test_no_fault_around_an_answer_takes_its_text_into_the_log(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    def broken(given: object) -> None:
        raise ValueError(f"secret {given!r}")

    monkeypatch.setattr(service, name, broken)
    async with stage(tmp_path, Worker("a")) as found, found.client() as client:
        with pytest.raises(Internal):
            async for _ in client.generate(ENDPOINT, prompt="Hallo", max_tokens=4):
                pass
        await until(lambda: len(found.control.usages) == 1)
        assert found.control.usages[0].reason == "INTERNAL"
    assert "ValueError at test_grpc_front.py:" in caplog.text
    assert "secret" not in caplog.text


def connect_to(found: Stage) -> grpc.aio.Channel:
    return connect(found.gateway.grpc_port, server=PrincipalKind.GATEWAY)


async def reason(call: Any) -> str:
    """The reason of the error a stream of answers ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    return from_rpc_error(raised.value).reason
