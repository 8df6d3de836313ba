from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from appliance.api.inference.v1 import (
    generation_pb2,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from appliance.core.errors import Unavailable
from appliance.worker import service
from appliance.worker.outbox import BUSY
from appliance.worker.outputs import LENGTH, STOP, Output
from appliance.worker.server import drain, prove
from appliance.worker.service import WorkerLoad, WorkerService
from tests.fakes.engine import FakeEngine


@asynccontextmanager
async def attached(engine: FakeEngine, load: WorkerLoad | None = None) -> AsyncIterator[Any]:
    server = grpc.aio.server()
    served = WorkerService(engine, load or WorkerLoad())
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(served, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        try:
            yield stub
        finally:
            await server.stop(0)


def submit(
    identifier: int, prompt: Any = (1, 2), **sampling: Any
) -> worker_service_pb2.AttachRequest:
    return worker_service_pb2.AttachRequest(
        submit=worker_service_pb2.Submit(
            id=identifier,
            prompt_token_ids=prompt,
            sampling=generation_pb2.Sampling(**sampling),
        )
    )


def abort(identifier: int) -> worker_service_pb2.AttachRequest:
    return worker_service_pb2.AttachRequest(abort=worker_service_pb2.Abort(id=identifier))


async def read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def next_outputs(call: Any) -> list[tuple[int, list[int], int, str]]:
    while True:
        message = await call.read()
        if message.outputs:
            return [(o.id, list(o.token_ids), o.finish_reason, o.refused) for o in message.outputs]


async def test_a_step_of_all_answers_is_one_message() -> None:
    engine = FakeEngine()
    async with attached(engine) as stub:
        call = stub.Attach()
        await call.write(submit(1))
        await call.write(submit(2))
        await engine.until(lambda: len(engine.sinks) == 2)
        engine.step({"1-1": Output([7]), "1-2": Output([8], STOP)})
        assert await next_outputs(call) == [(1, [7], 0, ""), (2, [8], 1, "")]
        engine.step({"1-1": Output([9], LENGTH)})
        assert await next_outputs(call) == [(1, [9], 2, "")]
        call.cancel()


async def test_steps_that_wait_are_joined() -> None:
    engine = FakeEngine()
    async with attached(engine) as stub:
        call = stub.Attach()
        await call.write(submit(1))
        await engine.until(lambda: engine.sinks)
        for token in (4, 5):
            engine.step({"1-1": Output([token])})
        engine.step({"1-1": Output([6], STOP)})
        assert await next_outputs(call) == [(1, [4, 5, 6], 1, "")]
        call.cancel()


async def test_a_heartbeat_comes_without_tokens() -> None:
    engine = FakeEngine()
    load = WorkerLoad()
    load.draining = True
    engine.activity.note_step(3, 2)
    async with attached(engine, load) as stub:
        call = stub.Attach()
        async with asyncio.timeout(2):
            beats = [(await call.read()).heartbeat for _ in range(3)]
        assert [(b.steps, b.running, b.waiting, b.draining) for b in beats] == [(1, 3, 2, True)] * 3
        assert {beat.slots for beat in beats} == {4}
        assert beats[2].step_age_seconds > beats[0].step_age_seconds
        call.cancel()


async def test_what_is_wrong_is_refused_and_the_rest_goes_on() -> None:
    engine = FakeEngine()
    async with attached(engine) as stub:
        call = stub.Attach()
        await call.write(submit(1, prompt=()))
        ((identifier, tokens, _, refused),) = await next_outputs(call)
        assert (identifier, tokens) == (1, [])
        assert "prompt is empty" in refused
        await call.write(submit(2))
        await engine.until(lambda: engine.sinks)
        call.cancel()


async def test_an_abort_frees_the_slot_and_sends_nothing_more() -> None:
    engine = FakeEngine()
    load = WorkerLoad()
    async with attached(engine, load) as stub:
        call = stub.Attach()
        await call.write(submit(1))
        await call.write(submit(2))
        await engine.until(lambda: len(engine.sinks) == 2)
        await call.write(abort(1))
        await call.write(abort(99))
        await engine.until(lambda: engine.aborted)
        engine.step({"1-1": Output([7], STOP), "1-2": Output([8])})
        assert await next_outputs(call) == [(2, [8], 0, "")]
        assert (engine.aborted, load.answers) == (["1-1"], 1)
        call.cancel()


@pytest.mark.parametrize("leave", ["cancel", "done_writing"])
async def test_the_end_of_a_stream_frees_its_slots_and_no_others(leave: str) -> None:
    engine = FakeEngine()
    load = WorkerLoad()
    async with attached(engine, load) as stub:
        first, second = stub.Attach(), stub.Attach()
        await first.write(submit(1))
        await engine.until(lambda: len(engine.sinks) == 1)
        await second.write(submit(1))
        await engine.until(lambda: len(engine.sinks) == 2)
        ours = next(iter(engine.sinks))
        if leave == "cancel":
            first.cancel()
        else:
            await first.done_writing()
        await engine.until(lambda: engine.aborted)
        assert (engine.aborted, load.answers) == ([ours], 1)
        second.cancel()


async def test_an_answer_that_the_engine_loses_ends_the_stream() -> None:
    engine = FakeEngine()
    async with attached(engine) as stub:
        call = stub.Attach()
        await call.write(submit(1))
        await engine.until(lambda: engine.sinks)
        engine.step({"1-1": Output([], failed=True)})
        with pytest.raises(grpc.aio.AioRpcError):
            await read_to_the_end(call)
        assert engine.aborted == ["1-1"]


@pytest.mark.parametrize(
    "second", [submit(1), worker_service_pb2.AttachRequest()], ids=["same id", "no order"]
)
async def test_a_broken_gateway_loses_its_stream(second: worker_service_pb2.AttachRequest) -> None:
    engine = FakeEngine()
    async with attached(engine) as stub:
        call = stub.Attach()
        await call.write(submit(1))
        await call.write(second)
        with pytest.raises(grpc.aio.AioRpcError):
            await read_to_the_end(call)
        assert engine.aborted == ["1-1"]


async def test_a_full_replica_says_that_it_is_busy_and_takes_what_comes_later() -> None:
    engine, load = FakeEngine(), WorkerLoad()
    load.answers = service.MAX_ANSWERS
    async with attached(engine, load) as stub:
        call = stub.Attach()
        await call.write(submit(1))
        while not (outputs := (await call.read()).outputs):
            pass
        ((output,),) = (outputs,)
        # Gateways that do not know the word still hear a sentence.
        assert (output.id, output.busy, output.refused) == (1, True, BUSY)
        load.answers -= 1
        await call.write(submit(2))
        await engine.until(lambda: engine.sinks)
        call.cancel()


async def test_a_drain_waits_for_what_is_in_work() -> None:
    load = WorkerLoad()
    load.answers = 1
    draining = asyncio.create_task(drain(load, least=0.0, most=5.0))
    await asyncio.sleep(0)
    assert (load.draining, draining.done()) == (True, False)
    load.answers = 0
    async with asyncio.timeout(1):
        await draining


async def test_a_drain_ends_when_an_answer_does_not() -> None:
    load = WorkerLoad()
    load.answers = 1
    async with asyncio.timeout(1):
        await drain(load, least=0.0, most=0.01)


async def test_an_engine_that_fails_at_its_first_token_is_not_served() -> None:
    engine = FakeEngine()
    proving = asyncio.create_task(prove(engine))
    await engine.until(lambda: engine.sinks)
    engine.step({"proof": Output([], failed=True)})
    with pytest.raises(Unavailable):
        await proving
