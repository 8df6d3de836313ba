"""What the hybrid trainer is measured against: a plain loop, torch DDP, and transformers' own ways.

Every one trains the same Llama from the same weights on the same batches with the same AdamW and
the same clipping, in processes of one thread (the plain loop takes as many threads as there are
ranks). `fsdp` and `tensor_parallel` are what `from_pretrained` of transformers makes of a model for
a `DistributedConfig` with `fsdp_size`, and for `tp_plan="auto"`.

Each function is one rank's part: it takes its rank, the ranks, the folder of the model and the
batches, and returns a function that does one step and gives its loss, the mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaForCausalLM
from transformers.distributed import DistributedConfig

from appliance.jobs.train.optimizer import BETA1, BETA2, EPSILON

RATE, CLIP = 1e-3, 1.0
Batch = tuple[torch.Tensor, torch.Tensor]
Step = Callable[[Batch], float]


def plain(rank: int, ranks: int, folder: Path) -> Step:
    """One process over the whole batch."""
    del rank, ranks
    model = LlamaForCausalLM.from_pretrained(folder)
    optimizer = _adamw(model)
    return lambda batch: _step(model, model.parameters(), optimizer, batch)


def ddp(rank: int, ranks: int, folder: Path) -> Step:
    """DDP of torch: whole weights on each rank, gradients averaged."""
    model = DistributedDataParallel(LlamaForCausalLM.from_pretrained(folder))
    optimizer = _adamw(model)
    return lambda batch: _mean(
        _step(model, model.parameters(), optimizer, _share(batch, rank, ranks)), ranks
    )


def fsdp(rank: int, ranks: int, folder: Path) -> Step:
    """The FSDP2 of transformers: weights sharded after its own plan for the model."""
    model = LlamaForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(fsdp_size=ranks)
    )
    if not all(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise SystemExit("transformers has not sharded the model: the comparison is none")
    optimizer = _adamw(model)
    return lambda batch: _mean(
        _step(model, model.parameters(), optimizer, _share(batch, rank, ranks)), ranks
    )


def tensor_parallel(rank: int, ranks: int, folder: Path) -> Step:
    """The plan of transformers: layers split over the ranks, every rank sees the whole batch."""
    del rank, ranks
    model = LlamaForCausalLM.from_pretrained(folder, tp_plan="auto")
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise SystemExit("transformers has not split the model: the comparison is none")
    optimizer = _adamw(model)
    return lambda batch: _step(model, model.parameters(), optimizer, batch)


def _adamw(model: torch.nn.Module) -> torch.optim.AdamW:
    split = [p for p in model.parameters() if isinstance(p, DTensor)]
    whole = [p for p in model.parameters() if not isinstance(p, DTensor)]
    # Fused it takes no group of both.
    groups = [{"params": group} for group in (split, whole) if group]
    return torch.optim.AdamW(
        groups, lr=RATE, betas=(BETA1, BETA2), eps=EPSILON, weight_decay=0.0, fused=True
    )


def _step(
    model: torch.nn.Module,
    parameters: Iterator[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
) -> float:
    loss = _loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    _clip([parameter for parameter in parameters if parameter.grad is not None])
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _clip(parameters: list[torch.nn.Parameter]) -> None:
    """As `clip_grad_norm_`, also where some gradients are split over ranks and some are whole."""
    split = [p.grad for p in parameters if isinstance(p.grad, DTensor)]
    whole = [p.grad for p in parameters if not isinstance(p.grad, DTensor)]
    norms = [torch.nn.utils.get_total_norm(each) for each in (split, whole) if each]  # type: ignore[arg-type]  # none is None
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for each in (split, whole):
        torch.nn.utils.clip_grads_with_norm_(
            [p for p in parameters if isinstance(p.grad, DTensor) is (each is split)], CLIP, norm
        )


def _loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    inputs, targets = batch
    logits = model(input_ids=inputs).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def _share(batch: Batch, rank: int, ranks: int) -> Batch:
    rows = len(batch[0]) // ranks
    mine = slice(rank * rows, (rank + 1) * rows)
    return batch[0][mine], batch[1][mine]


def _mean(loss: float, ranks: int) -> float:
    total = torch.tensor(loss)
    distributed.all_reduce(total)
    return float(total) / ranks
