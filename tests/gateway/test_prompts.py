"""A prompt's way through a whole gateway: what it may do to others, and what is seen of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.api.inference.v1.generation_pb2 import Sampling
from appliance.core.errors import ContextExceeded, Internal, InvalidInput
from appliance.gateway.questions import Question, tokens_of
from appliance.gateway.text import Detokenizer
from appliance.gateway.tokenize import ServedModel
from appliance.gateway.turns import ANYBODY, KEPT, Asker, FairTurns
from tests.fakes.gateway import stage, until
from tests.fakes.routing import ENDPOINT
from tests.fakes.worker import END, Script, Worker, tokenizer

SECRET = "Rosenkohl"


@pytest.mark.attack
async def test_nothing_of_a_prompt_or_an_answer_reaches_a_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    dies, well = Worker("a", Script(die_after=9)), Worker("b")
    async with stage(tmp_path, dies, well) as found, found.client() as client:
        for asked in (
            {"prompt": SECRET},
            {"messages": [("user", SECRET)]},
            {"messages": [(SECRET, "hi")]},
            {"prompt": SECRET * 100},
            {"prompt": SECRET, "stop": [SECRET] * 20},
        ):
            try:
                async for _ in client.generate(ENDPOINT, max_tokens=80, **asked):  # type: ignore[arg-type]
                    pass
            except InvalidInput:
                continue
        await until(lambda: len(found.control.usages) == 5)
        assert SECRET not in str(found.control.usages)
    assert "goes on elsewhere" in caplog.text
    for said in (SECRET, SECRET[2:8], "Modell", "Antworten"):
        assert said not in caplog.text


@pytest.mark.attack
async def test_what_a_library_says_of_an_answer_reaches_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Detokenizer, tokens: Sequence[int]) -> str:
        raise ValueError("Invalid prefix encountered: " + tokenizer().decode(tokens))

    monkeypatch.setattr(Detokenizer, "add", broken)
    async with stage(tmp_path, Worker("a")) as found, found.client() as client:
        with pytest.raises(Internal) as raised:
            async for _ in client.generate(ENDPOINT, prompt=SECRET, max_tokens=8):
                pass
    assert "request id" in str(raised.value)
    assert "ValueError at test_prompts.py" in caplog.text
    assert "Invalid prefix" not in caplog.text + str(raised.value)


@pytest.mark.attack
async def test_a_long_prompt_is_refused_with_its_own_reason(tmp_path: Path) -> None:
    worker = Worker("a")
    async with stage(tmp_path, worker) as found, found.client() as client:
        for asked in ({"prompt": "x" * 900_000}, {"messages": [("user", "x" * 900_000)]}):
            with pytest.raises(ContextExceeded, match="send a shorter one"):
                await anext(client.generate(ENDPOINT, **asked))  # type: ignore[arg-type]
        assert worker.submits == []


async def test_a_control_token_as_a_stop_text_ends_an_answer(tmp_path: Path) -> None:
    worker = Worker("a")
    async with stage(tmp_path, worker) as found, found.client() as client:
        async for _ in client.generate(ENDPOINT, prompt="Hi", max_tokens=3, stop=["<s>", "Zug"]):
            pass
    assert list(worker.submits[-1].end_token_ids) == [END, tokenizer().token_to_id("<s>")]


class Many(Sequence[int]):
    """More token ids than anybody should look at."""

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError(index)


@pytest.mark.attack
async def test_token_ids_are_counted_before_they_are_looked_at() -> None:
    model = cast("ServedModel", SimpleNamespace(vocabulary=100))
    with pytest.raises(ContextExceeded, match="send a shorter one"):
        await tokens_of(model, Question(Sampling(), tokens=Many()), 512, ANYBODY)
    for wrong in ([100], [5, -1]):
        with pytest.raises(InvalidInput, match="vocabulary of 100"):
            await tokens_of(model, Question(Sampling(), tokens=wrong), 512, ANYBODY)
    assert await tokens_of(model, Question(Sampling(), tokens=[0, 99]), 512, ANYBODY) == [0, 99]


async def _hold(
    turns: FairTurns, caller: str, order: list[str], done: asyncio.Event, endpoint: str = ""
) -> None:
    async with turns.turn(Asker(endpoint, caller)):
        order.append(caller)
        await done.wait()


@pytest.mark.attack
async def test_turns_go_round_among_callers() -> None:
    turns, order, done = FairTurns(1), list[str](), asyncio.Event()
    asked = ["first", *["many"] * 5, "one", "other"]
    tasks = [asyncio.create_task(_hold(turns, name, order, done)) for name in asked]
    await asyncio.sleep(0)
    done.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "many", "one", "other", "many", "many", "many", "many"]


@pytest.mark.attack
async def test_an_endpoint_whose_prompts_never_end_holds_nobody_elses_turn() -> None:
    """A slow template, and a thousand callers of it."""
    turns, order, never, done = FairTurns(2), list[str](), asyncio.Event(), asyncio.Event()
    slow = [
        asyncio.create_task(_hold(turns, f"slow-{number}", order, never, "slow"))
        for number in range(1000)
    ]
    await asyncio.sleep(0)
    assert len(order) == 2
    done.set()
    async with asyncio.timeout(5):
        for number in range(20):
            await _hold(turns, f"well-{number}", order, done, "well")
    assert len(order) == 22
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert (turns._free, turns._waiting, turns._held) == (2 + KEPT, {}, {})


@pytest.mark.attack
async def test_turns_go_round_among_endpoints_before_callers() -> None:
    turns, order, done = FairTurns(1), list[str](), asyncio.Event()
    asked = [("a", "a1"), ("b", "b1"), *[("a", f"a{n}") for n in range(2, 6)], ("b", "b2")]
    tasks = [
        asyncio.create_task(_hold(turns, name, order, done, endpoint)) for endpoint, name in asked
    ]
    await asyncio.sleep(0)
    assert order == ["a1", "b1"]
    done.set()
    await asyncio.gather(*tasks)
    assert order == ["a1", "b1", "a2", "b2", "a3", "a4", "a5"]


@pytest.mark.attack
async def test_who_leaves_gives_up_the_turn() -> None:
    turns, order, done = FairTurns(1), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(_hold(turns, name, order, done)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    # The turn of `c` has come in the moment in which it leaves.
    tasks[0].cancel()
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    done.set()
    async with asyncio.timeout(5):
        await _hold(turns, "d", order, done)
    assert order[-1] == "d"
    assert turns._free == 1 + KEPT
    assert turns._waiting == {}
