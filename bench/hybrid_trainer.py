"""The hybrid trainer against what others would use for the same work, in tokens per second.

One rank against a plain loop of one thread shows what the machinery costs where nothing is
parallel. Two ranks of one thread each: on the data axis, where ours shards weights, against the
FSDP2 of transformers, which shards them too, with torch DDP, which does not, and a plain loop of
two threads beside it; on the tensor axis against the tensor parallel of transformers. The pipeline
axis has no like there and stands beside the plain loop.

All train the same weights on the same batches, and the tables count only when every loss of every
contender is that of the plain loop, to `MAX_APART`.
"""

from __future__ import annotations

import json
import math
import os
import socket
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing
from transformers import LlamaConfig, LlamaForCausalLM

from appliance.api.jobs.v1 import job_pb2
from appliance.jobs.train.model import llama_config
from appliance.jobs.train.parallel.gradients import clip, redistribute_like_parameters
from appliance.jobs.train.recipe import build_training_state
from appliance.kinds.train_settings import TrainSettings
from bench import trainer_peers as peers
from bench.measure import AT_MOST, Bar, Contender, Outcome, at_least, compare, run

NAME = "hybrid_trainer"
VOCABULARY = 2048
BATCH, LENGTH = 8, 128
STEPS, WARM_UP = 12, 3
ROUNDS = 5
MAX_APART = 1e-4
CPU = torch.device("cpu")
PLAIN_1, PLAIN_2 = "plain loop, one thread", "plain loop, two threads"
FSDP, DDP, TP = "transformers FSDP2", "torch DDP", "transformers tensor parallel"

Rank = Callable[[int, int, Path], peers.Step]


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """All tables, and how far the losses are apart."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        _save(model)
        trainers = Trainers(model)
        one = compare(
            f"{NAME}_one_rank",
            "tokens/s",
            trainers.of("ours, one rank, one thread", ours({}), 1, 1),
            trainers.of(PLAIN_1, peers.plain, 1, 1),
            rounds=ROUNDS,
        )
        plain = trainers.of(PLAIN_2, peers.plain, 1, 2)
        tables = {
            axis: compare(
                f"{NAME}_{axis}_2",
                "tokens/s",
                trainers.of(f"ours, {axis} 2", ours({axis: 2}), 2, 1),
                *(trainers.of(name, rank, 2, 1) for name, rank in others),
                plain,
                rounds=ROUNDS,
            )
            for axis, others in (
                ("data", ((FSDP, peers.fsdp), (DDP, peers.ddp))),
                ("tensor", ((TP, peers.tensor_parallel),)),
                ("pipeline", ()),
            )
        }
    bars = [
        at_least(one, PLAIN_1, 0.9),
        at_least(tables["data"], FSDP, 1.0),
        at_least(tables["tensor"], TP, 0.95),
        Bar("losses apart from the plain loop's", trainers.apart(), "", AT_MOST, MAX_APART, ROUNDS),
    ]
    return Outcome(bars, {"tables": [one, *tables.values()], "losses": trainers.losses})


class Trainers:
    """Contenders over one model, and the losses that each has had."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self.losses: dict[str, list[list[float]]] = {}

    def of(self, name: str, rank: Rank, ranks: int, threads: int) -> Contender:
        """A contender of so many processes, each of so many threads."""
        return Contender(name, partial(self._run, name, rank, ranks, threads))

    def apart(self) -> float:
        """The largest difference between a loss and that of the plain loop at the same step.

        Over all rounds; infinite when a loss is no number.
        """
        return apart(self.losses, self.losses[PLAIN_1][0])

    def _run(self, name: str, rank: Rank, ranks: int, threads: int) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            result = Path(scratch) / "result.json"
            arguments = (rank, ranks, threads, self._model, result, _free_port())
            multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
                _rank, arguments, nprocs=ranks, start_method="spawn"
            )
            found: dict[str, Any] = json.loads(result.read_text())
        self.losses.setdefault(name, []).append(found["losses"])
        return float(found["rate"])


