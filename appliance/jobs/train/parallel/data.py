"""Data parallel: each rank of the data axis sees other sequences and keeps a shard of the weights.

FSDP2 (`fully_shard`; arXiv 2304.11277): a layer's weights are gathered when it computes, and its
gradients are averaged and scattered afterwards.

Called by `appliance.jobs.train.recipe`.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from appliance.jobs.train.model import Stage


def shard(stage: Stage, axis: DeviceMesh, *, keep_gathered: bool) -> None:
    """Shard a stage's parameters over the ranks of the data axis.

    Args:
        stage: whose parameters are cut along dim 0.
        axis: the data axis.
        keep_gathered: keep weights gathered from forward to backward. A pipeline passes several
            microbatches through a stage and would gather them again for each.
    """
    for index in stage.layers:
        fully_shard(stage.model.layers[index], mesh=axis, reshard_after_forward=not keep_gathered)
    # The stage itself is the root: it holds what no layer holds, and pipelining looks for it there.
    fully_shard(stage, mesh=axis, reshard_after_forward=False)
