"""What the HTTPS front refuses: in its own dialect, with an id, counted or recorded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from appliance.gateway import openai as front
from appliance.gateway.config import GatewayLimits
from appliance.wire.admission import Refused
from tests.fakes.gateway import Stage, stage, until
from tests.fakes.worker import Worker

CHAT: dict[str, Any] = {"model": "p/e", "messages": [{"role": "user", "content": "Hallo"}]}
WRONG = {"authorization": "Bearer sla_svc_0123456789abcdef_" + "a" * 52 + "_00000000"}


@pytest.fixture
async def found(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path, Worker("a")) as made:
        yield made


def trust(found: Stage) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=found.folder / "ca.pem")


@contextlib.asynccontextmanager
async def client_of(found: Stage, token: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    token = found.token if token is None else token
    shown = {"authorization": f"Bearer {token}"} if token else {}
    url = found.openai.removesuffix("/v1")
    async with httpx.AsyncClient(
        verify=trust(found), base_url=url, headers=shown, timeout=20
    ) as made:
        yield made


def error_of(answer: httpx.Response) -> tuple[int, str, Any, Any]:
    """Status, type, code and param, of an answer in the form that clients expect."""
    (body,) = answer.json().values()
    assert set(body) == {"message", "type", "param", "code"}
    assert body["message"]
    assert len(answer.headers["x-request-id"]) == 32
    return answer.status_code, body["type"], body["code"], body["param"]


async def said(found: Stage, data: bytes) -> bytes:
    """What a new connection answers to some bytes, until it is closed."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", found.gateway.http.port, ssl=trust(found)
    )
    writer.write(data)
    try:
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.transport.abort()


def counted(found: Stage) -> list[Refused]:
    return found.gateway.refusals.drain()


@pytest.mark.attack
async def test_strangers_are_counted_on_every_path_and_leave_no_record_each(found: Stage) -> None:
    paths = ("/v1/models", "/v1/models/p/e", "/v1/nothing", "/", "/v1/chat/completions")
    async with client_of(found, "") as client:
        for headers in ({}, WRONG):
            for path in paths:
                answer = await client.get(path, headers=headers)
                assert error_of(answer) == (401, "authentication_error", "invalid_api_key", None)
                assert answer.headers["www-authenticate"] == "Bearer"
            for path in ("/v1/chat/completions", "/v1/completions", "/v1/nothing"):
                answer = await client.post(path, json=CHAT, headers=headers)
                assert error_of(answer)[0] == 401
    (row,) = counted(found)
    assert (row.source, row.principal, row.count) == ("127.0.0.1", "", 16)
    assert row.reasons == {"UNAUTHENTICATED": 16}
    assert row.methods == {
        "/v1/models": 4,
        "unknown": 6,
        "/v1/chat/completions": 2,
        "inference": 4,
    }
    assert found.control.usages == []


@pytest.mark.attack
async def test_who_guesses_tokens_is_slowed_down_and_nobody_else(tmp_path: Path) -> None:
    limits = GatewayLimits(refused_per_second=0.001, refused_burst=3)
    async with stage(tmp_path, Worker("a"), limits=limits) as found:
        async with client_of(found, "sla_svc_x") as guesser, client_of(found) as caller:
            codes = [(await guesser.get("/v1/models")).status_code for _ in range(5)]
            assert codes == [401, 401, 401, 429, 429]
            over = await guesser.post("/v1/chat/completions", json=CHAT)
            assert error_of(over)[:3] == (429, "rate_limit_error", "rate_limit_exceeded")
            assert int(over.headers["retry-after"]) > 1
            assert over.headers["connection"] == "close"
            # The same address, with a valid token.
            for _ in range(10):
                assert (await caller.get("/v1/models")).status_code == 200
            assert (await caller.post("/v1/chat/completions", json=CHAT)).status_code == 200
        (row,) = counted(found)
        assert row.reasons == {"UNAUTHENTICATED": 3, "RESOURCE_EXHAUSTED": 3}


@pytest.mark.attack
async def test_a_known_caller_is_recorded_by_the_call_up_to_a_budget(tmp_path: Path) -> None:
    limits = GatewayLimits(refused_per_second=0.001, refused_burst=3)
    async with stage(tmp_path, Worker("a"), limits=limits) as found:
        async with client_of(found) as client:
            for _ in range(10):
                answer = await client.post("/v1/chat/completions", json={**CHAT, "model": "p/x"})
                assert error_of(answer)[0] == 404
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        await until(lambda: len(found.control.usages) == 4)
        assert [usage.reason for usage in found.control.usages] == ["RESOURCE_NOT_FOUND"] * 3 + [""]
        (row,) = counted(found)
        assert (row.source, row.principal, row.count) == ("", "serviceAccounts/app", 7)
        assert row.methods == {"inference": 7}


