"""A small training job, its tokens, a plain single-process trainer to compare with, and ranks.

The plain trainer is transformers' own LlamaForCausalLM, torch's own AdamW and gradient clipping in
one loop, without torch.distributed.
"""

from __future__ import annotations

import base64
import contextlib
import multiprocessing
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import distributed
from transformers import LlamaForCausalLM

from appliance.api.jobs.v1.job_pb2 import TrainSpec
from appliance.core.checkpoints import CheckpointPoint
from appliance.core.errors import Paused
from appliance.crypto.artifacts import ArtifactReader
from appliance.jobs.runtime.checkpoints import CheckpointSeries
from appliance.jobs.train.job import run
from appliance.jobs.train.model import first_weights, llama_config
from appliance.jobs.train.optimizer import learning_rate
from appliance.jobs.train.tokens import Batches, TokenIndex, TokenStream
from appliance.kinds.train_settings import TrainSettings
from tests.fakes.job_context import FakeJob

DATASET = "projects/p/datasets/d/versions/1"
VOCABULARY = 61
END_OF_TEXT = 60
STEPS = 10
LAYOUT_SECONDS = 240

SPEC: dict[str, Any] = {
    "dataset": DATASET,
    "output_model": "projects/p/models/m",
    "architecture": {
        "layers": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "attention_heads": 4,
        "key_value_heads": 2,
        "context_length": 32,
    },
    "steps": STEPS,
    "batch_size": 8,
    "sequence_length": 16,
    "learning_rate": 0.01,
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "gradient_clip": 0.5,
    "seed": 7,
    "checkpoint_interval": 4,
}


def tokens() -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Counting in steps of 7, with noise that cannot be learnt: the loss falls, and not to 0."""
    generator = np.random.Generator(np.random.Philox(1))
    counted = (np.arange(3000) * 7) % END_OF_TEXT
    noise = generator.integers(0, END_OF_TEXT, 3000)
    return np.where(generator.random(3000) < 0.2, noise, counted).astype("<u2")


def tokenizer() -> bytes:
    """A word-level tokenizer with one word per id."""
    words = {f"w{number}": number for number in range(END_OF_TEXT)} | {"<|end|>": END_OF_TEXT}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<|end|>"])
    return made.to_str().encode()


def dataset_files() -> dict[str, bytes | object]:
    """A prepared dataset in two uneven shards."""
    data = tokens()
    parts = {"train-00000.bin": data[:1001], "train-00001.bin": data[1001:]}
    shards = [{"file": file, "tokens": len(part), "split": "train"} for file, part in parts.items()]
    index = {
        "format": "tokens",
        "dtype": "uint16",
        "vocabulary_size": VOCABULARY,
        "end_of_text": END_OF_TEXT,
        "tokens": {"train": len(data), "validation": 0},
        "shards": shards,
    }
    files: dict[str, bytes | object] = {file: part.tobytes() for file, part in parts.items()}
    settings = {"eos_token": "<|end|>", "model_max_length": 1 << 20}
    return files | {
        "index.json": index,
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": settings,
    }


def training_job(folder: Path, *, tie: bool = False, **changes: object) -> FakeJob:
    """A train job; `data`, `tensor` and `pipeline` are degrees, the rest are fields of the spec."""
    mesh = {axis: changes.pop(axis, 1) for axis in ("data", "tensor", "pipeline")}
    architecture = SPEC["architecture"] | {"tie_embeddings": tie}
    spec = SPEC | {"architecture": architecture, "mesh": mesh} | changes
    ranks = mesh["data"] * mesh["tensor"] * mesh["pipeline"]
    job = FakeJob(folder, "train", spec, world_size=ranks)
    job.add_input(DATASET, "dataset", dataset_files())
    job.add_output("model", "projects/p/models/m/versions/1")
    job.add_output("checkpoints")
    return job


def continued(folder: Path, other: FakeJob, **changes: object) -> FakeJob:
    """A job in another layout that finds the checkpoints of `other`, in the same store."""
    job = training_job(folder, **changes)
    job.store = other.store
    job.orders["objects"] = other.orders["objects"]
    job.orders["inputs"] = other.orders["inputs"]
    job.orders["outputs"]["checkpoints"] = other.orders["outputs"]["checkpoints"]
    return job


def settings_of(job: FakeJob) -> TrainSettings:
    """The settings as the job will see them."""
    spec: TrainSpec = job.context().spec
    return TrainSettings.from_spec(spec)


def measured(job: FakeJob, name: str) -> list[float]:
    """A measurement of every step that was reported."""
    return [line["metrics"][name] for line in job.lines("progress")]


def checkpoint(job: FakeJob, step: int) -> ArtifactReader:
    """A checkpoint that the job left."""
    series: CheckpointSeries = job.context().checkpoints()
    place = CheckpointPoint(series.epoch, step).name
    return job.store.reader(
        replace(
            series.series,
            folder=f"{series.series.folder}/{place}",
            object=f"{series.series.object}/{place}",
        )
    )


@dataclass(frozen=True)
class PlainRun:
    """What the plain trainer saw."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]


def train_plainly(job: FakeJob) -> PlainRun:
    """Train the job's model on one process in one loop."""
    settings, dataset = settings_of(job), job.context().input(DATASET)
    config = llama_config(settings.shape, VOCABULARY, END_OF_TEXT)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            shape = tuple(weight.shape)
            whole = tuple((0, size) for size in shape)
            weight.copy_(first_weights(name, shape, whole, settings.seed, config.initializer_range))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    losses, norms = [], []
    with TokenStream(dataset, TokenIndex.read(dataset)) as stream:
        batches = Batches(stream, 16, 8, settings.seed)
        for step in range(STEPS):
            inputs, targets = batches.rows(step, 0, 8)
            logits = model(input_ids=inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, STEPS, 2, 0.01)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return PlainRun(losses, norms, weights)


def run_ranks(jobs: list[FakeJob]) -> None:
    """Run jobs of the same number of ranks one after the other in one process group."""
    world = jobs[0].orders["world_size"]
    meeting = jobs[0].folder / "meeting"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["appliance.jobs.train.job"])
    ranks = [
        context.Process(target=_rank, args=(rank, world, str(meeting), jobs), daemon=True)
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join(LAYOUT_SECONDS)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * world


def _rank(rank: int, world: int, meeting: str, jobs: list[FakeJob]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
    )
    for job in jobs:
        with contextlib.suppress(Paused):
            run(job.context(rank))
    distributed.barrier()
    distributed.destroy_process_group()


def key_of(job: FakeJob, slot: str) -> bytes:
    """The data key of an output."""
    return base64.b64decode(job.orders["outputs"][slot]["key"])
