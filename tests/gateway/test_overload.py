"""More callers than replicas can answer: it is no failure of anybody, and nothing is cut."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from appliance.api.inference.v1 import worker_service_pb2
from appliance.core.errors import ApplianceError, Exhausted, Unavailable
from appliance.gateway import links
from appliance.gateway.attempts import Attempt
from appliance.gateway.breaker import BreakerState
from appliance.gateway.config import GatewayLimits
from appliance.gateway.links import ReplicaLink
from appliance.gateway.rendering import ChatTemplate, Message
from appliance.gateway.turns import TEMPLATES
from tests.fakes.gateway import QUICK, Stage, stage, until
from tests.fakes.routing import ENDPOINT
from tests.fakes.worker import Script, Worker, story

COUNT = 5
DEAD = "projects/p/endpoints/dead"
PATIENT = dataclasses.replace(QUICK, silent_seconds=5.0, stall_seconds=10.0, queue_seconds=60.0)


async def ask(found: Stage, tokens: int, endpoint: str = ENDPOINT, token: str = "") -> list[int]:
    """Token ids of one answer."""
    ids: list[int] = []
    async with found.client(token or None) as client:
        async for piece in client.generate(endpoint, prompt="Hallo", max_tokens=tokens):
            ids += piece.token_ids
    return ids


async def outcome(asking: asyncio.Task[list[int]]) -> list[int] | ApplianceError:
    try:
        return await asking
    except ApplianceError as error:
        return error


def link_of(found: Stage, replica: str = "a") -> ReplicaLink:
    return next(link for link in found.gateway.fleet.links if link.place.id == replica)


def counted(found: Stage, name: str) -> float:
    metrics = found.gateway._metrics
    (metric,) = getattr(metrics, name).collect()
    return float(metric.samples[0].value)


def waiting(found: Stage) -> int:
    return found.gateway.pipeline._parts.router.places.waiting


@pytest.mark.attack
@pytest.mark.parametrize("says", ["its slots", "nothing of slots, as one of 0.1.0"])
async def test_ten_times_more_callers_than_slots_are_all_answered(
    tmp_path: Path, says: str
) -> None:
    """The last one waits ten times as long as its first token may take."""
    script = Script(seconds=0.02, slots=2, silent_slots=says != "its slots")
    tight = dataclasses.replace(PATIENT, first_token_seconds=0.4, between_tokens_seconds=0.4)
    async with stage(tmp_path, Worker("a", script), routing=tight) as found:
        answers = await asyncio.gather(*(ask(found, 25) for _ in range(20)))
        assert answers == [story(COUNT, 25)] * 20
        assert link_of(found).breaker.state is BreakerState.CLOSED
        assert (counted(found, "retries"), counted(found, "continuations")) == (0, 0)


async def test_an_answer_that_its_replica_forgot_is_still_late(tmp_path: Path) -> None:
    """What waits in a replica is not late; one that others have overtaken there does not wait."""
    forgets = Script(seconds=0.01, slots=3, silent_slots=True, lost=frozenset({1}))
    tight = dataclasses.replace(PATIENT, first_token_seconds=0.3)
    async with stage(tmp_path, Worker("a", forgets), routing=tight) as found:
        others = [asyncio.create_task(ask(found, 60)) for _ in range(8)]
        assert await asyncio.gather(*others) == [story(COUNT, 60)] * 8
        assert counted(found, "retries") == 1


async def test_a_token_that_comes_with_the_end_of_its_turn_counts(tmp_path: Path) -> None:
    """It is neither refused, nor does anybody ask for the next one without waiting for it."""
    async with stage(tmp_path, Worker("a", Script(hang_after=0)), routing=PATIENT) as found:
        asking = asyncio.create_task(ask(found, 20))
        await until(lambda: bool(link_of(found).attempts))
        (attempt,) = link_of(found).attempts.values()
        attempt.expired = True
        step = worker_service_pb2.AttachResponse()
        step.outputs.add(id=attempt.id, token_ids=[COUNT])
        link_of(found)._take(step)
        assert (attempt.first, attempt.expired) == (False, False)
        await until(lambda: not attempt.tokens and attempt.waiter is not None)
        asking.cancel()
        await asyncio.wait({asking})


async def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    few = dataclasses.replace(PATIENT, queue=3)
    worker = Worker("a", Script(hang_after=1, slots=1))
    async with stage(tmp_path, worker, routing=few) as found:
        # One is worked on, one is next in the replica, three wait here.
        begun = [asyncio.create_task(ask(found, 20)) for _ in range(5)]
        await until(lambda: waiting(found) == 3)
        with pytest.raises(Exhausted, match="has as many answers as it may") as refused:
            await ask(found, 20)
        assert refused.value.retry_after
        async with httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=found.folder / "ca.pem")
        ) as client:
            answer = await client.post(
                f"{found.openai}/completions",
                headers={"authorization": f"Bearer {found.token}"},
                json={"model": ENDPOINT, "prompt": "Hallo"},
            )
        assert (answer.status_code, int(answer.headers["retry-after"])) == (429, 5)
        assert len(worker.submits) == 2
        worker.script = Script(slots=1)
        assert await asyncio.gather(*begun) == [story(COUNT, 20)] * 5


@pytest.mark.attack
@pytest.mark.parametrize("where", [ENDPOINT, DEAD])
async def test_a_caller_who_fills_the_queue_keeps_nobody_out(tmp_path: Path, where: str) -> None:
    few = dataclasses.replace(PATIENT, queue=4, waiting=4, wait_seconds=60.0)
    worker = Worker("a", Script(hang_after=1, slots=1))
    async with stage(tmp_path, worker, routing=few) as found:
        await serve_dead(found)
        other = found.control.issue(principal="serviceAccounts/other")
        found.control.publish()
        await until(lambda: len(found.gateway.view.current().credentials) == 2)
        # Where there is a replica, one is worked on and one is next.
        flood = [
            asyncio.create_task(ask(found, 20, where)) for _ in range(4 if where == DEAD else 6)
        ]
        await until(lambda: waiting(found) == 4)
        fair = [asyncio.create_task(ask(found, 20, where, other)) for _ in range(2)]
        # Half of the queue is its; a third one finds nobody who has more.
        await until(lambda: sum(task.done() for task in flood) == 2)
        with pytest.raises((Exhausted, Unavailable)):
            await ask(found, 20, where, other)
        with pytest.raises((Exhausted, Unavailable)):
            await ask(found, 20, where)
        assert not any(task.done() for task in fair)
        for task in (*flood, *fair):
            task.cancel()
        await asyncio.gather(*flood, *fair, return_exceptions=True)


@pytest.mark.parametrize("says", ["its slots", "nothing of slots, as one of 0.1.0"])
async def test_whose_turn_does_not_come_in_time_hears_so_and_nobody_else(
    tmp_path: Path, says: str
) -> None:
    hurried = dataclasses.replace(PATIENT, queue_seconds=0.4)
    worker = Worker("a", Script(seconds=0.02, slots=1, silent_slots=says != "its slots"))
    async with stage(tmp_path, worker, routing=hurried) as found:
        tasks = [asyncio.create_task(ask(found, 100)) for _ in range(4)]
        ended = [await outcome(task) for task in tasks]
        assert [each for each in ended if isinstance(each, list)] == [story(COUNT, 100)]
        refused = [each for each in ended if not isinstance(each, list)]
        assert [(type(each), each.retry_after) for each in refused] == [(Exhausted, 5.0)] * 3
        assert link_of(found).breaker.state is BreakerState.CLOSED
        assert counted(found, "retries") == 0
        # Those that waited in the replica left it, too.
        await until(lambda: worker.running == 0)


async def test_a_probe_that_is_late_ends(tmp_path: Path) -> None:
    """It once went round without a pause, and the whole gateway stood still."""
    tight = dataclasses.replace(PATIENT, first_token_seconds=0.2, failures=1, retries=0)
    worker = Worker("a", Script(hang_after=0))
    async with stage(tmp_path, worker, routing=tight) as found:
        with pytest.raises(Unavailable):
            await ask(found, 5)
        await until(lambda: link_of(found).breaker.state is BreakerState.HALF_OPEN)
        await until(lambda: link_of(found).breaker.state is BreakerState.OPEN)
        worker.script = Script()
        await until(lambda: link_of(found).breaker.state is BreakerState.CLOSED, 8)
        assert await ask(found, 5) == story(COUNT, 5)


async def test_a_probe_that_waits_behind_others_proves_that_the_replica_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "PROBE_SECONDS", 0.5)
    worker = Worker("a", Script(seconds=0.02, slots=1, silent_slots=True))
    async with stage(tmp_path, worker, routing=PATIENT) as found:
        asking = [asyncio.create_task(ask(found, 100)) for _ in range(2)]
        await until(lambda: link_of(found)._load.waiting == 1)
        link = link_of(found)
        for number in range(PATIENT.failures):
            link.failed(Attempt(0, link._clock() + number, math.inf))
        assert link.breaker.state is BreakerState.OPEN
        await until(lambda: link.breaker.state is BreakerState.CLOSED)
        assert not any(task.done() for task in asking)
        assert await asyncio.gather(*asking) == [story(COUNT, 100)] * 2


async def test_a_replica_that_works_on_nothing_leaves_rotation(tmp_path: Path) -> None:
    """It says that some wait, makes steps, and no token."""
    tight = dataclasses.replace(PATIENT, first_token_seconds=0.2, retries=0)
    worker = Worker("a", Script(hang_after=0, waiting=5, running=0, empty_steps=True))
    async with stage(tmp_path, worker, routing=tight) as found, asyncio.timeout(20):
        for _ in range(tight.failures):
            with pytest.raises(Unavailable):
                await ask(found, 5)
        assert link_of(found).breaker.state is not BreakerState.CLOSED


async def test_a_replica_that_makes_no_token_leaves_rotation_when_the_first_are_late(
    tmp_path: Path,
) -> None:
    """All were sent before the first failed; nobody has had a token since."""
    tight = dataclasses.replace(PATIENT, first_token_seconds=1.0, retries=0)
    worker = Worker("a", Script(hang_after=0, empty_steps=True))
    async with stage(tmp_path, worker, routing=tight) as found, asyncio.timeout(20):
        asking = [asyncio.create_task(ask(found, 5)) for _ in range(tight.failures)]
        assert {type(await outcome(task)) for task in asking} == {Unavailable}
        assert link_of(found).breaker.state is not BreakerState.CLOSED
        assert len(worker.submits) == tight.failures


async def test_a_probe_that_is_not_taken_proves_that_the_replica_works(tmp_path: Path) -> None:
    worker = Worker("a", Script(most=0))
    async with stage(tmp_path, worker, routing=PATIENT) as found:
        link = link_of(found)
        for number in range(PATIENT.failures):
            link.failed(Attempt(0, link._clock() + number, math.inf))
        assert link.breaker.state is BreakerState.OPEN
        await until(lambda: link.breaker.state is BreakerState.CLOSED)
        assert len(worker.submits) == 1


async def test_a_full_replica_is_asked_again_once_for_each_heartbeat(tmp_path: Path) -> None:
    """It says that it is busy in the same message as a heartbeat."""
    worker = Worker("a", Script(most=0))
    async with stage(tmp_path, worker, routing=PATIENT) as found:
        beats = list[object]()
        take = link_of(found)._take_heartbeat
        link_of(found)._take_heartbeat = lambda beat, now: (beats.append(beat), take(beat, now))[1]
        asking = asyncio.create_task(ask(found, 20))
        await until(lambda: len(beats) >= 20)
        # Each refusal comes with a heartbeat of its own, and the next one is waited for.
        assert 1 < len(worker.submits) <= len(beats) // 2 + 1
        worker.script = Script()
        assert await asking == story(COUNT, 20)


async def test_what_a_full_replica_does_not_take_waits_for_its_turn(tmp_path: Path) -> None:
    worker = Worker("a", Script(seconds=0.01, most=1))
    async with stage(tmp_path, worker, routing=PATIENT) as found:
        answers = await asyncio.gather(*(ask(found, 20) for _ in range(3)))
        assert answers == [story(COUNT, 20)] * 3
        assert link_of(found).breaker.state is BreakerState.CLOSED
        assert counted(found, "retries") == 0


async def test_a_lost_stream_with_many_answers_is_one_failure(tmp_path: Path) -> None:
    tight = dataclasses.replace(PATIENT, failures=2, retry_share=0.0)
    worker = Worker("a", Script(hang_after=3))
    async with stage(tmp_path, worker, routing=tight) as found:
        asking = [asyncio.create_task(ask(found, 20)) for _ in range(15)]
        await until(lambda: len(worker.submits) == 15)
        worker.script = Script(die_after=0)
        await until(lambda: not link_of(found).connected)
        worker.script = Script()
        assert await asyncio.gather(*asking) == [story(COUNT, 20)] * 15
        assert link_of(found).breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize("comes_back", ["at once", "later"])
async def test_an_old_answer_waits_for_a_replica_that_broke_like_a_new_one(
    tmp_path: Path, comes_back: str
) -> None:
    """It has been worked on for longer than an answer waits for its turn."""
    hurried = dataclasses.replace(
        PATIENT, queue_seconds=0.5, wait_seconds=20.0, settle_seconds=20.0
    )
    worker = Worker("a", Script(hang_after=0, empty_steps=True))
    async with stage(tmp_path, worker, routing=hurried) as found:
        asking = asyncio.create_task(ask(found, 20))
        await until(lambda: len(worker.submits) == 1)
        sent = found.gateway.fleet._clock()
        await until(lambda: found.gateway.fleet._clock() > sent + 0.6)
        worker.script = Script(die_after=0)
        if comes_back == "at once":
            await until(lambda: not link_of(found).connected)
        else:
            await worker.stop()
            await until(lambda: not link_of(found).connected)
            await asyncio.wait({asking}, timeout=0.7)
            await worker.start()
        worker.script = Script()
        assert await asking == story(COUNT, 20)


@pytest.mark.parametrize("how", ["lost", "in doubt", "late"])
async def test_answers_that_fail_together_cost_one_retry(tmp_path: Path, how: str) -> None:
    """None of them has a token; the budget of a quiet gateway is ten."""
    is_late = how == "late"
    tight = dataclasses.replace(
        PATIENT,
        retry_share=0.0,
        silent_seconds=0.4 if how == "in doubt" else 5.0,
        first_token_seconds=1.0 if is_late else 60.0,
        stall_seconds=60.0,
    )
    a, b = Worker("a", Script(hang_after=0)), Worker("b")
    async with stage(tmp_path, a, routing=tight) as found:
        asking = [asyncio.create_task(ask(found, 20)) for _ in range(30)]
        await until(lambda: len(a.submits) == 30)
        await b.start()
        found.control.serve(a, b)
        found.control.publish()
        await until(lambda: any(link.place.id == "b" for link in found.gateway.fleet.links))
        await until(lambda: link_of(found, "b").connected)
        if not is_late:
            a.script = Script(silent=True) if how == "in doubt" else Script(die_after=0)
        assert await asyncio.gather(*asking) == [story(COUNT, 20)] * 30
    await b.stop()


async def test_an_answer_that_has_begun_goes_first(tmp_path: Path) -> None:
    a, b = Worker("a", Script(seconds=0.01)), Worker("b", Script(slots=1, hang_after=0))
    async with stage(tmp_path, a, routing=PATIENT) as found:
        begun = asyncio.create_task(ask(found, 60))
        await until(lambda: any(not each.first for each in link_of(found).attempts.values()))
        await b.start()
        found.control.serve(a, b)
        found.control.publish()
        await found.ready(2)
        await a.stop()
        await until(lambda: not link_of(found).connected)
        # It is in b now, beside nobody; when b goes it has to wait in front of those that did not.
        await until(lambda: len(b.submits) == 1)
        new = [asyncio.create_task(ask(found, 5)) for _ in range(4)]
        await until(lambda: waiting(found) == 3)
        b.script = Script(slots=1)
        assert await begun == story(COUNT, 60)
        assert await asyncio.gather(*new) == [story(COUNT, 5)] * 4
    await b.stop()


LIAR = Script(hang_after=3, waiting=5, running=1, empty_steps=True)
"""It makes steps, says that others wait, and makes no token: no answer is late there."""


@pytest.mark.attack
async def test_an_answer_stays_no_longer_in_a_replica_than_its_call_may_take(
    tmp_path: Path,
) -> None:
    limits = GatewayLimits(answer_seconds=1.0)
    async with stage(tmp_path, Worker("a", LIAR), routing=PATIENT, limits=limits) as found:
        asking = asyncio.create_task(ask(found, 20))
        async with asyncio.timeout(10):
            ended = await outcome(asking)
        assert isinstance(ended, Unavailable)
        assert "longer than an answer may" in ended.message
        await until(lambda: found.workers[0].running == 0)


@pytest.mark.attack
@pytest.mark.parametrize("worker", [LIAR, Script(hang_after=3, empty_steps=True)])
async def test_a_right_that_is_taken_away_ends_an_answer_that_gets_no_token(
    tmp_path: Path, worker: Script
) -> None:
    """Over HTTPS, where nothing else judges a running call again."""
    slow = dataclasses.replace(PATIENT, between_tokens_seconds=60.0)
    async with (
        stage(tmp_path, Worker("a", worker), routing=slow) as found,
        httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=found.folder / "ca.pem"), timeout=10
        ) as client,
    ):
        asking = asyncio.create_task(
            client.post(
                f"{found.openai}/completions",
                headers={"authorization": f"Bearer {found.token}"},
                json={"model": ENDPOINT, "prompt": "Hallo"},
            )
        )
        await until(lambda: found.workers[0].running == 1)
        del found.control.view.rights[:]
        found.control.publish()
        assert (await asking).status_code == 404
        await until(lambda: found.workers[0].running == 0)


@pytest.mark.attack
async def test_a_dead_endpoint_takes_no_place_of_a_healthy_one(tmp_path: Path) -> None:
    """Its callers fill the gateway and wait; those of the other endpoint are answered at once."""
    patient = dataclasses.replace(PATIENT, wait_seconds=60.0)
    limits = GatewayLimits(calls=8, calls_per_caller=100)
    async with stage(
        tmp_path, Worker("a", Script(seconds=0.01)), routing=patient, limits=limits
    ) as found:
        await serve_dead(found)
        asking = [asyncio.create_task(ask(found, 5, DEAD)) for _ in range(10)]
        # Two places are kept for the other endpoint.
        await until(lambda: sum(task.done() for task in asking) == 4)
        await until(lambda: waiting(found) == 6)
        answers = [asyncio.create_task(ask(found, 20)) for _ in range(6)]
        assert await asyncio.gather(*answers) == [story(COUNT, 20)] * 6
        gone = [await outcome(task) for task in asking if task.done()]
        assert {type(each) for each in gone} == {Exhausted}
        # What is kept for an endpoint is nobody else's, also while it is dead.
        assert waiting(found) >= 2
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def serve_dead(found: Stage) -> None:
    """An endpoint whose only replica is still to come."""
    found.control.serve(endpoint=DEAD)
    found.control.view.routes[-1].replicas.add(id="x", state="STATE_STARTING", epoch=1)
    found.control.publish()
    await until(lambda: DEAD in found.gateway.view.current().routes)


async def test_a_callers_own_waiting_answers_make_way_for_what_can_be_answered(
    tmp_path: Path,
) -> None:
    patient = dataclasses.replace(PATIENT, wait_seconds=60.0)
    limits = GatewayLimits(calls_per_caller=3)
    async with stage(tmp_path, Worker("a"), routing=patient, limits=limits) as found:
        await serve_dead(found)
        asking = [asyncio.create_task(ask(found, 5, DEAD)) for _ in range(3)]
        await until(lambda: waiting(found) == 3)
        # One more of the same is refused; one for a replica that can answer is not.
        with pytest.raises(Exhausted, match="you have 3 answers in work"):
            await ask(found, 5, DEAD)
        assert await ask(found, 5) == story(COUNT, 5)
        await until(lambda: sum(task.done() for task in asking) == 1)
        assert waiting(found) == 2
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_nothing_makes_way_for_an_answer_that_would_wait_too(tmp_path: Path) -> None:
    """The only slot is taken: one more is sent there ahead of time, and waits there."""
    patient = dataclasses.replace(PATIENT, wait_seconds=60.0)
    worker = Worker("a", Script(hang_after=1, slots=1))
    async with stage(
        tmp_path, worker, routing=patient, limits=GatewayLimits(calls_per_caller=3)
    ) as found:
        await serve_dead(found)
        other = found.control.issue(principal="serviceAccounts/other")
        found.control.publish()
        await until(lambda: len(found.gateway.view.current().credentials) > 1)
        asking = [asyncio.create_task(ask(found, 20, token=other))]
        await until(lambda: not link_of(found).has_slot)
        asking += [asyncio.create_task(ask(found, 5, DEAD)) for _ in range(3)]
        await until(lambda: waiting(found) == 3)
        with pytest.raises(Exhausted, match="you have 3 answers in work"):
            await ask(found, 5)
        assert waiting(found) == 3
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_no_waiting_answer_is_given_up_for_one_that_is_refused_all_the_same(
    tmp_path: Path,
) -> None:
    """Its caller has as many as it may, and so has its endpoint: one that goes must free both."""
    patient = dataclasses.replace(PATIENT, wait_seconds=60.0)
    worker = Worker("a", Script(hang_after=1, slots=16))
    limits = GatewayLimits(calls=8, calls_per_caller=3)
    async with stage(tmp_path, worker, routing=patient, limits=limits) as found:
        await serve_dead(found)
        x, y, z = (found.control.issue(principal=f"serviceAccounts/{name}") for name in "xyz")
        found.control.publish()
        await until(lambda: len(found.gateway.view.current().credentials) > 3)
        asking = [asyncio.create_task(ask(found, 20, token=each)) for each in (x, y, y, y, z, z)]
        await until(lambda: len(link_of(found).attempts) == 6)
        asking += [asyncio.create_task(ask(found, 5, DEAD, token=x)) for _ in range(2)]
        await until(lambda: waiting(found) == 2)
        assert found.gateway.fleet.has_slot(ENDPOINT)
        with pytest.raises(Exhausted, match="you have 3 answers in work"):
            await ask(found, 5, token=x)
        assert waiting(found) == 2
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


@pytest.mark.attack
async def test_a_template_that_takes_its_time_keeps_no_other_endpoint_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its renderings hang, and it has many callers; the other endpoint's are rendered at once."""
    slow = "projects/p/endpoints/slow"
    let, hung = threading.Event(), list[str]()
    render = ChatTemplate.render

    def hanging(template: ChatTemplate, messages: Sequence[Message]) -> str:
        if messages[0]["content"] == "slow":
            hung.append("")
            let.wait(30)
        return render(template, messages)

    monkeypatch.setattr(ChatTemplate, "render", hanging)
    async with stage(tmp_path, Worker("a"), routing=PATIENT) as found:
        other = Worker("s")
        await other.start()
        found.control.serve(other, endpoint=slow)
        found.control.publish()
        await found.ready(2)
        asking = [asyncio.create_task(chat(found, slow, "slow")) for _ in range(20)]
        await until(lambda: len(hung) == TEMPLATES)
        async with asyncio.timeout(10):
            assert [len(await chat(found, ENDPOINT, "hi")) for _ in range(5)] == [5] * 5
        assert len(hung) == TEMPLATES
        let.set()
        assert [len(answer) for answer in await asyncio.gather(*asking)] == [5] * 20
        await other.stop()


async def chat(found: Stage, endpoint: str, content: str) -> list[int]:
    """Token ids of an answer to a conversation of one message."""
    ids: list[int] = []
    async with found.client() as client:
        messages = [("user", content)]
        async for piece in client.generate(endpoint, messages=messages, max_tokens=5):
            ids += piece.token_ids
    return ids