@pytest.mark.attack
async def test_a_known_caller_makes_so_many_requests_a_second(tmp_path: Path) -> None:
    limits = GatewayLimits(calls_per_second=0.001, call_burst=3)
    async with stage(tmp_path, Worker("a"), limits=limits) as found:
        other = found.control.issue("serviceAccounts/other")
        found.control.publish()
        async with client_of(found) as client:
            codes = [(await client.get("/v1/models")).status_code for _ in range(5)]
            assert codes == [200, 200, 200, 429, 429]
            answer = await client.post("/v1/chat/completions", json=CHAT)
            assert error_of(answer)[:2] == (429, "rate_limit_error")
            assert int(answer.headers["retry-after"]) > 1
        await until(lambda: found.gateway.view.last.version == found.control.view.version)
        async with client_of(found, other) as client:
            assert (await client.get("/v1/models")).status_code == 200


async def test_what_was_counted_is_reported_when_the_gateway_stops(tmp_path: Path) -> None:
    async with stage(tmp_path, Worker("a")) as found:
        async with client_of(found, "") as client:
            await client.get("/v1/models")
        found.stop.set()
        await found.task
        (row,) = found.control.refusals
        assert (row.source, row.count, dict(row.reasons)) == (
            "127.0.0.1",
            1,
            {"UNAUTHENTICATED": 1},
        )


async def test_paths_and_methods_that_are_none(found: Stage) -> None:
    async with client_of(found) as client:
        answer = await client.get("/v1/embeddings")
        assert error_of(answer) == (404, "invalid_request_error", "unknown_url", None)
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/models"):
            assert path in answer.json()["error"]["message"]
        answer = await client.get("/v1/models/p/other")
        assert error_of(answer) == (404, "invalid_request_error", "model_not_found", "model")
        for method, path, allowed in (
            ("GET", "/v1/completions", "POST"),
            ("OPTIONS", "/v1/chat/completions", "POST"),
            ("POST", "/v1/models", "GET, HEAD"),
            ("DELETE", "/v1/models/p/e", "GET, HEAD"),
        ):
            answer = await client.request(method, path)
            assert error_of(answer) == (405, "invalid_request_error", None, None)
            assert answer.headers["allow"] == allowed
        assert (await client.head("/v1/models")).status_code == 200
    (row,) = counted(found)
    assert (row.source, row.principal, row.count) == ("", "serviceAccounts/app", 6)
    assert row.reasons == {"UNKNOWN_PATH": 1, "RESOURCE_NOT_FOUND": 1, "WRONG_METHOD": 4}
    assert row.methods == {
        "unknown": 1,
        "/v1/models": 3,
        "/v1/completions": 1,
        "/v1/chat/completions": 1,
    }
    assert found.control.usages == []


@pytest.mark.attack
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"model": "\\ud800", "messages": []}', "model"),
        ('{"model": "p/e", "stop": ["x", "\\ud800"], "messages": []}', "stop[1]"),
        (
            '{"model": "p/e", "messages": [{"role": "user", "content": "\\udfff"}]}',
            "messages[0].content",
        ),
        ('{"model": "p/e", "metadata": {"\\ud800": "x"}}', "a key of metadata"),
        ('{"model": "p/e", "user": "\\ud83d"}', "user"),
        ('{"model": "p/e", "model": "p/x"}', "the body"),
        ('{"model": ' + "[" * 100_000, "the body"),
        ('{"model": "p/e", "logit_bias": ' + '{"a":' * 100 + "1" + "}" * 100 + "}", "the body"),
        ('{"model": "' + "x" * 201 + '"}', "model"),
        ('{"model": "p/e", "user": "' + "x" * 513 + '"}', "user"),
        ('{"model": "p/e", "metadata": {"k": "' + "x" * 513 + '"}}', "metadata.k"),
        (json.dumps({"model": "p/e", "metadata": {str(n): "" for n in range(17)}}), "metadata"),
        ('{"model": "p/e", "od d\\u0000": 1, "messages": []}', "od d\\x00"),
    ],
)
async def test_text_is_checked_where_it_comes_in(found: Stage, body: str, param: str) -> None:
    async with client_of(found) as client:
        answer = await client.post("/v1/chat/completions", content=body.encode())
        assert error_of(answer) == (400, "invalid_request_error", None, param)
    await until(lambda: len(found.control.usages) == 1)
    assert found.control.usages[0].reason == "INVALID_INPUT"
    assert found.workers[0].submits == []


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions"])
async def test_a_fault_of_ours_is_an_answer_too(
    found: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(found.gateway.pipeline, "endpoints", broken)
    monkeypatch.setattr(found.gateway.pipeline, "admit", broken)
    async with client_of(found) as client:
        answer = await (
            client.post(path, json=CHAT) if path.endswith("completions") else client.get(path)
        )
    assert error_of(answer) == (500, "server_error", "internal_error", None)
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "secret" not in answer.text
    assert "RuntimeError at test_refusals.py:" in caplog.text
    assert "secret" not in caplog.text
    if path.endswith("completions"):
        await until(lambda: len(found.control.usages) == 1)
        assert found.control.usages[0].reason == "INTERNAL"


async def test_a_fault_when_a_call_is_ended_is_an_answer_too(
    found: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("secret inside")

    monkeypatch.setattr(found.gateway.pipeline, "_usage", broken)
    async with client_of(found) as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "model": "p/x"})
        assert error_of(answer)[0] == 500
    assert "ValueError at test_refusals.py:" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.attack
