"""The hybrid trainer against a plain loop over the same model and data, in tokens per second.

One rank against one process shows what the machinery costs when nothing is parallel; two ranks of
one thread each, on every axis, against a plain process of two threads show what the axes cost and
give on this machine. The same number of threads is at work in both.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from transformers import LlamaConfig, LlamaForCausalLM

from appliance.api.jobs.v1 import job_pb2
from appliance.jobs.train.model import llama_config
from appliance.jobs.train.parallel.gradients import clip, settle
from appliance.jobs.train.recipe import Assembly, assemble
from appliance.jobs.train.settings import Settings
from bench.measure import Contender, compare

VOCABULARY = 2048
BATCH, LENGTH = 8, 128
STEPS, WARM_UP = 6, 2
CPU = torch.device("cpu")


def main() -> None:
    """Run both comparisons."""
    compare(
        "hybrid_trainer_one_rank",
        "tokens/s",
        Contender("ours, one rank, one thread", partial(_in_ranks, {}, 1)),
        Contender("plain loop, one thread", partial(_in_process, 1)),
        rounds=5,
    )
    for axis in ("data", "tensor", "pipeline"):
        compare(
            f"hybrid_trainer_{axis}_2",
            "tokens/s",
            Contender(f"ours, {axis} 2, one thread each", partial(_in_ranks, {axis: 2}, 2)),
            Contender("plain loop, two threads", partial(_in_process, 2)),
            rounds=3,
        )


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
    )


def _config() -> LlamaConfig:
    return llama_config(Settings.from_spec(_spec({})).shape, VOCABULARY, 0)


def _tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=generator)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def _rate(step: Callable[[], None]) -> float:
    for _ in range(WARM_UP):
        step()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS * BATCH * LENGTH / (time.perf_counter() - start)


def _in_process(threads: int) -> float:
    return _apart(_plain_rank, 1, (threads,))


def _in_ranks(mesh: dict[str, int], ranks: int) -> float:
    return _apart(_our_rank, ranks, (mesh, _free_port()))


def _apart(work: Callable[..., None], ranks: int, arguments: tuple[object, ...]) -> float:
    """Run `work(rank, result file, *arguments)` in fresh processes; return what rank 0 measured."""
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "rate"
        multiprocessing.start_processes(  # type: ignore[no-untyped-call]
            work, (str(result), *arguments), nprocs=ranks, start_method="spawn"
        )
        return float(result.read_text())


def _plain_rank(_: int, result: str, threads: int) -> None:
    torch.set_num_threads(threads)
    model = LlamaForCausalLM(_config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs, targets = _tokens()

    def step() -> None:
        logits = model(input_ids=inputs).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    Path(result).write_text(str(_rate(step)))


def _our_rank(rank: int, result: str, mesh: dict[str, int], port: int) -> None:
    torch.set_num_threads(1)
    settings = Settings.from_spec(_spec(mesh))
    if mesh:
        address = f"tcp://127.0.0.1:{port}"
        distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    assembly = assemble(settings, _config(), rank, CPU)
    rate = _rate(partial(_our_step, assembly))
    if rank == 0:
        Path(result).write_text(str(rate))
    if mesh:
        distributed.destroy_process_group()


def _our_step(assembly: Assembly) -> None:
    compute, at = assembly.forward_backward, assembly.mesh.at
    rows = assembly.settings.rows_per_rank
    mine = slice(at.data * rows, (at.data + 1) * rows)
    inputs, targets = _tokens()
    compute(
        inputs[mine] if compute.reads_inputs else None,
        targets[mine] if compute.reads_targets else None,
    )
    settle(assembly.parameters)
    clip(assembly.parameters, at, assembly.settings.gradient_clip, tied=False)
    assembly.optimizer.update(1e-3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
