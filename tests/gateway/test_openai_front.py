"""The OpenAI-compatible front with the unmodified client, and with what no client would send."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.fakes.gateway import Stage, stage
from tests.fakes.routing import ENDPOINT
from tests.fakes.worker import Worker, story, tokenizer


@pytest.fixture
async def found(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path, Worker("a")) as made:
        yield made


def text_of(prompt: str, tokens: int) -> str:
    made = tokenizer()
    count = len(made.encode(prompt).ids)
    return str(made.decode(story(count, tokens)))


def trust(found: Stage) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=found.folder / "ca.pem")


def client_of(found: Stage, token: str | None = None) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=found.openai,
        api_key=token or found.token,
        http_client=httpx.AsyncClient(verify=trust(found)),
        max_retries=0,
    )


CHAT = "<s>user: Hallo</s><s>assistant: "


async def test_a_chat_streams(found: Stage) -> None:
    async with client_of(found) as client:
        stream = await client.chat.completions.create(
            model=ENDPOINT,
            messages=[{"role": "user", "content": "Hallo"}],
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = [part async for part in stream]
    said = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert said == text_of(CHAT, 40)
    assert parts[0].choices[0].delta.role == "assistant"
    assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == "length"
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 40


async def test_a_chat_in_one_body(found: Stage) -> None:
    async with client_of(found) as client:
        answer = await client.chat.completions.create(
            model="p/e",
            messages=[{"role": "user", "content": [{"type": "text", "text": "Hallo"}]}],
            max_completion_tokens=40,
        )
    assert answer.choices[0].message.content == text_of(CHAT, 40)
    assert answer.model == "p/e"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 40


async def test_a_text_goes_on(found: Stage) -> None:
    async with client_of(found) as client:
        whole = await client.completions.create(model="p/e", prompt="Hallo", max_tokens=9)
        stream = await client.completions.create(
            model="p/e", prompt="Hallo", max_tokens=9, stream=True
        )
        pieces = [part.choices[0].text async for part in stream]
    assert whole.choices[0].text == text_of("Hallo", 9) == "".join(pieces)


async def test_the_models_are_those_one_may_ask(found: Stage) -> None:
    found.control.serve(endpoint="projects/q/endpoints/secret")
    found.control.publish()
    async with client_of(found) as client:
        assert [model.id async for model in client.models.list()] == [ENDPOINT]
        assert (await client.models.retrieve("p/e")).id == "p/e"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("q/secret")
