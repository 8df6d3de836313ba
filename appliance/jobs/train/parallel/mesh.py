"""The mesh: every rank's place on the three axes pipeline, data and tensor.

The tensor axis is innermost, because it talks most and neighbouring ranks share a server; the
pipeline axis is outermost, because it talks least.

Called by `appliance.jobs.train.recipe`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from appliance.jobs.train.parallel.slices import DATA, PIPELINE, TENSOR, Coordinate
from appliance.kinds.train_settings import Degrees


@dataclass(frozen=True)
class Mesh:
    """Where this rank stands.

    `devices` is None when there is one rank and hence no process group.
    """

    degrees: Degrees
    pipeline: int
    at: Coordinate
    devices: DeviceMesh | None

    @classmethod
    def build(cls, degrees: Degrees, rank: int, device: torch.device) -> Mesh:
        """Make the process groups of the axes; every rank calls, with the checked degrees."""
        sizes = (degrees.pipeline, degrees.data, degrees.tensor)
        devices = None
        if degrees.ranks > 1:
            names = (PIPELINE, DATA, TENSOR)
            devices = init_device_mesh(device.type, sizes, mesh_dim_names=names)
        pipeline, rest = divmod(rank, degrees.data * degrees.tensor)
        data, tensor = divmod(rest, degrees.tensor)
        return cls(
            degrees, pipeline, Coordinate(data, tensor, degrees.data, degrees.tensor), devices
        )

    def axis(self, name: str) -> DeviceMesh | None:
        """The ranks along one axis; None when this rank is alone on it."""
        if self.devices is None or self.devices[name].size() == 1:
            return None
        return self.devices[name]

    def rank(self, pipeline: int, at: Coordinate) -> int:
        """The rank at a place."""
        return (pipeline * self.degrees.data + at.data) * self.degrees.tensor + at.tensor
