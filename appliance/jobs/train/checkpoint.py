"""Checkpoints that any layout can read, whatever layout wrote them.

Every rank writes the slices it holds (of parameters and of the optimiser's moments, one copy of
each) as `rank-00003.safetensors`, and `rank-00003.json`, which says of each tensor its global shape
and the box of it that is stored. Rank 0 adds `state.json`. To load, a rank reads from the files of
all ranks the boxes that overlap with what it holds now.

Rules kept here:
* tensors and JSON, nothing that could be code (the metadata of torch's own distributed checkpoints
  is a pickle);
* tensors go by the parameter's name and global shape, never by rank or position;
* no rank reads or holds more than its own slices, and one file is open at a time;
* a job goes on from its own run's checkpoint alone; one that begins with another job's checkpoint
  needs the same model, and may have other settings. What does not cover a slice is refused.

Called by `loop`, through the runtime's `CheckpointSeries`, which seals the files and
makes a checkpoint appear whole or not at all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import torch

from appliance.core.errors import FailedPrecondition, InvalidInput
from appliance.crypto.artifacts import ArtifactReader, ArtifactWriter
from appliance.jobs.train.model import stored_name
from appliance.jobs.train.parallel.slices import Box, cut_of, inside, local, overlap, shape_of
from appliance.jobs.train.recipe import TrainingState
from appliance.jobs.train.tensors import TensorReader, TensorWriter

FORMAT = "sliced-checkpoint-1"
STATE = "state.json"
PARAMETERS = "parameters"
MEANS = "means"
SQUARES = "squares"


@dataclass(frozen=True)
class Losses:
    """What a resumed run needs to report the same result as an unbroken one."""

    first: float
    last: float


@dataclass(frozen=True)
class _Slice:
    """A box of a stored tensor and the memory it lies in on this rank."""

    key: str
    shape: tuple[int, ...]
    box: Box
    memory: torch.Tensor
    is_writer: bool


def write(assembly: TrainingState, rank: int, losses: Losses, writer: ArtifactWriter) -> None:
    """Write this rank's files; every rank calls, each with its own writer."""
    mine = {piece.key: piece for piece in _slices(assembly) if piece.is_writer}
    shapes = {key: shape_of(piece.box) for key, piece in mine.items()}
    with writer.create(f"rank-{rank:05d}.safetensors") as file:
        tensors = TensorWriter(file, shapes, torch.float32)
        for key, piece in mine.items():
            tensors.put(key, piece.memory)
    index = {key: {"shape": piece.shape, "box": piece.box} for key, piece in mine.items()}
    writer.write_json(f"rank-{rank:05d}.json", index)
    if rank == 0:
        state = {
            "format": FORMAT,
            "run": _run(assembly),
            "updates": assembly.optimizer.updates,
            "losses": asdict(losses),
        }
        writer.write_json(STATE, state)


@torch.no_grad()
def read(assembly: TrainingState, checkpoint: ArtifactReader, *, same_run: bool = True) -> Losses:
    """Fill parameters and optimiser of this rank from a checkpoint.

    Args:
        assembly: to fill.
        checkpoint: to read.
        same_run: whether it must be of a run with the same steps, batches and seed; else of the
            same model is enough.

    Raises:
        InvalidInput: it belongs to another run.
        FailedPrecondition: it does not hold all of a slice.
        Tampered: a file is not what was written.
    """
    state = checkpoint.read_json(STATE)
    _check_run(state, _run(assembly) if same_run else _model(assembly))
    wanted: dict[str, list[_Slice]] = defaultdict(list)
    for piece in _slices(assembly):
        wanted[piece.key].append(piece)
    missing = {
        id(piece): math.prod(shape_of(piece.box)) for group in wanted.values() for piece in group
    }
    for name in checkpoint.files():
        if not (name.startswith("rank-") and name.endswith(".json")):
            continue
        held = _held(checkpoint.read_json(name), wanted)
        if not held:
            continue
        with checkpoint.open(name.removesuffix(".json") + ".safetensors") as file:
            tensors = TensorReader(file)
            for piece, box, shared in held:
                target = piece.memory[inside(shared, piece.box)]
                target.copy_(tensors.read(piece.key, box, shared))
                missing[id(piece)] -= target.numel()
    for group in wanted.values():
        for piece in group:
            if missing[id(piece)]:
                raise FailedPrecondition(
                    f"The checkpoint does not hold all of {piece.key}. Start the job anew."
                )
    assembly.optimizer.updates = int(state["updates"])
    return Losses(**state["losses"])


def _held(index: dict[str, Any], wanted: dict[str, list[_Slice]]) -> list[tuple[_Slice, Box, Box]]:
    """Of one rank's index: which slice overlaps with which stored box, and where."""
    found = []
    for key, entry in index.items():
        box = tuple((int(start), int(end)) for start, end in entry["box"])
        for piece in wanted.get(key, []):
            if tuple(entry["shape"]) != piece.shape:
                raise InvalidInput(f"The checkpoint holds {key} in another shape.")
            if shared := overlap(box, piece.box):
                found.append((piece, box, shared))
    return found


def _slices(assembly: TrainingState) -> list[_Slice]:
    tied = assembly.config.tie_word_embeddings
    at = assembly.mesh.at
    slices = []
    for name, parameter in assembly.parameters.items():
        cut = cut_of(parameter)
        stored = stored_name(name, tied=tied)
        memories = {
            PARAMETERS: local(parameter.detach()),
            MEANS: assembly.optimizer.means[name],
            SQUARES: assembly.optimizer.squares[name],
        }
        # A tied projection reads what the embedding wrote, and writes nothing itself.
        is_writer = cut.is_primary_replica(at) and stored == name
        slices += [
            _Slice(f"{kind}/{stored}", cut.shape, cut.box(at), memory, is_writer)
            for kind, memory in memories.items()
        ]
    return slices


def _model(assembly: TrainingState) -> dict[str, Any]:
    """What must be the same for another run to begin with a checkpoint."""
    return {**asdict(assembly.settings.shape), "vocabulary": assembly.config.vocab_size}


def _run(assembly: TrainingState) -> dict[str, Any]:
    """What must be the same for a run to go on; the layout need not be."""
    settings = assembly.settings
    return {
        **_model(assembly),
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "sequence_length": settings.sequence_length,
        "seed": settings.seed,
    }


def _check_run(state: dict[str, Any], run: dict[str, Any]) -> None:
    if state.get("format") != FORMAT:
        raise InvalidInput(
            "The checkpoint has a format this version cannot read. Start the job anew."
        )
    for key, value in run.items():
        if state["run"].get(key) != value:
            raise InvalidInput(
                f"The checkpoint was made with {key} {state['run'].get(key)}, this run has"
                f" {value}. Use the same value, or start a new job."
            )