@pytest.mark.parametrize(
    ("where", "name", "more"),
    [
        (front.requests, "document", {}),
        (front.answers.Form, "whole", {}),
        (front.answers.Form, "piece", {"stream": True}),
        (front.answers, "encoded", {}),
    ],
)
async def test_no_fault_around_an_answer_takes_its_text_into_the_log(
    found: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: Any,
    name: str,
    more: dict[str, Any],
) -> None:
    real = getattr(where, name)

    def broken(*given: Any) -> Any:
        if "error" in str(given):
            return real(*given)
        raise ValueError(f"secret {given!r}")

    monkeypatch.setattr(where, name, broken)
    async with client_of(found) as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, **more})
    assert error_of(answer)[0] == 500
    assert "ValueError at test_refusals.py:" in caplog.text
    assert "secret" not in caplog.text + answer.text


@pytest.mark.attack
async def test_a_fault_while_a_refusal_is_told_takes_no_text_into_the_log(
    found: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(given: object) -> bytes:
        raise ValueError(f"secret {given!r}")

    monkeypatch.setattr(front.answers, "encoded", broken)
    async with client_of(found) as client:
        answer = await client.get("/v1/models")
    assert answer.status_code == 500
    assert "ValueError at test_refusals.py:" in caplog.text
    assert "secret" not in caplog.text + answer.text


@pytest.mark.attack
async def test_what_is_no_http_is_answered_in_the_apis_dialect(
    found: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    for data in (
        b"\x00\xff\r\n\r\n",
        b"GET nothing\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    ):
        head, _, body = (await said(found, data)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"x-request-id: " in head
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
    (row,) = counted(found)
    assert (row.reasons, row.methods) == ({"NO_HTTP": 3}, {"connection": 3})
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


@pytest.mark.attack
async def test_a_head_without_end_is_431(found: Stage) -> None:
    lines = b"".join(b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(100))
    head, _, body = (await said(found, b"GET / HTTP/1.1\r\nhost: x\r\n" + lines)).partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 431 ")
    assert "16384 bytes" in json.loads(body)["error"]["message"]


@pytest.mark.attack
async def test_garbage_behind_a_request_makes_no_fault(
    found: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await said(found, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n\x00\x00\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401 ")
    chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    await said(found, chunked)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.attack
async def test_a_body_that_comes_byte_by_byte_is_refused(
    found: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "BODY_GRACE_SECONDS", 0.1)

    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"
        f"authorization: Bearer {found.token}\r\n\r\n{{"
    )
    answer, _, body = (await said(found, head.encode())).partition(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert json.loads(body)["error"]["code"] == "request_timeout"
    await until(lambda: len(found.control.usages) == 1)
    assert found.control.usages[0].reason == "BODY_TOO_SLOW"


@pytest.mark.attack
async def test_one_caller_sends_so_many_bodies_at_a_time(tmp_path: Path) -> None:
    limits = GatewayLimits(calls_per_caller=2)
    async with stage(tmp_path, Worker("a"), limits=limits) as found:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n"
            f"authorization: Bearer {found.token}\r\n\r\n"
        ).encode()
        held = [
            await asyncio.open_connection("127.0.0.1", found.gateway.http.port, ssl=trust(found))
            for _ in range(2)
        ]
        for _, writer in held:
            writer.write(head)
        async with client_of(found) as client:
            bodies = found.gateway.http._server.config.app._bodies
            await until(lambda: bodies.held == 2)
            answer = await client.post("/v1/chat/completions", json=CHAT)
            assert error_of(answer)[:2] == (429, "rate_limit_error")
        for _, writer in held:
            writer.transport.abort()


async def test_a_body_that_is_too_large_is_no_matter_of_rates(found: Stage) -> None:
    async with client_of(found) as client:
        answer = await client.post("/v1/chat/completions", content=b" " * ((1 << 20) + 1))
    assert error_of(answer) == (413, "invalid_request_error", "request_too_large", None)
