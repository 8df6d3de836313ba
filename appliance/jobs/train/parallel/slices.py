"""Which part of a parameter a rank holds.

Every parameter is cut at most twice: along one dim by the tensor axis, then what is left along
dim 0 by the data axis (FSDP2 cuts there). Cuts are as `torch.chunk` makes them: the first ranks get
the larger pieces, the last may get nothing. A rank therefore always holds one box of the global
tensor, which is all that seeding, checkpoints and export need to know about a layout.

Called by `model`, `checkpoint`, `export` and `parallel.gradients`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor

from appliance.core.errors import Internal

DATA = "data"
TENSOR = "tensor"
PIPELINE = "pipeline"

Box = tuple[tuple[int, int], ...]
"""Start and end along each dim of the global tensor."""


@dataclass(frozen=True)
class Coordinate:
    """Where a rank stands on the data and tensor axes; `size` fields are the degrees."""

    data: int
    tensor: int
    data_size: int
    tensor_size: int

    def peers(self) -> list[Coordinate]:
        """Everybody who holds a part of the same stage, in rank order."""
        return [
            Coordinate(data, tensor, self.data_size, self.tensor_size)
            for data in range(self.data_size)
            for tensor in range(self.tensor_size)
        ]


@dataclass(frozen=True)
class Cut:
    """How a parameter of a global shape is cut; a dim of None means that axis repeats it."""

    shape: tuple[int, ...]
    tensor_dim: int | None
    data_dim: int | None

    def box(self, at: Coordinate) -> Box:
        """What the rank at a coordinate holds."""
        box = [(0, size) for size in self.shape]
        if self.tensor_dim is not None:
            box[self.tensor_dim] = _chunk(box[self.tensor_dim], at.tensor, at.tensor_size)
        if self.data_dim is not None:
            box[self.data_dim] = _chunk(box[self.data_dim], at.data, at.data_size)
        return tuple(box)

    def is_primary_replica(self, at: Coordinate) -> bool:
        """Whether this rank writes its part where others hold the same."""
        alone_on_tensor = self.tensor_dim is not None or at.tensor == 0
        alone_on_data = self.data_dim is not None or at.data == 0
        return alone_on_tensor and alone_on_data

    def copies(self, at: Coordinate) -> int:
        """How many ranks of the stage hold the same part."""
        tensor = at.tensor_size if self.tensor_dim is None else 1
        return tensor * (at.data_size if self.data_dim is None else 1)


def cut_of(parameter: torch.Tensor) -> Cut:
    """How the parallelisms have cut a parameter."""
    if not isinstance(parameter, DTensor):
        return Cut(tuple(parameter.shape), None, None)
    dims: dict[str, int | None] = {}
    names = parameter.device_mesh.mesh_dim_names or ()
    for axis, placement in zip(names, parameter.placements, strict=True):
        # A strided shard is a shard of what an inner axis has left; it has a dim like any other.
        dim = getattr(placement, "dim", None)
        if dim is None and not placement.is_replicate():
            raise Internal(f"A parameter is placed as {placement} on the axis {axis}.")
        dims[axis] = dim
    return Cut(tuple(parameter.shape), dims.get(TENSOR), dims.get(DATA))


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies on this rank, as a plain tensor on the same memory."""
    if isinstance(tensor, DTensor):
        held: torch.Tensor = tensor.to_local()
        return held
    return tensor


def shape_of(box: Box) -> tuple[int, ...]:
    """Sizes of a box."""
    return tuple(end - start for start, end in box)


def overlap(one: Box, other: Box) -> Box | None:
    """The box that two boxes share; None when they share no element."""
    shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return shared if all(start < end for start, end in shared) else None


def inside(box: Box, frame: Box) -> tuple[slice, ...]:
    """The index of a box in a tensor that holds `frame`, which contains it."""
    return tuple(
        slice(start - origin, end - origin)
        for (start, end), (origin, _) in zip(box, frame, strict=True)
    )


def _chunk(span: tuple[int, int], index: int, pieces: int) -> tuple[int, int]:
    start, end = span
    each = -(-(end - start) // pieces)
    return min(start + index * each, end), min(start + (index + 1) * each, end)
