"""An endpoint with replicas of two versions: each answer is whole, and of one of them.

The other version has another tokenizer and says something else, so what is mixed is seen.
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from appliance.api.serving.v1 import endpoint_pb2, routing_service_pb2
from appliance.core.errors import FailedPrecondition, Unavailable
from appliance.gateway.snapshot import Pool, RoutingSnapshot, ServedVersion
from tests.fakes.gateway import QUICK, Stage, stage, until
from tests.fakes.routing import ENDPOINT, seal
from tests.fakes.worker import OTHER_IDS, STORY_IDS, Script, Worker, tokenizer

PROMPT = "Hallo"
FIRST, OTHER = tokenizer(), tokenizer(other=True)


def whole(tokens: int, *, other: bool) -> str:
    """The text of an undisturbed answer."""
    ids, made = (OTHER_IDS, OTHER) if other else (STORY_IDS, FIRST)
    start = len(PROMPT)
    return made.decode([ids[(start + number) % len(ids)] for number in range(tokens)])


async def ask(found: Stage, tokens: int = 20) -> str:
    text = ""
    async with found.client() as client:
        async for piece in client.generate(ENDPOINT, prompt=PROMPT, max_tokens=tokens):
            text += piece.text
    return text


def show(
    found: Stage, *workers: Worker, starting: bool = False, state: str = "STATE_READY"
) -> None:
    """The control plane says that there are these."""
    found.control.serve(*workers, starting=starting, state=state)
    found.control.publish()


async def linked(found: Stage, *workers: Worker) -> None:
    """Until the gateway can ask each of them, and knows how."""
    names = {worker.id for worker in workers}
    await until(
        lambda: {link.place.id for link in found.gateway.fleet.links if link.ready} == names
    )
    places = [link.place for link in found.gateway.fleet.links if link.ready]
    models = found.gateway._models
    await until(lambda: all(models.has(Pool(ENDPOINT, place.version)) for place in places))


async def test_each_version_has_its_share_and_its_tokenizer(tmp_path: Path) -> None:
    a, b, c = Worker("a"), Worker("b"), Worker("c", other=True)
    async with stage(tmp_path, a, b, c) as found:
        await linked(found, a, b, c)
        texts = [await ask(found) for _ in range(30)]
        assert texts.count(whole(20, other=False)) == 20
        assert texts.count(whole(20, other=True)) == 10
        assert (len(a.submits), len(b.submits), len(c.submits)) == (10, 10, 10)
        for workers, made in (((a, b), FIRST), ((c,), OTHER)):
            prompts = [list(s.prompt_token_ids) for worker in workers for s in worker.submits]
            assert prompts == [made.encode(PROMPT).ids] * len(prompts)


async def test_what_is_asked_during_a_swap_never_fails_and_is_of_one_version(
    tmp_path: Path,
) -> None:
    quick = Script(seconds=0.001)
    old = [Worker(name, quick) for name in "ab"]
    new = [Worker(name, quick, other=True) for name in "cd"]
    texts: list[str] = []
    over = asyncio.Event()

    async def caller(found: Stage) -> None:
        while not over.is_set():
            texts.append(await ask(found))

    async with stage(tmp_path, *old) as found:
        await linked(found, *old)
        callers = [asyncio.create_task(caller(found)) for _ in range(4)]
        now = list(old)
        for gone, come in zip(old, new, strict=True):
            show(found, *now, starting=True)
            await come.start()
            now.append(come)
            show(found, *now)
            await linked(found, *now)
            gone.script = dataclasses.replace(quick, draining=True)
            show(found, *now)
            await until(lambda one=gone: not one.running)
            count = len(texts)
            await until(lambda least=count + 8: len(texts) > least)
            now.remove(gone)
            show(found, *now)
            await until(lambda one=gone: not one.running)
            await gone.stop()
        await linked(found, *new)
        over.set()
        await asyncio.gather(*callers)
        for worker in new:
            await worker.stop()
    assert set(texts) == {whole(20, other=False), whole(20, other=True)}
    assert texts[-1] == whole(20, other=True)


async def test_who_waits_for_a_version_that_goes_is_answered_by_the_other(tmp_path: Path) -> None:
    full = Script(hang_after=1, slots=1, most=1)
    a, b = Worker("a", full), Worker("b", other=True)
    slow = dataclasses.replace(QUICK, stall_seconds=20.0, between_tokens_seconds=20.0)
    async with stage(tmp_path, a, routing=slow) as found:
        first = asyncio.create_task(ask(found))
        await until(lambda: a.running == 1)
        waiting = [asyncio.create_task(ask(found)) for _ in range(3)]
        await until(lambda: found.gateway._places.waiting == 3)
        await b.start()
        a.script = dataclasses.replace(full, draining=True)
        show(found, a, b)
        assert await asyncio.gather(*waiting) == [whole(20, other=True)] * 3
        # What had begun ends where it was.
        a.script = Script(draining=True)
        assert await first == whole(20, other=False)
        assert len(b.submits) == 3
        await b.stop()


@pytest.mark.attack
async def test_an_answer_that_has_begun_never_goes_on_with_another_version(tmp_path: Path) -> None:
    a, b = Worker("a", Script(die_after=5)), Worker("b", other=True)
    async with stage(tmp_path, a) as found:
        await b.start()
        a.script = Script(die_after=5, seconds=0.05)
        asking = asyncio.create_task(ask(found))
        await until(lambda: a.running == 1)
        a.script = Script(die_after=5, draining=True)
        show(found, a, b)
        with pytest.raises(Unavailable):
            await asking
        assert b.submits == []
        await b.stop()


async def test_an_answer_goes_on_with_another_replica_of_its_version(tmp_path: Path) -> None:
    a, b, c = Worker("a", Script(die_after=5)), Worker("b", other=True), Worker("c")
    patient = dataclasses.replace(QUICK, failures=1000)
    async with stage(tmp_path, a, c, b, routing=patient) as found:
        await linked(found, a, b, c)
        for _ in range(4):
            texts = await asyncio.gather(*(ask(found) for _ in range(6)))
            assert set(texts) == {whole(20, other=False), whole(20, other=True)}
            await found.ready_again(a)
        moved = [s for s in c.submits if len(s.prompt_token_ids) > len(PROMPT)]
        assert moved
        assert all(len(s.prompt_token_ids) == len(PROMPT) for s in b.submits)


async def test_a_gateway_that_was_away_during_a_swap_finds_the_new_version(tmp_path: Path) -> None:
    a, b = Worker("a"), Worker("b", other=True)
    async with stage(tmp_path, a) as found:
        assert await ask(found) == whole(20, other=False)
        await found.control.stop()
        # It goes on with what it knows, as long as that answers.
        assert await ask(found) == whole(20, other=False)
        await b.start()
        await a.stop()
        with pytest.raises(Unavailable, match="is ready"):
            await ask(found)
        found.control.serve(b)
        found.control.view.version += 1
        await found.control.start()
        await linked(found, b)
        assert await ask(found) == whole(20, other=True)
        await b.stop()


async def test_one_name_that_means_another_version_has_another_tokenizer(tmp_path: Path) -> None:
    a, b = Worker("a"), Worker("b", other=True)
    async with stage(tmp_path, a) as found:
        assert await ask(found) == whole(20, other=False)
        await b.start()
        found.control.serve(b)
        (route,) = found.control.view.routes
        route.model = route.replicas[0].model = "projects/p/models/m/versions/1"
        found.control.publish()
        await linked(found, b)
        assert await ask(found) == whole(20, other=True)
        await b.stop()


async def test_the_limit_is_that_of_the_version_that_answers(tmp_path: Path) -> None:
    a, b = Worker("a"), Worker("b", other=True)
    async with stage(tmp_path, a) as found:
        await b.start()
        found.control.serve(b, longest=len(PROMPT) + 3)
        found.control.publish()
        await linked(found, b)
        assert await ask(found, 500) == whole(3, other=True)
        await b.stop()


async def test_who_has_just_lost_the_old_one_waits_for_the_link_to_the_new(tmp_path: Path) -> None:
    a, b = Worker("a"), Worker("b", other=True)
    patient = dataclasses.replace(QUICK, settle_seconds=10.0)
    async with stage(tmp_path, a, routing=patient) as found:
        a.script = Script(draining=True)
        await until(lambda: not any(link.ready for link in found.gateway.fleet.links))
        asking = asyncio.create_task(ask(found))
        await b.start()
        show(found, a, b)
        assert await asking == whole(20, other=True)
        await b.stop()


def test_a_control_plane_that_names_no_version_of_a_replica_has_one() -> None:
    view = seal(
        routing_service_pb2.RoutingView(
            routes=[
                routing_service_pb2.Route(
                    endpoint=ENDPOINT,
                    model="m/1",
                    max_sequence_length=9,
                    replicas=[endpoint_pb2.Replica(id="r0", state="STATE_READY", address="a:1")],
                )
            ]
        )
    )
    route = RoutingSnapshot.of(view).routes[ENDPOINT]
    assert [place.version for place in route.places] == [route.newest]
    assert route.newest == ServedVersion("m/1", "", 9)


@pytest.mark.parametrize("state", ["STATE_STOPPED", "STATE_STOPPING"])
async def test_who_asks_a_stopped_endpoint_hears_it(tmp_path: Path, state: str) -> None:
    async with stage(tmp_path, Worker("a")) as found:
        show(found, state=state)
        await until(lambda: not any(link.ready for link in found.gateway.fleet.links))
        with pytest.raises(FailedPrecondition, match=f"`appliance endpoint start {ENDPOINT}`"):
            await ask(found)
        show(found, *found.workers)
        await linked(found, *found.workers)
        assert await ask(found) == whole(20, other=False)
