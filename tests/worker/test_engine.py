"""One real engine on one core, shared by the tests in their order; the last of them kills it."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from safetensors.torch import load_file

from appliance.api.inference.v1 import worker_service_pb2_grpc
from appliance.core.identity import PrincipalKind
from tests.fakes import tiny_llama
from tests.fakes.attach import answers, beat, submit
from tests.fakes.served import Served, Standing
from tests.fakes.worker_agent import Identities, WorkerProcess, connect

pytestmark = pytest.mark.engine

PROMPTS = [[1, 2, 3], [400], list(range(5, 60)), [7, 7, 7, 9]]
COUNT = 24
MANY, SIDE_BY_SIDE, LENGTH = 1000, 128, 256
"""Answers, how many of them the engine has in one step, and their tokens with the prompt."""
TOKENS = 400
"""The tokenizer has fewer than the embedding has rows, as after padding."""


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    found = Standing(
        lambda folder: Served(folder, tokens=TOKENS), lambda: tmp_path_factory.mktemp("engine")
    )
    yield found
    found.end()


@pytest.fixture
def served(standing: Standing) -> Served:
    return standing.served()


async def test_it_is_ready_and_says_where(served: Served) -> None:
    assert served.ready["type"] == "ready"
    served.stub()
    async with served.channel as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        found = await check(health_pb2.HealthCheckRequest())
    assert found.status == health_pb2.HealthCheckResponse.SERVING


async def test_streamed_tokens_are_those_of_transformers(served: Served) -> None:
    call = served.stub().Attach()
    for index, prompt in enumerate(PROMPTS):
        await call.write(submit(index, prompt, max_tokens=COUNT))
    tokens, finished, messages = await answers(call, len(PROMPTS))
    await served.channel.close()
    expected = {i: tiny_llama.greedy(served.model, p, COUNT, TOKENS) for i, p in enumerate(PROMPTS)}
    assert tokens == expected
    assert set(finished.values()) == {2}
    # Tokens of one step share a message; how many steps there are is the engine's business.
    assert messages < COUNT * len(PROMPTS)


async def test_no_answer_has_an_id_that_the_tokenizer_does_not_have(served: Served) -> None:
    free = tiny_llama.greedy(served.model, PROMPTS[0], COUNT)
    assert max(free) >= TOKENS
    call = served.stub().Attach()
    for index in range(4):
        await call.write(submit(index, [index + 1], max_tokens=128, temperature=2.0, seed=index))
    tokens, _, _ = await answers(call, 4)
    await served.channel.close()
    assert {len(answer) for answer in tokens.values()} == {128}
    assert max(max(answer) for answer in tokens.values()) < TOKENS


async def test_an_end_token_ends_the_answer_unless_told_not_to(served: Served) -> None:
    full = tiny_llama.greedy(served.model, PROMPTS[0], COUNT, TOKENS)
    end = full[5]
    first = full.index(end) + 1
    call = served.stub().Attach()
    await call.write(submit(1, PROMPTS[0], [end], max_tokens=COUNT))
    await call.write(submit(2, PROMPTS[0], [end], max_tokens=COUNT, ignore_end=True))
    tokens, finished, _ = await answers(call, 2)
    await served.channel.close()
    assert tokens == {1: full[:first], 2: full}
    assert finished == {1: 1, 2: 2}


async def test_a_continuation_goes_on_token_by_token(served: Served) -> None:
    full = tiny_llama.greedy(served.model, PROMPTS[0], COUNT, TOKENS)
    call = served.stub().Attach()
    await call.write(submit(1, PROMPTS[0] + full[:10], max_tokens=COUNT - 10))
    tokens, _, _ = await answers(call, 1)
    await served.channel.close()
    assert tokens == {1: full[10:]}


async def test_the_same_seed_gives_the_same_answer(served: Served) -> None:
    call = served.stub().Attach()
    for identifier, seed in enumerate([5, 5, 6]):
        await call.write(
            submit(identifier, [1, 2], max_tokens=16, temperature=1.0, seed=seed, top_k=50)
        )
    tokens, _, _ = await answers(call, 3)
    await served.channel.close()
    assert tokens[0] == tokens[1] != tokens[2]


async def test_waiting_for_work_takes_no_core(served: Served) -> None:
    """The ranks looked for it without a pause, and what shares their cores stood still."""

    def processor_seconds() -> float:
        ticks = 0
        for pid in served.worker.family():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    call = served.stub().Attach()
    await call.write(submit(1, PROMPTS[0], max_tokens=1))
    await answers(call, 1)
    before = processor_seconds()
    await asyncio.sleep(0.5)
    assert processor_seconds() - before < 0.3
    await served.channel.close()


async def test_a_gateway_that_leaves_frees_its_slots(served: Served) -> None:
    watching = served.stub().Attach()
    mine = served.channel
    leaving = served.stub().Attach()

    async def ask() -> None:
        for identifier in range(MANY):
            await leaving.write(submit(identifier, [3], ignore_end=True))

    async with asyncio.timeout(60):
        asking = asyncio.create_task(ask())
        while (before := await beat(watching)).running + before.waiting < MANY * 3 / 4:
            pass
        leaving.cancel()
        while (found := await beat(watching)).running or found.waiting:
            pass
    # Not by the clock: all of them but those that ran already have all of their steps before them.
    needed = (MANY * 3 / 4 / SIDE_BY_SIDE - 1) * (LENGTH - 1)
    assert found.steps - before.steps < needed / 2
    asking.cancel()
    await served.channel.close()
    await mine.close()


@pytest.mark.attack
@pytest.mark.parametrize(
    "kind", [PrincipalKind.NODE, PrincipalKind.REPLICA, PrincipalKind.USER, PrincipalKind.CONTROL]
)
async def test_only_gateways_may_attach(served: Served, kind: PrincipalKind) -> None:
    call = served.stub(kind).Attach()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await served.channel.close()


@pytest.mark.attack
async def test_another_authority_s_gateway_is_refused(served: Served) -> None:
    async with connect(served.ready["address"], Identities(), PrincipalKind.GATEWAY) as channel:
        call = worker_service_pb2_grpc.WorkerServiceStub(channel).Attach()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def metric(served: Served, name: str) -> float:
    with urllib.request.urlopen(f"http://{served.ready['metrics']}/metrics") as response:
        lines = response.read().decode().splitlines()
    return float(dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))[name])


async def test_metrics_count_tokens_on_loopback(served: Served) -> None:
    before = metric(served, "appliance_worker_tokens")
    call = served.stub().Attach()
    await call.write(submit(1, PROMPTS[0], max_tokens=COUNT))
    await answers(call, 1)
    await served.channel.close()
    async with asyncio.timeout(10):
        while metric(served, "appliance_worker_answers"):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)
    assert metric(served, "appliance_worker_tokens") >= before + COUNT


def _files_within_reach(worker: WorkerProcess, store: Path) -> Iterator[Path]:
    """What lies in the store and in shared memory, and what the processes have open."""
    yield from (p for root in (store, Path("/dev/shm")) for p in root.rglob("*") if p.is_file())
    for pid in worker.family():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith(("/memfd:", "/")) and "/dev/" not in target:
                yield link


@pytest.mark.attack
def test_no_weight_lies_anywhere_in_the_clear(served: Served) -> None:
    weights = load_file(served.folder / "model.safetensors")
    samples = [w.flatten()[8:24].numpy().tobytes() for w in weights.values() if w.dim() > 1]
    files = list(_files_within_reach(served.worker, served.store.root))
    found = []
    for path in files:
        try:
            data = path.read_bytes()
        except OSError:
            continue
        found += [path for sample in samples if sample in data]
    assert found == []
    assert (served.folder / "model.safetensors").read_bytes().count(samples[0]) == 1


@pytest.mark.attack
def test_the_key_is_in_no_argument_and_no_variable(served: Served) -> None:
    key = served.store.key
    forms = [key, key.hex().encode(), base64.b64encode(key)]
    pids = served.worker.family()
    assert len(pids) >= 3
    for pid in pids:
        for name in ("cmdline", "environ"):
            data = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not any(form in data for form in forms)
    assert not any(form in served.worker.log.read_bytes() for form in forms)


def test_the_configuration_is_gone_while_it_serves(served: Served) -> None:
    folders = list(Path("/dev/shm").glob(f"appliance-worker-{served.worker.process.pid}-*"))
    assert len(folders) == 1
    assert not (folders[0] / "config.json").exists()


@pytest.mark.attack
def test_when_the_engine_is_killed_all_of_the_worker_ends_at_once(served: Served) -> None:
    worker = served.worker
    engine = min(
        pid
        for pid in worker.children(worker.process.pid)
        # Not by its title: that cannot be set in every environment.
        if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(engine, signal.SIGKILL)
    killed = time.monotonic()
    assert worker.wait(5) == 1
    assert time.monotonic() - killed < 1
    assert worker.left() == []
    said = worker.report()
    assert (said["type"], said["reason"]) == ("error", "UNAVAILABLE")
    assert str(engine) in said["message"]
    assert not list(Path("/dev/shm").glob(f"appliance-worker-{worker.process.pid}-*"))


async def test_a_small_model_in_bfloat16_answers(tmp_path: Path) -> None:
    """On processors with AMX its rank died of SIGILL; others never had the fault."""
    found = Served(tmp_path, dtype=torch.bfloat16)
    try:
        assert found.ready["type"] == "ready"
        call = found.stub().Attach()
        await call.write(submit(1, PROMPTS[0], max_tokens=4))
        tokens, _, _ = await answers(call, 1)
        await found.channel.close()
        assert len(tokens[1]) == 4
    finally:
        found.worker.end()
