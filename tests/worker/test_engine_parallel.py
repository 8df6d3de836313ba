"""A real engine of two tensor-parallel ranks on two cores; the last test drains it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import tiny_llama
from tests.fakes.attach import answers, beat, submit
from tests.fakes.served import Served

pytestmark = pytest.mark.engine

PROMPTS = [[1, 2, 3], [400], list(range(5, 60))]
COUNT = 24


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(
        tmp_path_factory.mktemp("parallel"), devices=[0, 1], tensor_parallel=2, cache_bytes=64 << 20
    )
    yield found
    found.worker.end()


def mapped(pids: list[int]) -> list[str]:
    """Files of shared memory that processes have open and others could open, too."""
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in pids]
    return [line for text in maps for line in text.splitlines() if "/dev/shm/" in line]


@pytest.mark.attack
def test_what_the_ranks_share_has_no_name(served: Served) -> None:
    shared = mapped(served.worker.family())
    assert shared
    assert [line for line in shared if not line.endswith(" (deleted)")] == []


async def test_two_ranks_make_the_tokens_of_transformers(served: Served) -> None:
    assert served.ready["type"] == "ready"
    call = served.stub().Attach()
    for index, prompt in enumerate(PROMPTS):
        await call.write(submit(index, prompt, max_tokens=COUNT))
    tokens, _, _ = await answers(call, len(PROMPTS))
    await served.channel.close()
    assert tokens == {i: tiny_llama.greedy(served.model, p, COUNT) for i, p in enumerate(PROMPTS)}


def test_each_rank_has_a_core_of_its_own(served: Served) -> None:
    cores = sorted(os.sched_getaffinity(0))
    ranks = {
        Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]: os.sched_getaffinity(pid)
        for pid in served.worker.family()
    }
    assert ranks[b"VLLM::Worker_TP0"] == {cores[0]}
    assert ranks[b"VLLM::Worker_TP1"] == {cores[1 % len(cores)]}


async def test_a_drain_ends_what_is_in_work_and_leaves_nothing(served: Served) -> None:
    worker = served.worker
    call = served.stub().Attach()
    os.kill(worker.process.pid, signal.SIGTERM)
    while not (await beat(call)).draining:
        pass
    # What a gateway sent before it heard of the drain is still answered.
    await call.write(submit(1, [1, 2], max_tokens=10))
    tokens, _, _ = await answers(call, 1)
    assert tokens[1] == tiny_llama.greedy(served.model, [1, 2], 10)
    await served.channel.close()
    assert worker.wait(20) == 0
    assert worker.report() == {}
    assert worker.left() == []
