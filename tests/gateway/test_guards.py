"""What the gateway refuses: strangers, ended rights, floods, and callers who do not read."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from appliance.api.inference.v1 import generation_pb2
from appliance.api.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from appliance.client.connection import metadata
from appliance.client.inference import question
from appliance.core.errors import (
    ApplianceError,
    AuditUnavailable,
    ContextExceeded,
    Exhausted,
    InvalidInput,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from appliance.core.identity import PrincipalKind
from appliance.gateway import view
from appliance.gateway.config import GatewayLimits
from appliance.gateway.main import VIEW
from tests.fakes.gateway import QUICK, Stage, stage, until
from tests.fakes.routing import ENDPOINT
from tests.fakes.wire import authority
from tests.fakes.worker import Script, Worker, story


async def ask(found: Stage, token: str | None = None, **how: object) -> list[int]:
    asked = {"prompt": "Hallo", "max_tokens": 5, "endpoint": ENDPOINT} | how
    endpoint = str(asked.pop("endpoint"))
    async with found.client(token) as client:
        pieces = client.generate(endpoint, **asked)  # type: ignore[arg-type]  # its own fields
        return [token async for piece in pieces for token in piece.token_ids]


async def health_of(found: Stage, service: str) -> int:
    credentials = grpc.ssl_channel_credentials(authority().certificate_pem)
    address = f"localhost:{found.gateway.grpc_port}"
    async with grpc.aio.secure_channel(address, credentials) as channel:
        stub = HealthStub(channel)
        return int((await stub.Check(HealthCheckRequest(service=service))).status)


def knows(found: Stage, principal: str) -> bool:
    snapshot = found.gateway.view.last
    return snapshot is not None and any(who == principal for who, _ in snapshot.rights)


async def reasons(found: Stage, count: int) -> list[str]:
    await until(lambda: len(found.control.usages) >= count)
    return [usage.reason for usage in found.control.usages]


@pytest.mark.attack
async def test_every_refusal_is_reported_and_none_reaches_a_replica(tmp_path: Path) -> None:
    worker = Worker("a")
    async with stage(tmp_path, worker) as found:
        with pytest.raises(Unauthenticated):
            await ask(found, "sla_svc_nonsense")
        with pytest.raises(NotFound):
            await ask(found, endpoint="projects/q/endpoints/other")
        with pytest.raises(InvalidInput):
            await ask(found, temperature=3.0)
        assert await ask(found) == story(5, 5)
        assert await reasons(found, 3) == [
            "RESOURCE_NOT_FOUND",
            "INVALID_INPUT",
            "",
        ]
        assert len(worker.submits) == 1
        last = found.control.usages[-1]
        assert (last.principal, last.prompt_tokens, last.completion_tokens) == (
            "serviceAccounts/app",
            5,
            5,
        )
        assert 0 < last.first_token_seconds <= last.seconds
        assert "Hallo" not in str(found.control.usages)
        (row,) = found.gateway.refusals.drain()
        assert (row.source, row.reasons) == ("127.0.0.1", {"UNAUTHENTICATED": 1})


async def test_a_prompt_longer_than_the_context_hears_the_numbers(tmp_path: Path) -> None:
    async with stage(tmp_path, Worker("a")) as found:
        with pytest.raises(ContextExceeded, match=r"has 600 bytes.*may have 512 tokens"):
            await ask(found, prompt="x" * 600)
        with pytest.raises(ContextExceeded, match=r"has 512 tokens.*may have 512"):
            await ask(found, prompt="x" * 512)
        with pytest.raises(InvalidInput):
            await ask(found, prompt="")
        assert len(await ask(found, prompt="x" * 500, max_tokens=400)) == 12


@pytest.mark.attack
async def test_a_revoked_token_ends_a_running_answer(tmp_path: Path) -> None:
    worker = Worker("a", Script(seconds=0.02))
    async with stage(tmp_path, worker) as found, found.client() as client:
        answer = client.generate(ENDPOINT, prompt="Hallo", max_tokens=500)
        await anext(answer)
        del found.control.view.credentials[:]
        found.control.publish()
        revoked = time.monotonic()
        with pytest.raises(Unauthenticated):
            async for _ in answer:
                pass
        assert time.monotonic() - revoked < 2
        await until(lambda: worker.running == 0)
        with pytest.raises(Unauthenticated):
            await ask(found)


@pytest.mark.attack
async def test_a_right_that_was_taken_away_ends_a_running_answer(tmp_path: Path) -> None:
    worker = Worker("a", Script(seconds=0.02))
    async with stage(tmp_path, worker) as found, found.client() as client:
        answer = client.generate(ENDPOINT, prompt="Hallo", max_tokens=500)
        await anext(answer)
        del found.control.view.rights[:]
        found.control.publish()
        with pytest.raises(NotFound):
            async for _ in answer:
                pass


@pytest.mark.attack
async def test_cut_off_from_the_control_plane_nothing_new_is_served(tmp_path: Path) -> None:
    async with stage(tmp_path, Worker("a"), stale_view_seconds=0.6) as found:
        assert await ask(found)
        await found.control.stop()
        await until(lambda: not found.gateway.view.decides)
        with pytest.raises(Unavailable) as raised:
            await ask(found)
        assert raised.value.retry_after is not None
        await found.control.start()
        await until(lambda: found.gateway.view.decides)
        assert await ask(found)


async def test_while_the_control_plane_is_away_its_last_word_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(view, "HEARD_SECONDS", 0.5)
    async with stage(tmp_path, Worker("a"), stale_view_seconds=600.0) as found:
        other = found.control.issue("users/other")
        found.control.publish()
        assert await ask(found, other)
        await found.control.stop()
        await until(lambda: found.gateway.view.stale)
        await until(lambda: "decided by what it said last" in caplog.text)
        assert await health_of(found, "") == HealthCheckResponse.SERVING
        assert await health_of(found, VIEW) == HealthCheckResponse.NOT_SERVING
        assert await ask(found)
        asked = len(found.control.usages)
        # Taken away while it was not heard: with its return that holds, and all is recorded.
        del found.control.view.credentials[-1]
        found.control.publish()
        await found.control.start()
        await until(lambda: not found.gateway.view.stale)
        with pytest.raises(Unauthenticated):
            await ask(found, other)
        assert await ask(found)
        await until(lambda: len(found.control.usages) >= asked + 2)
        # Health is looked at each half second, so it follows the view a little later.
        for _ in range(100):
            if await health_of(found, VIEW) == HealthCheckResponse.SERVING:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("the health of the view never followed it")


@pytest.mark.attack
async def test_one_caller_cannot_take_all_slots(tmp_path: Path) -> None:
    limits = GatewayLimits(calls=5, calls_per_caller=3)
    worker = Worker("a", Script(seconds=0.02))
    async with stage(tmp_path, worker, limits=limits) as found:
        other = found.control.issue("users/other")
        found.control.publish()
        await until(lambda: knows(found, "users/other"))
        tasks = [asyncio.create_task(ask(found, max_tokens=60)) for _ in range(8)]
        await until(lambda: sum(task.done() for task in tasks) == 5)
        running = [task for task in tasks if not task.done()]
        refused = [task.exception() for task in tasks if task.done()]
        assert all(isinstance(error, Exhausted) for error in refused)
        assert await ask(found, other) == story(5, 5)
        assert [await task for task in running] == [story(5, 60)] * 3
        assert found.gateway.pipeline.running == 0


@pytest.mark.attack
async def test_without_an_audit_there_is_no_answer(tmp_path: Path) -> None:
    async with stage(tmp_path, Worker("a")) as found:
        found.control.broken = True
        found.gateway._usage._most = 3
        for _ in range(3):
            await ask(found)
        with pytest.raises(AuditUnavailable):
            await ask(found)
        found.control.broken = False
        await until(lambda: not len(found.gateway._usage))
        assert await ask(found) == story(5, 5)


@pytest.mark.attack
async def test_a_caller_that_reads_nothing_is_left(tmp_path: Path) -> None:
    worker = Worker("a")
    async with stage(tmp_path, worker, limits=GatewayLimits(send_seconds=0.3)) as found:
        found.control.serve(worker, longest=400_000)
        found.control.publish()
        await until(lambda: (last := found.gateway.view.last) is not None and last.version == 2)
        credentials = grpc.ssl_channel_credentials(authority().certificate_pem)
        # Without its guess at what the network holds, gRPC reads ahead 64 KiB only.
        name = PrincipalKind.GATEWAY.server_name
        options = [("grpc.ssl_target_name_override", name), ("grpc.http2.bdp_probe", 0)]
        address = f"127.0.0.1:{found.gateway.grpc_port}"
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            request = question(
                ENDPOINT, prompt="Hallo", sampling=generation_pb2.Sampling(max_tokens=300_000)
            )
            call = InferenceServiceStub(channel).Generate(request, metadata=metadata(found.token))
            await call.read()
            await until(lambda: bool(found.control.usages), 40)
            call.cancel()
        assert [usage.reason for usage in found.control.usages] == ["RESOURCE_EXHAUSTED"]
        assert worker.running == 0


async def test_many_requests_over_a_flapping_fleet_are_each_answered_once(tmp_path: Path) -> None:
    workers = [Worker(name) for name in "abcde"]
    patient = dataclasses.replace(QUICK, failures=1000, silent_seconds=5.0, stall_seconds=10.0)
    asked, answered = 400, Counter[str]()
    async with stage(tmp_path, *workers, routing=patient) as found, found.client() as client:
        limit = asyncio.Semaphore(16)

        async def one() -> None:
            async with limit:
                try:
                    pieces = client.generate(ENDPOINT, prompt="Hallo", max_tokens=20)
                    ids = [token async for piece in pieces for token in piece.token_ids]
                except ApplianceError as error:
                    answered[error.reason] += 1
                else:
                    answered["right" if ids == story(5, 20) else "wrong"] += 1

        async def flap() -> None:
            while True:
                workers[0].script = Script(die_after=7)
                await asyncio.sleep(0.05)
                workers[0].script = Script()
                await asyncio.sleep(0.05)

        flapping = asyncio.create_task(flap())
        await asyncio.gather(*(one() for _ in range(asked)))
        flapping.cancel()
        assert answered == {"right": asked}
        await reasons(found, asked)
        assert len({usage.request_id for usage in found.control.usages}) == asked
        steady = [worker.finished for worker in workers[1:]]
        assert max(steady) - min(steady) <= asked // 10
        assert all(worker.running == 0 for worker in workers)
