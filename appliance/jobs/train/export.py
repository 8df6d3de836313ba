"""The trained model as a Hugging Face folder, sealed.

`config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`, and weights in
bfloat16 as `model.safetensors` or numbered files with an index: what transformers and vLLM load.

The full model never lies in one place: every layer has a rank that writes it. Ranks that hold other
parts of a tensor send them to that rank, one tensor after the other, and the bytes stream into the
sealed file.

Called by `job`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch import distributed

from appliance.core.errors import InvalidInput
from appliance.core.model_files import INDEX
from appliance.crypto.artifacts import ArtifactReader, ArtifactWriter
from appliance.crypto.tensors import weight_files
from appliance.jobs.runtime.weights import as_bytes
from appliance.jobs.train.model import EMBEDDING, parameter_shapes
from appliance.jobs.train.parallel.schedules import layers_of_stage, rank_of_stage
from appliance.jobs.train.parallel.slices import cut_of, inside, local, shape_of
from appliance.jobs.train.recipe import TrainingState
from appliance.jobs.train.tensors import TensorWriter
from appliance.kinds.train_settings import TrainSettings

DTYPE = torch.bfloat16
LAYERS = "model.layers."
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class WeightFile:
    """One file of weights and the rank that writes it."""

    file: str
    rank: int
    shapes: dict[str, tuple[int, ...]]


def plan(shapes: Mapping[str, tuple[int, ...]], settings: TrainSettings) -> list[WeightFile]:
    """Which rank writes which tensors; pure, so that every rank knows without asking.

    The layers of a pipeline rank are dealt out to all ranks that hold parts of them; what is in no
    layer goes to the first of them.

    Args:
        shapes: of all parameters by name, in the order of the model.
        settings: of the run.
    """
    degrees = settings.degrees
    peers = degrees.data * degrees.tensor
    tensors: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        pipeline = _pipeline_rank(name, settings)
        turn = _layer(name) % peers if name.startswith(LAYERS) else 0
        tensors.setdefault(pipeline * peers + turn, {})[name] = shape
    ranks = sorted(tensors)
    return [
        WeightFile(file, rank, tensors[rank])
        for file, rank in zip(weight_files(len(ranks)), ranks, strict=True)
    ]


def write(
    assembly: TrainingState, rank: int, dataset: ArtifactReader, writer: ArtifactWriter
) -> int:
    """Write this rank's files of the model; every rank calls.

    Args:
        assembly: this rank's part.
        rank: of this process.
        dataset: the tokens that were trained on, with their tokenizer.
        writer: of the model; the caller finishes it.

    Returns:
        Number of parameters of the model, padding included.
    """
    shapes = parameter_shapes(assembly.config)
    files = plan(shapes, assembly.settings)
    _write_weights(assembly, rank, files, writer)
    if rank == 0:
        if len(files) > 1:
            writer.write_json(INDEX, _index(files))
        _write_settings(assembly, dataset, writer)
    return sum(math.prod(shape) for shape in shapes.values())


def _write_weights(
    assembly: TrainingState, rank: int, files: list[WeightFile], writer: ArtifactWriter
) -> None:
    ranks = {name: file.rank for file in files for name in file.shapes}
    with ExitStack() as stack:
        out = None
        for file in files:
            if file.rank == rank:
                out = TensorWriter(
                    stack.enter_context(writer.create(file.file)), file.shapes, DTYPE
                )
        # All ranks of a stage go through its tensors in the same order, so that each part that is
        # sent meets a rank that waits for it.
        for name, target in ranks.items():
            if name not in assembly.parameters:
                continue
            whole = _bring_together(assembly, name, rank, target)
            if out is not None and whole is not None:
                out.put(name, whole)


@torch.no_grad()
def _bring_together(
    assembly: TrainingState, name: str, rank: int, target: int
) -> torch.Tensor | None:
    """The whole of a parameter on the rank `target`; None on the others, which send their part."""
    mesh, parameter = assembly.mesh, assembly.parameters[name]
    cut = cut_of(parameter)
    mine = local(parameter.detach()).to(DTYPE)
    if rank != target:
        if cut.is_primary_replica(mesh.at) and mine.numel():
            distributed.send(as_bytes(mine), dst=target)
        return None
    whole = torch.empty(cut.shape, dtype=DTYPE, device=mine.device)
    frame = tuple((0, size) for size in cut.shape)
    whole[inside(cut.box(mesh.at), frame)] = mine
    for peer in mesh.at.peers():
        box = cut.box(peer)
        source = mesh.rank(mesh.pipeline, peer)
        if source == rank or not cut.is_primary_replica(peer) or not math.prod(shape_of(box)):
            continue
        part = torch.empty(shape_of(box), dtype=DTYPE, device=mine.device)
        distributed.recv(as_bytes(part), src=source)
        whole[inside(box, frame)] = part
    return whole


def _pipeline_rank(name: str, settings: TrainSettings) -> int:
    stage = settings.stages - 1
    if name == EMBEDDING:
        stage = 0
    elif name.startswith(LAYERS):
        layer = _layer(name)
        spans = (
            layers_of_stage(index, settings.stages, settings.shape.layers)
            for index in range(settings.stages)
        )
        stage = next(index for index, span in enumerate(spans) if layer in span)
    return rank_of_stage(settings.schedule, stage, settings.degrees.pipeline)


def _layer(name: str) -> int:
    return int(name.removeprefix(LAYERS).partition(".")[0])


def _index(files: list[WeightFile]) -> dict[str, object]:
    sizes = (math.prod(shape) for file in files for shape in file.shapes.values())
    return {
        "metadata": {"total_size": sum(sizes) * DTYPE.itemsize},
        "weight_map": {name: file.file for file in files for name in file.shapes},
    }


def _write_settings(
    assembly: TrainingState, dataset: ArtifactReader, writer: ArtifactWriter
) -> None:
    config = assembly.config.to_dict() | {"dtype": "bfloat16"}
    end_of_text = assembly.config.eos_token_id
    writer.write_json("config.json", config)
    writer.write_json(
        "generation_config.json",
        {"eos_token_id": end_of_text, "transformers_version": transformers.__version__},
    )
    if TOKENIZER not in dataset.files():
        raise InvalidInput("The dataset has no tokenizer.json. Prepare it again.")
    tokenizer = dataset.read_bytes(TOKENIZER)
    with writer.create(TOKENIZER) as file:
        file.write(tokenizer)
    with writer.create(TOKENIZER_CONFIG) as file:
        if TOKENIZER_CONFIG in dataset.files():
            found = dataset.read_json(TOKENIZER_CONFIG)
        else:
            found = _tokenizer_config(tokenizer, end_of_text)
        # The tokenizer has no end of its own: the model does.
        found["model_max_length"] = assembly.settings.shape.context_length
        file.write(json.dumps(found).encode())


def _tokenizer_config(tokenizer: bytes, end_of_text: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": Tokenizer.from_str(tokenizer.decode()).id_to_token(end_of_text),
        "clean_up_tokenization_spaces": False,
    }