def apart(rounds: dict[str, list[list[float]]], wanted: list[float]) -> float:
    """The largest difference between wanted losses and those of every round of every contender."""
    differences = [
        abs(loss - its)
        for each in rounds.values()
        for losses in each
        for loss, its in zip(losses, wanted, strict=True)
    ]
    # `max` would pass over what is no number.
    return max(each if math.isfinite(each) else math.inf for each in differences)


def _rank(  # noqa: PLR0913 - a process is told everything
    number: int, rank: Rank, ranks: int, threads: int, model: Path, result: Path, port: int
) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
    }
    if ranks > 1:
        distributed.init_process_group("gloo")
    step = rank(number, ranks, model)
    losses = [step(_batch(index)) for index in range(WARM_UP)]
    times = []
    for batch in [_batch(index) for index in range(WARM_UP, WARM_UP + STEPS)]:
        start = time.perf_counter()
        losses.append(step(batch))
        times.append(time.perf_counter() - start)
    # The median step: a machine that others use is slow now and then.
    rate = BATCH * LENGTH / statistics.median(times)
    if number == 0:
        result.write_text(json.dumps({"rate": rate, "losses": losses}))
    if ranks > 1:
        distributed.barrier()
    # Without the end of libraries: threads of torch's abort in it now and then.
    os._exit(0)


def ours(mesh: dict[str, int]) -> Rank:
    """The trainer's own steps over a mesh."""
    return partial(_ours, mesh)


def _ours(mesh: dict[str, int], rank: int, ranks: int, _: Path) -> peers.Step:
    settings = TrainSettings.from_spec(_spec(mesh))
    assembly = build_training_state(settings, _config(), rank, CPU)
    compute, at = assembly.forward_backward, assembly.mesh.at
    rows = settings.rows_per_rank
    mine = slice(at.data * rows, (at.data + 1) * rows)

    def step(batch: peers.Batch) -> float:
        inputs, targets = batch
        loss = compute(
            inputs[mine] if compute.reads_inputs else None,
            targets[mine] if compute.reads_targets else None,
        )
        redistribute_like_parameters(assembly.parameters)
        clip(assembly.parameters, at, settings.gradient_clip, tied=False)
        assembly.optimizer.update(peers.RATE)
        total = torch.zeros(()) if loss is None else loss / settings.degrees.data
        if ranks > 1:
            distributed.all_reduce(total)
        # Ranks of one tensor group have the same loss.
        return float(total) / settings.degrees.tensor

    return step


def _spec(mesh: dict[str, int]) -> job_pb2.TrainSpec:
    shape = job_pb2.Architecture(
        layers=4,
        hidden_size=256,
        intermediate_size=768,
        attention_heads=8,
        key_value_heads=4,
        context_length=LENGTH,
    )
    return job_pb2.TrainSpec(
        architecture=shape,
        mesh=job_pb2.Mesh(**mesh),
        steps=STEPS,
        batch_size=BATCH,
        sequence_length=LENGTH,
        gradient_clip=peers.CLIP,
        weight_decay=0.0,
    )


def _config() -> LlamaConfig:
    return llama_config(TrainSettings.from_spec(_spec({})).shape, VOCABULARY, 0)


def _save(folder: Path) -> None:
    """The first weights of the trainer, as a model that others load."""
    assembly = build_training_state(TrainSettings.from_spec(_spec({})), _config(), 0, CPU)
    model = LlamaForCausalLM(_config())
    model.load_state_dict({name: value.detach() for name, value in assembly.parameters.items()})
    model.save_pretrained(folder)


def _batch(step: int) -> peers.Batch:
    """Inputs and targets (rows, tokens) of a step; a few words that come again, to be learnt."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(64, (BATCH, LENGTH + 1), generator=generator)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
