"""Words between ranks, as JSON bytes: no pickle, unlike the object collectives of torch.

Called by outputs, checkpoints and kinds. Every rank of the job must call, in the same order.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import distributed


def gather(value: Any) -> list[Any]:  # noqa: ANN401  # whatever JSON holds
    """The values of all ranks, by rank, on every rank. A barrier, too.

    One rank alone gets its own value. Runs over the CPU backend of the default process group,
    whatever the device is.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return [json.loads(json.dumps(value))]
    mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    world = distributed.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    distributed.all_gather(sizes, torch.tensor([mine.numel()]))
    longest = int(max(size.item() for size in sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: mine.numel()] = mine
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(world)]
    distributed.all_gather(parts, padded)
    return [
        json.loads(part[: int(size.item())].numpy().tobytes())
        for part, size in zip(parts, sizes, strict=True)
    ]
