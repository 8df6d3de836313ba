"""Tokenizers of served models: each read once, and no more calls wait for one than may."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import pytest

from appliance.api.serving.v1 import routing_service_pb2
from appliance.core.errors import Exhausted, Unavailable, UnknownMethod
from appliance.gateway import models
from appliance.gateway.fetching import Fetched
from appliance.gateway.models import ServedModels
from appliance.gateway.snapshot import Pool, RoutingSnapshot, ServedVersion
from appliance.gateway.tokenize import Desk, ServedModel
from tests.fakes.gateway import stage, until
from tests.fakes.routing import ENDPOINT, Control
from tests.fakes.worker import Worker, story, tokenizer

SERVED = routing_service_pb2.ServedTokenizer(tokenizer_json=tokenizer().to_str().encode())
POOL = Pool("projects/p/endpoints/e", ServedVersion("m", "m", 10))
NOTHING = RoutingSnapshot(1, b"", {}, {}, {}, {}, 0)


class Source:
    """A control plane that gives what it is told to, and a clock."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, list[str]]] = []
        self.content = "c"
        self.error: Exception | None = None
        self.served = SERVED
        self.let = asyncio.Event()
        self.let.set()
        self.now = 100.0
        self.seconds = 60.0

    async def fetch(self, endpoint: str, uid: str, held: Collection[str]) -> Fetched:
        self.asked.append((endpoint, uid, sorted(held)))
        await self.let.wait()
        if self.error is not None:
            raise self.error
        return self.content, None if self.content in held else self.served

    def models(self, desk: Desk) -> ServedModels:
        return ServedModels(self.fetch, desk, self.seconds, lambda: self.now)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    made = Desk.new()
    yield made
    made.close()


async def test_it_is_read_once_for_all_who_wait(desk: Desk) -> None:
    source = Source()
    found = source.models(desk)
    waiting = await asyncio.gather(*(found.get(POOL) for _ in range(5)))
    assert len(source.asked) == 1
    assert len({id(model) for model in waiting}) == 1


async def test_one_that_cannot_be_read_is_read_again_after_a_pause(desk: Desk) -> None:
    source = Source()
    found = source.models(desk)
    source.error = Unavailable("not now")
    for _ in range(3):
        with pytest.raises(Unavailable, match="not now"):
            await found.get(POOL)
    assert len(source.asked) == 1
    source.error, source.now = None, source.now + models.FETCH_AGAIN_SECONDS
    await found.get(POOL)
    assert len(source.asked) == 2


@pytest.mark.attack
async def test_another_version_of_the_same_name_is_read_anew(desk: Desk) -> None:
    """Endpoint and model were deleted and made again while the gateway heard of nothing."""
    source = Source()
    found = source.models(desk)
    first = await found.get(POOL)
    source.content = "other"
    version = POOL.version._replace(uid="another")
    assert await found.get(POOL._replace(version=version)) is not first
    assert [uid for _, uid, _ in source.asked] == ["m", "another"]


@pytest.mark.attack
async def test_a_broken_one_is_not_prepared_with_each_call(desk: Desk) -> None:
    """To prepare one of 60 MiB stops the interpreter for seconds."""
    source = Source()
    source.served = routing_service_pb2.ServedTokenizer(tokenizer_json=b"{}")
    found = source.models(desk)
    for _ in range(3):
        with pytest.raises(Unavailable, match="cannot be read"):
            await found.get(POOL)
        source.now += models.FETCH_AGAIN_SECONDS
    assert len(source.asked) == 1
    source.now += models.PREPARE_AGAIN_SECONDS
    with pytest.raises(Unavailable, match="cannot be read"):
        await found.get(POOL)
    assert len(source.asked) == 2


async def test_endpoints_of_the_same_content_share_it(desk: Desk) -> None:
    source = Source()
    found = source.models(desk)
    other = POOL._replace(endpoint="projects/p/endpoints/f")
    third = Pool("projects/q/endpoints/g", ServedVersion("copy", "copy", 10))
    first, second = await asyncio.gather(found.get(POOL), found.get(other))
    assert first is second
    assert await found.get(third) is first
    # Only the first was sent; the others were said to be here.
    assert [held for _, _, held in source.asked] == [[], ["c"], ["c"]]


