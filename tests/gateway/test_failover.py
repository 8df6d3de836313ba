"""What happens to answers when replicas die, hang, refuse or lie, over real loopback streams."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path

import grpc
import pytest

from appliance.api.serving.v1 import endpoint_pb2
from appliance.core.errors import InvalidInput, NotFound, Unavailable
from appliance.gateway.breaker import BreakerState
from appliance.gateway.config import GatewayLimits
from appliance.gateway.links import ReplicaLink, stall_limit
from tests.fakes.gateway import QUICK, Stage, stage, until
from tests.fakes.routing import ENDPOINT
from tests.fakes.worker import END, Script, Worker, story, tokenizer

PROMPT = "Hallo"
COUNT = 5


async def ask(found: Stage, tokens: int, **sampling: object) -> tuple[list[int], str, int]:
    """Tokens, text and continuations of one answer."""
    ids: list[int] = []
    text = ""
    moves = 0
    async with found.client() as client:
        async for piece in client.generate(
            ENDPOINT,
            prompt=PROMPT,
            max_tokens=tokens,
            **sampling,  # type: ignore[arg-type]  # fields of Sampling
        ):
            ids += piece.token_ids
            text += piece.text
            moves = piece.totals.continuations
    return ids, text, moves


@pytest.mark.attack
async def test_death_after_any_token_changes_nothing_for_the_caller(tmp_path: Path) -> None:
    undisturbed = story(COUNT, 55)
    a, b = Worker("a"), Worker("b")
    patient = dataclasses.replace(QUICK, failures=1000, silent_seconds=5.0, stall_seconds=10.0)
    async with stage(tmp_path, a, b, routing=patient) as found:
        for dies in range(51):
            a.script = b.script = Script()
            await found.ready(2)
            link = min(found.gateway.fleet.links, key=lambda link: turn(found, link.place.id))
            first, second = (a, b) if link.place.id == "a" else (b, a)
            first.script = Script(die_after=dies)
            first.submits.clear()
            second.submits.clear()
            ids, text, moves = await ask(found, 55, temperature=0.0)
            assert ids == undisturbed
            assert text == tokenizer().decode(undisturbed)
            assert moves == (1 if dies else 0)
            (rest,) = second.submits
            made = len(rest.prompt_token_ids) - COUNT
            # What was on its way may be lost with the connection; it is made again.
            assert made <= dies
            assert list(rest.prompt_token_ids)[COUNT:] == undisturbed[:made]
            assert rest.sampling.max_tokens == 55 - made


def begun(found: Stage) -> bool:
    """Whether an answer has its first token."""
    return any(
        not attempt.first
        for link in found.gateway.fleet.links
        for attempt in link.attempts.values()
    )


def turn(found: Stage, replica: str) -> tuple[int, str]:
    return found.gateway.fleet._turns.get((ENDPOINT, replica), 0), replica


async def test_a_hung_engine_is_left(tmp_path: Path) -> None:
    hangs, well = Worker("a", Script(hang_after=7)), Worker("b")
    async with stage(tmp_path, hangs, well) as found:
        started = time.monotonic()
        ids, _, moves = await ask(found, 30)
        assert ids == story(COUNT, 30)
        assert moves == 1
        assert time.monotonic() - started < 3
        await until(lambda: bool(hangs.aborts))


async def test_a_silent_replica_is_left(tmp_path: Path) -> None:
    silent, well = Worker("a", Script(seconds=0.02)), Worker("b")
    async with stage(tmp_path, silent, well) as found:
        answer = asyncio.create_task(ask(found, 60))
        await until(lambda: begun(found))
        silent.script = Script(silent=True)
        ids, _, moves = await answer
        assert (ids, moves) == (story(COUNT, 60), 1)


async def test_doubt_never_takes_the_last_replica(tmp_path: Path) -> None:
    only = Worker("a", Script(seconds=0.01))
    async with stage(tmp_path, only) as found:
        answer = asyncio.create_task(ask(found, 40))
        await until(lambda: begun(found))
        only.script = Script(silent=True, seconds=0.01)
        (link,) = found.gateway.fleet.links
        await until(lambda: link.doubtful)
        only.script = Script(seconds=0.0)
        ids, _, moves = await answer
        assert (ids, moves) == (story(COUNT, 40), 0)
        assert link.breaker.state is BreakerState.CLOSED


async def test_a_new_answer_waits_for_the_last_replica_in_doubt(tmp_path: Path) -> None:
    only = Worker("a")
    slow = dataclasses.replace(QUICK, wait_seconds=20.0)
    async with stage(tmp_path, only, routing=slow) as found:
        only.script = Script(silent=True)
        (link,) = found.gateway.fleet.links
        await until(lambda: link.doubtful)
        await asyncio.sleep(QUICK.settle_seconds)
        answer = asyncio.create_task(ask(found, 5))
        await until(lambda: found.gateway.pipeline.running == 1)
        assert only.submits == []
        only.script = Script()
        assert (await answer)[0] == story(COUNT, 5)


async def test_nothing_alive_is_unavailable_and_fast(tmp_path: Path) -> None:
    workers = [Worker("a"), Worker("b")]
    async with stage(tmp_path, *workers) as found:
        await asyncio.gather(*(worker.stop() for worker in workers))
        await until(lambda: not any(link.connected for link in found.gateway.fleet.links))
        await asyncio.sleep(QUICK.settle_seconds)
        started = time.monotonic()
        with pytest.raises(Unavailable) as raised:
            await ask(found, 5)
        assert raised.value.retry_after is not None
        assert time.monotonic() - started < 0.5


async def test_a_begun_answer_waits_for_as_long_as_replicas_may_come(tmp_path: Path) -> None:
    only = Worker("a", Script(seconds=0.01))
    async with stage(tmp_path, only) as found:
        found.control.view.routes[0].replicas.add(id="b", state="STATE_STARTING", epoch=1)
        found.control.publish()
        answer = asyncio.create_task(ask(found, 40))
        await until(lambda: begun(found))
        await only.stop()
        # Both replicas of an endpoint were killed, and take their time to start.
        await asyncio.sleep(QUICK.wait_seconds + QUICK.settle_seconds + 1)
        assert not answer.done()
        with pytest.raises(Unavailable):
            await ask(found, 5)
        await only.start()
        ids, _, moves = await answer
        assert (ids, moves) == (story(COUNT, 40), 1)


async def test_an_endpoint_that_crashes_at_each_start_takes_no_slots(tmp_path: Path) -> None:
    few = dataclasses.replace(QUICK, wait_seconds=20.0, waiting=3)
    only = Worker("a", Script(seconds=0.01))
    async with stage(tmp_path, only, routing=few) as found:
        route = found.control.view.routes[0]
        route.replicas.add(id="b", state="STATE_STARTING", epoch=1)
        found.control.publish()
        started = asyncio.create_task(ask(found, 60))
        await until(lambda: begun(found))
        await only.stop()
        waiting = [asyncio.create_task(ask(found, 5)) for _ in range(5)]
        await until(lambda: sum(task.done() for task in waiting) == 2)
        refused = [task.exception() for task in waiting if task.done()]
        assert {type(error) for error in refused} == {Unavailable}
        assert "3 answers wait for a replica of" in str(refused[0])
        # It does not stay up: whoever waits is told so, and nobody else begins to wait.
        route.state = endpoint_pb2.Endpoint.STATE_FAILED
        found.control.publish()
        await until(lambda: all(task.done() for task in waiting))
        with pytest.raises(Unavailable, match="is ready: repeat the request later"):
            await ask(found, 5)
        # What has begun goes on as soon as one comes after all.
        assert not started.done()
        await only.start()
        assert (await started)[0] == story(COUNT, 60)
        assert (await ask(found, 5))[0] == story(COUNT, 5)


async def test_an_answer_that_waits_ends_with_the_time_of_its_call(tmp_path: Path) -> None:
    only = Worker("a", Script(seconds=0.01))
    limits = GatewayLimits(answer_seconds=1.5)
    async with stage(tmp_path, only, limits=limits) as found:
        found.control.view.routes[0].replicas.add(id="b", state="STATE_STARTING", epoch=1)
        found.control.publish()
        started = time.monotonic()
        answer = asyncio.create_task(ask(found, 40))
        await until(lambda: begun(found))
        await only.stop()
        with pytest.raises(Unavailable):
            await answer
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("longest", "limit"), [(0.0, 10.0), (1.0, 10.0), (2.0, 16.0), (3.0, 24.0), (9.0, 30.0)]
)
def test_a_stall_has_an_upper_bound_whatever_steps_took_before(
    longest: float, limit: float
) -> None:
    assert stall_limit(10.0, longest) == limit


async def test_an_answer_waits_for_a_replica_that_comes_back(tmp_path: Path) -> None:
    only = Worker("a", Script(seconds=0.01))
    async with stage(tmp_path, only) as found:
        found.control.view.routes[0].replicas.add(id="b", state="STATE_STARTING", epoch=1)
        found.control.publish()
        answer = asyncio.create_task(ask(found, 40))
        await until(lambda: begun(found))
        await only.stop()
        await asyncio.sleep(0.5)
        await only.start()
        ids, _, moves = await answer
        assert (ids, moves) == (story(COUNT, 40), 1)


async def test_what_the_caller_did_wrong_is_never_tried_again(tmp_path: Path) -> None:
    a, b = (Worker(name, Script(refuse="the prompt is odd")) for name in "ab")
    async with stage(tmp_path, a, b) as found:
        for _ in range(10):
            with pytest.raises(InvalidInput, match="the prompt is odd"):
                await ask(found, 5)
        assert len(a.submits) + len(b.submits) == 10
        assert all(link.ready for link in found.gateway.fleet.links)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL]
)
async def test_any_end_of_the_stream_is_a_loss(tmp_path: Path, code: grpc.StatusCode) -> None:
    dies, well = Worker("a", Script(die_after=3, code=code)), Worker("b")
    async with stage(tmp_path, dies, well) as found:
        assert await ask(found, 20) == (story(COUNT, 20), tokenizer().decode(story(COUNT, 20)), 1)


async def test_ids_that_the_tokenizer_does_not_have_are_left_out(tmp_path: Path) -> None:
    odd = Worker("a", Script(wrong=True))
    async with stage(tmp_path, odd) as found:
        for _ in range(QUICK.failures + 1):
            assert await ask(found, 20) == ([], "", 0)
        assert all(link.ready for link in found.gateway.fleet.links)
        odd.script = Script()
        ids, _, _ = await ask(found, 20)
        assert ids == story(COUNT, 20)


async def test_the_models_own_end_ends_the_answer(tmp_path: Path) -> None:
    async with stage(tmp_path, Worker("a", Script(end_after=6))) as found:
        ids, text, _ = await ask(found, 20)
        assert ids == [*story(COUNT, 6), END]
        assert text == tokenizer().decode(story(COUNT, 6))


async def test_death_with_the_last_token_is_not_asked_again(tmp_path: Path) -> None:
    a, b = Worker("a", Script(die_after=20)), Worker("b")
    async with stage(tmp_path, a, b) as found:
        ids, _, moves = await ask(found, 20)
        assert (ids, moves) == (story(COUNT, 20), 0)
        assert b.submits == []


async def test_a_stop_text_ends_in_the_replica_too(tmp_path: Path) -> None:
    worker = Worker("a", Script(seconds=0.002))
    async with stage(tmp_path, worker) as found:
        _, text, _ = await ask(found, 400, stop=["Modell"])
        assert text == "r einmal ein "
        await until(lambda: worker.running == 0)
        assert worker.aborts


async def test_a_stop_text_over_the_seam_is_found(tmp_path: Path) -> None:
    dies, well = Worker("a", Script(die_after=10)), Worker("b")
    async with stage(tmp_path, dies, well) as found:
        _, text, moves = await ask(found, 400, stop=["Modell"])
        assert (text, moves) == ("r einmal ein ", 1)


async def test_a_broken_replica_leaves_rotation_and_comes_back(tmp_path: Path) -> None:
    dies, well = Worker("a", Script(die_after=0)), Worker("b")
    async with stage(tmp_path, dies, well) as found:
        for _ in range(12):
            await found.ready_again(dies)
            assert (await ask(found, 5))[0] == story(COUNT, 5)
            if breaker(found, "a") is not BreakerState.CLOSED:
                break
        assert breaker(found, "a") is not BreakerState.CLOSED
        seen = len(dies.submits)
        for _ in range(5):
            await ask(found, 5)
        assert [s for s in dies.submits[seen:] if s.sampling.max_tokens == 5] == []
        dies.script = Script()
        await until(lambda: breaker(found, "a") is BreakerState.CLOSED, 8)
        probes = [submit for submit in dies.submits if submit.sampling.max_tokens == 1]
        assert probes


def breaker(found: Stage, replica: str) -> BreakerState:
    return next(
        link.breaker.state for link in found.gateway.fleet.links if link.place.id == replica
    )


async def test_a_caller_that_leaves_frees_the_slot(tmp_path: Path) -> None:
    worker = Worker("a", Script(seconds=0.01))
    async with stage(tmp_path, worker) as found, found.client() as client:
        answer = client.generate(ENDPOINT, prompt=PROMPT, max_tokens=500)
        await anext(answer)
        assert worker.running == 1
        await answer.aclose()
        left = time.monotonic()
        await until(lambda: worker.running == 0)
        assert time.monotonic() - left < 1
        await until(lambda: found.gateway.pipeline.running == 0)
        await until(lambda: bool(found.control.usages))
        assert [usage.reason for usage in found.control.usages] == ["CANCELLED"]


async def test_a_draining_replica_keeps_what_it_has_and_gets_no_more(tmp_path: Path) -> None:
    a, b = Worker("a", Script(seconds=0.01)), Worker("b")
    async with stage(tmp_path, a, b) as found:
        answer = asyncio.create_task(ask(found, 60))
        await until(lambda: begun(found))
        a.script = Script(seconds=0.01, draining=True)
        await until(lambda: any(link.draining for link in found.gateway.fleet.links))
        for _ in range(4):
            assert (await ask(found, 3))[0] == story(COUNT, 3)
        assert len(a.submits) == 1
        assert await answer == (story(COUNT, 60), tokenizer().decode(story(COUNT, 60)), 0)


async def test_nothing_of_the_caller_but_ids_reaches_a_replica(tmp_path: Path) -> None:
    worker = Worker("a")
    async with stage(tmp_path, worker) as found:
        await ask(found, 3, stop=["zzz"])
        seen = str(worker.metadata) + str(worker.submits)
        assert found.token not in seen
        assert "authorization" not in seen
        assert "zzz" not in seen


async def test_a_replica_that_moves_keeps_its_answers_where_they_are(tmp_path: Path) -> None:
    old, new = Worker("a", Script(seconds=0.01)), Worker("a")
    await new.start()
    async with stage(tmp_path, old) as found:
        answer = asyncio.create_task(ask(found, 60))
        await until(lambda: begun(found))
        replica = found.control.view.routes[0].replicas[0]
        replica.epoch, replica.address = 2, new.address
        found.control.publish()
        await until(lambda: any(link.place.epoch == 2 and link.ready for link in links(found)))
        assert (await ask(found, 5))[0] == story(COUNT, 5)
        assert (len(old.submits), len(new.submits)) == (1, 1)
        assert await answer == (story(COUNT, 60), tokenizer().decode(story(COUNT, 60)), 0)
        await until(lambda: [link.place.epoch for link in links(found)] == [2])
    await new.stop()


def links(found: Stage) -> list[ReplicaLink]:
    return found.gateway.fleet.links


async def test_a_link_that_ended_is_opened_anew(tmp_path: Path) -> None:
    async with stage(tmp_path, Worker("a")) as found:
        (link,) = links(found)
        link._task.cancel()
        await until(lambda: [other.ready for other in links(found) if other is not link] == [True])
        assert (await ask(found, 5))[0] == story(COUNT, 5)


async def test_an_endpoint_that_was_deleted_ends(tmp_path: Path) -> None:
    worker = Worker("a")
    async with stage(tmp_path, worker) as found:
        del found.control.view.routes[:]
        found.control.publish()
        await until(lambda: not links(found))
        with pytest.raises(NotFound):
            await ask(found, 5)
