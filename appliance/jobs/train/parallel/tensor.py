"""Tensor parallel: each layer is split over the ranks of the tensor axis (arXiv 1909.08053).

Which projection is cut how is Hugging Face's own plan for the model. The vocabulary is cut too, in
the embedding and in the output projection, whose logits are put together again on every rank.

Called by `appliance.jobs.train.recipe`.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from transformers import LlamaConfig

from appliance.core.errors import Internal
from appliance.jobs.train.model import Stage

LAYER = "layers.*."
STYLES: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}


def split_layers(stage: Stage, config: LlamaConfig, axis: DeviceMesh) -> None:
    """Cut a stage's modules over the ranks of the tensor axis."""
    for index in stage.layers:
        # A plan of its own for each layer: parallelize_module empties the one it is given.
        parallelize_module(stage.model.layers[index], axis, _layer_plan(config))
    if stage.first:
        embedding = RowwiseParallel(input_layouts=Replicate())
        parallelize_module(stage.model, axis, {"embed_tokens": embedding})
    if stage.last:
        parallelize_module(stage, axis, {"lm_head": ColwiseParallel(output_layouts=Replicate())})
    stage.tie()


def _layer_plan(config: LlamaConfig) -> dict[str, ParallelStyle]:
    plan = {}
    for pattern, style in (config.base_model_tp_plan or {}).items():
        # Entries outside the layers are for the library's own loader; see `split_layers`.
        if not pattern.startswith(LAYER):
            continue
        if style not in STYLES:
            raise Internal(f"The model's tensor-parallel plan cuts {pattern} as {style}.")
        plan[pattern.removeprefix(LAYER)] = STYLES[style]()
    return plan