async def test_what_nobody_serves_any_more_is_forgotten(desk: Desk) -> None:
    source = Source()
    found = source.models(desk)
    await found.get(POOL)
    del found._models[POOL]
    # The task of the read still holds it until the loop goes round.
    await asyncio.sleep(0)
    gc.collect()
    assert len(found._contents) == 0


@pytest.mark.attack
async def test_no_more_calls_wait_for_one_than_may(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "WAITING", 3)
    source = Source()
    source.let.clear()
    found = source.models(desk)
    waiting = [asyncio.create_task(found.get(POOL)) for _ in range(4)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    (refused,) = [task for task in waiting if task.done()]
    assert isinstance(refused.exception(), Exhausted)
    source.let.set()
    await asyncio.gather(*(task for task in waiting if task is not refused))


@pytest.mark.attack
async def test_no_more_are_in_memory_before_they_are_prepared_than_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let, prepared = threading.Event(), list[object]()

    def slow(served: object, _: object) -> object:
        let.wait(30)
        prepared.append(served)
        return served

    class Tokenizer:
        """One that was fetched."""

    alive = WeakSet[Tokenizer]()
    most = 0

    async def fetch(endpoint: str, _uid: str, _held: Collection[str]) -> Any:
        nonlocal most
        made = Tokenizer()
        alive.add(made)
        most = max(most, len(alive) - len(prepared))
        return endpoint, made

    monkeypatch.setattr(models, "ServedModel", slow)
    found = ServedModels(fetch, cast("Any", None), 60.0)
    routes = [
        Pool(f"e{number}", ServedVersion(f"m{number}", f"m{number}", 10))
        for number in range(3 * models.FETCHES)
    ]
    asking = [asyncio.create_task(found.get(route)) for route in routes]
    await until(lambda: most == models.FETCHES)
    for _ in range(100):
        await asyncio.sleep(0)
    let.set()
    await asyncio.gather(*asking)
    assert most == models.FETCHES


async def test_versions_of_one_content_are_prepared_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def prepare(served: routing_service_pb2.ServedTokenizer, where: Desk) -> ServedModel:
        made.append(served)
        return ServedModel(served, where)

    monkeypatch.setattr(models, "ServedModel", prepare)
    source = Source()
    source.let.clear()
    found = source.models(desk)
    asking = [
        asyncio.create_task(found.get(Pool("e", ServedVersion(f"m{number}", "", 10))))
        for number in range(models.FETCHES)
    ]
    await until(lambda: len(source.asked) == models.FETCHES)
    source.let.set()
    assert len({id(model) for model in await asyncio.gather(*asking)}) == 1
    assert len(made) == 1


@pytest.mark.attack
async def test_a_call_waits_for_one_no_longer_than_it_may(desk: Desk) -> None:
    source = Source()
    source.let.clear()
    source.seconds = 0.05
    found = source.models(desk)
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable, match="is still on its way") as refused:
            await found.get(POOL)
    assert refused.value.retry_after
    # It is read on, for whoever comes later.
    source.let.set()
    source.seconds = 60.0
    await asyncio.gather(*found._models.values())
    await found.get(POOL)
    assert len(source.asked) == 1


async def test_nothing_is_kept_of_a_route_that_is_gone(desk: Desk) -> None:
    """Its reading fails after it has gone."""
    source = Source()
    source.let.clear()
    source.served = routing_service_pb2.ServedTokenizer(tokenizer_json=b"{}")
    found = source.models(desk)
    asking = asyncio.create_task(found.get(POOL))
    await until(lambda: len(source.asked) == 1)
    found.apply(NOTHING)
    source.let.set()
    with pytest.raises(Unavailable):
        await asking
    found.apply(NOTHING)
    assert (found._models, found._again) == ({}, {})


async def test_a_control_plane_that_knows_no_parts_is_asked_for_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(*_: object) -> AsyncIterator[routing_service_pb2.ServedTokenizerPart]:
        raise UnknownMethod("there is no such call")
        yield

    monkeypatch.setattr(Control, "ReadServedTokenizer", unknown)
    async with stage(tmp_path, Worker("a")) as found, found.client() as client:
        ids = [
            token
            async for piece in client.generate(ENDPOINT, prompt="Hallo", max_tokens=5)
            for token in piece.token_ids
        ]
        assert ids == story(5, 5)
        assert found.control.tokenizer_calls == 1
