"""Every family that is served, by a real worker on one core: its tokens are those of transformers.

`make families` runs this alone: an engine takes half a minute to start.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from appliance.api.inference.v1 import worker_service_pb2_grpc
from appliance.core.families import BY_CLASS, FamilyUse
from appliance.core.identity import PrincipalKind
from appliance.crypto.artifacts import ArtifactReader
from appliance.jobs.assess import evaluate
from tests.fakes import tiny_family
from tests.fakes.attach import answers, submit
from tests.fakes.worker_agent import Identities, Store, WorkerProcess, connect
from tests.families.conftest import Folder
from tests.families.test_quantize import QUANTIZED, quantized

pytestmark = [pytest.mark.families, pytest.mark.engine, pytest.mark.timeout(400)]

SERVED = [name for name in tiny_family.CLASSES if FamilyUse.TEXT in BY_CLASS[name].works]
SPREAD = [name for name in tiny_family.CLASSES if FamilyUse.SPREAD in BY_CLASS[name].works]
PROMPTS = [[3, 5, 8, 13], list(range(100, 140))]
"""The second one is longer than the sliding windows."""
COUNT = 16
START_SECONDS = 300


@torch.no_grad()
def greedy(model: PreTrainedModel | torch.nn.Module, prompt: list[int]) -> list[int]:
    """The likeliest token, `COUNT` times over, each from the whole text before it."""
    ids = list(prompt)
    for _ in range(COUNT):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


async def served(tmp: Path, folder: Path, ranks: int = 1) -> list[list[int]]:
    """What a worker answers to the prompts."""
    store, identities = Store(tmp / "store").seal(folder), Identities()
    orders = store.orders(identities, tensor_parallel=ranks, devices=list(range(ranks)))
    worker = WorkerProcess(orders, tmp / "log")
    try:
        ready = worker.report(START_SECONDS)
        assert ready["type"] == "ready", (ready, worker.log.read_text()[-4000:])
        async with connect(ready["address"], identities, PrincipalKind.GATEWAY) as channel:
            call = worker_service_pb2_grpc.WorkerServiceStub(channel).Attach()
            for number, prompt in enumerate(PROMPTS):
                await call.write(submit(number, prompt, max_tokens=COUNT, ignore_end=True))
            tokens, _, _ = await answers(call, len(PROMPTS))
            return [tokens[number] for number in range(len(PROMPTS))]
    finally:
        worker.end()


def same(found: list[list[int]], expected: list[list[int]]) -> int:
    """How many tokens agree before the first that does not, the fewest of any answer."""
    pairs = [list(zip(one, other, strict=True)) for one, other in zip(found, expected, strict=True)]
    return min(next((n for n, (a, b) in enumerate(each) if a != b), COUNT) for each in pairs)


@pytest.mark.parametrize("architecture", SERVED)
async def test_a_served_family_answers_as_transformers_does(
    tmp_path: Path, tiny: Folder, architecture: str
) -> None:
    model, folder = tiny(architecture)
    found = await served(tmp_path, folder)
    assert found == [greedy(model, prompt) for prompt in PROMPTS]


async def test_gpt2_as_it_was_first_published_answers_the_same(
    tmp_path: Path, tiny: Folder
) -> None:
    model, folder = tiny("GPT2LMHeadModel")
    found = await served(tmp_path, tiny_family.without_prefix(folder, tmp_path / "m"))
    assert found == [greedy(model, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("architecture", SPREAD)
async def test_a_family_on_several_devices_answers_the_same(
    tmp_path: Path, tiny: Folder, architecture: str
) -> None:
    model, folder = tiny(architecture)
    found = await served(tmp_path, folder, ranks=2)
    assert found == [greedy(model, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("architecture", QUANTIZED)
async def test_a_quantized_model_is_served_as_it_is_measured(
    tmp_path: Path, tiny: Folder, architecture: str
) -> None:
    _, folder = tiny(architecture)
    reader = quantized(tmp_path, folder).output("model")
    found = await served(tmp_path, plain(reader, tmp_path / "plain"))
    measured = evaluate.load(reader, reader.read_json("config.json"))
    expected = [greedy(measured, prompt) for prompt in PROMPTS]
    # Rounding in another order may choose another token once two are about as likely.
    assert same(found, expected) >= COUNT // 2


def plain(reader: ArtifactReader, folder: Path) -> Path:
    """The decrypted files of a model in a folder."""
    folder.mkdir()
    for file in reader.files():
        (folder / file).write_bytes(reader.read_bytes(file))
    return folder
