"""The gRPC front, end to end: a client, a gateway, workers that say what is scripted."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.gateway import stage
from tests.fakes.routing import ENDPOINT
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
