"""What the OpenAI-compatible front refuses, and how callers leave it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.gateway import http, openai_sender
from appliance.gateway.config import GatewayLimits
from tests.fakes.gateway import Stage, stage, until
from tests.fakes.worker import Script, Worker

CHAT: dict[str, Any] = {
    "model": "p/e",
    "messages": [{"role": "user", "content": "Hallo"}],
    "max_tokens": 8,
}


def trust(found: Stage) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=found.folder / "ca.pem")


@pytest.fixture
async def found(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path, Worker("a", Script(seconds=0.005))) as made:
        yield made


@pytest.fixture
async def client(found: Stage) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {found.token}"}
    async with httpx.AsyncClient(
        verify=trust(found), base_url=found.openai, headers=headers, timeout=20
    ) as made:
        yield made


async def post(client: httpx.AsyncClient, **changes: Any) -> httpx.Response:
    return await client.post("/chat/completions", json={**CHAT, **changes})


def error_of(answer: httpx.Response) -> tuple[int, Any, Any]:
    error = answer.json()["error"]
    assert isinstance(error["message"], str)
    return answer.status_code, error["code"], error["param"]


@pytest.mark.attack
async def test_a_stranger_gets_401_whatever_else_it_sends(
    found: Stage, client: httpx.AsyncClient
) -> None:
    spoof = {"x-forwarded-user": "users/root", "x-principal": "users/root"}
    for wrong in ({"authorization": ""}, {"authorization": "Bearer sla_svc_x"}):
        answer = await client.post("/chat/completions", json=CHAT, headers={**wrong, **spoof})
        assert error_of(answer) == (401, "invalid_api_key", None)
        assert (await client.get("/models", headers=wrong)).status_code == 401
    assert found.workers[0].submits == []


async def test_each_mistake_has_its_status(client: httpx.AsyncClient) -> None:
    assert error_of(await post(client, model="p/other")) == (404, "model_not_found", "model")
    assert error_of(await post(client, n=3)) == (400, None, "n")
    assert error_of(await post(client, temperature=9)) == (400, None, "temperature")
    assert error_of(await post(client, stop=[""])) == (400, None, "stop")
    long = [{"role": "user", "content": "x" * 600}]
    exceeded = (400, "context_length_exceeded", "prompt")
    assert error_of(await post(client, messages=long)) == exceeded
    tool = [{"role": "tool", "content": "x"}]
    assert error_of(await post(client, messages=tool)) == (400, None, "messages")
    assert (await client.get("/chat/completions")).status_code == 405
    assert (await client.get("/nothing")).status_code == 404
    broken = await client.post("/chat/completions", content=b"{")
    assert error_of(broken)[0] == 400


@pytest.mark.attack
async def test_a_body_too_large_is_refused_told_or_not(
    found: Stage, client: httpx.AsyncClient
) -> None:
    big = json.dumps({**CHAT, "user": "x" * (1 << 20)}).encode()
    assert (await client.post("/chat/completions", content=big)).status_code == 413

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(big), 1 << 16):
            yield big[at : at + (1 << 16)]

    assert (await client.post("/chat/completions", content=pieces())).status_code == 413
    await until(lambda: len(found.control.usages) == 2)
    assert {usage.reason for usage in found.control.usages} == {"BODY_TOO_LARGE"}


async def test_too_many_at_once_is_429_and_cut_off_is_503(tmp_path: Path) -> None:
    slow = Worker("a", Script(seconds=0.05))
    limits = GatewayLimits(calls_per_caller=1)
    async with stage(tmp_path, slow, limits=limits, stale_view_seconds=0.6) as found:
        headers = {"authorization": f"Bearer {found.token}"}
        async with httpx.AsyncClient(
            verify=trust(found), base_url=found.openai, headers=headers
        ) as client:
            first = asyncio.create_task(post(client))
            await until(lambda: slow.running == 1)
            refused = await post(client)
            assert error_of(refused) == (429, "rate_limit_exceeded", None)
            assert refused.headers["retry-after"] == "1"
            assert (await first).status_code == 200
            await found.control.stop()
            await until(lambda: not found.gateway.view.decides)
            refused = await post(client)
            assert error_of(refused) == (503, "service_unavailable", None)
            assert refused.headers["retry-after"] == "2"
            await found.control.start()


@pytest.mark.attack
async def test_the_request_id_is_never_the_callers(found: Stage, client: httpx.AsyncClient) -> None:
    headers = {"x-request-id": "somebody-elses"}
    answers = [await client.post("/chat/completions", json=CHAT, headers=headers) for _ in range(2)]
    shown = [answer.headers["x-request-id"] for answer in answers]
    assert len({*shown, "somebody-elses"}) == 3
    assert answers[0].headers["x-continuations"] == "0"
    await until(lambda: len(found.control.usages) == 2)
    assert [usage.request_id for usage in found.control.usages] == shown


@pytest.mark.parametrize("stream", [True, False])
async def test_whoever_hangs_up_frees_the_slot(found: Stage, *, stream: bool) -> None:
    (worker,) = found.workers
    headers = {"authorization": f"Bearer {found.token}"}
    body = {**CHAT, "max_tokens": 400, "stream": stream}
    async with httpx.AsyncClient(verify=trust(found), headers=headers) as client:
        call = asyncio.create_task(
            client.post(f"{found.openai}/chat/completions", json=body, timeout=20)
        )
        await until(lambda: worker.running == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: worker.running == 0, 1.0)
    await until(lambda: found.gateway.pipeline.running == 0)
    await until(lambda: len(found.control.usages) == 1)
    assert found.control.usages[0].reason == "CANCELLED"


async def test_an_answer_that_fails_midway_says_so(found: Stage) -> None:
    (worker,) = found.workers
    headers = {"authorization": f"Bearer {found.token}"}
    body = {**CHAT, "max_tokens": 400, "stream": True}
    async with (
        httpx.AsyncClient(verify=trust(found), headers=headers) as client,
        client.stream("POST", f"{found.openai}/chat/completions", json=body, timeout=20) as call,
    ):
        lines = call.aiter_lines()
        assert "assistant" in await anext(lines)
        del found.control.view.credentials[:]
        found.control.publish()
        rest = [line async for line in lines if line]
    last = json.loads(rest[-1].removeprefix("data: "))
    assert last["error"]["code"] == "invalid_api_key"
    assert "data: [DONE]" not in rest
    await until(lambda: worker.running == 0)


@pytest.mark.attack
@pytest.mark.parametrize("said", [b"", b"POST /v1/chat"])
async def test_a_connection_that_says_nothing_is_closed(
    found: Stage, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", found.gateway.http.port, ssl=trust(found)
    )
    writer.write(said)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


@pytest.mark.attack
async def test_old_tls_is_refused(found: Stage) -> None:
    context = trust(found)
    assert context.maximum_version == ssl.TLSVersion.MAXIMUM_SUPPORTED
    async with asyncio.timeout(5):
        _, writer = await asyncio.open_connection("127.0.0.1", found.gateway.http.port, ssl=context)
        spoken = writer.get_extra_info("ssl_object").version()
        writer.close()
        assert spoken in ("TLSv1.2", "TLSv1.3")
        assert found.gateway.front.context.minimum_version >= ssl.TLSVersion.TLSv1_2


async def test_a_stream_that_waits_for_a_replica_is_kept_alive(
    found: Stage, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_sender, "KEEP_ALIVE_SECONDS", 0.4)
    (worker,) = found.workers
    worker.script = Script(seconds=0.02)
    found.control.view.routes[0].replicas.add(id="b", state="STATE_STARTING", epoch=1)
    found.control.publish()
    body = {**CHAT, "max_tokens": 40, "stream": True}
    seen: list[str] = []
    async with client.stream("POST", "/chat/completions", json=body) as call:
        async for line in call.aiter_lines():
            seen += [line] if line else []
            if len(seen) == 3:
                await worker.stop()
            if line.startswith(":") and sum(each.startswith(":") for each in seen) == 2:
                await worker.start()
    comments = [line for line in seen if line.startswith(":")]
    assert set(comments) == {": waits for a replica"}
    assert seen[-1] == "data: [DONE]"
    assert not any("error" in line for line in seen)
