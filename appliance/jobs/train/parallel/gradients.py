"""What happens to gradients between backward and optimiser: tied weights, norm, clipping.

Rules kept here:
* a gradient is laid out like its parameter before anything else looks at it;
* a tied embedding is one parameter. Where its two uses lie in two stages, each stage keeps a copy,
  and both copies get the sum of both gradients, so they stay equal;
* the norm counts every element of the model once: not once per copy on the tensor axis, and not
  twice for a tied embedding. It is the norm that one rank would compute.

Sums are made over local slices; the layouts of parameters differ (some are cut over two axes, some
over one, some not at all), and torch's own clipping cannot mix them.

Called by `appliance.jobs.train.recipe` and `loop`.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from appliance.core.errors import Internal
from appliance.jobs.train.model import EMBEDDING, HEAD
from appliance.jobs.train.parallel.mesh import Mesh
from appliance.jobs.train.parallel.slices import Coordinate, cut_of, local

EPSILON = 1e-6


@torch.no_grad()
def redistribute_like_parameters(parameters: dict[str, nn.Parameter]) -> None:
    """Lay every gradient out as its parameter is.

    Backward may leave the gradient of a parameter that tensor parallel cut as unfinished sums, or
    repeated on every rank.
    """
    for parameter in parameters.values():
        gradient = _gradient(parameter)
        if not (isinstance(parameter, DTensor) and isinstance(gradient, DTensor)):
            continue
        if gradient.placements != parameter.placements:
            parameter.grad = gradient.redistribute(placements=parameter.placements)


class TiedEmbedding:
    """Adds up the gradients of an embedding and of the output projection that is tied to it.

    Args:
        mesh: of the run.
        first: pipeline rank of the first stage.
        last: pipeline rank of the last stage.

    Every rank must construct it: process groups are made together.
    """

    def __init__(self, mesh: Mesh, first: int, last: int) -> None:
        self._group: distributed.ProcessGroup | None = None
        self._apart = first != last
        if self._apart:
            pairs = [[mesh.rank(first, at), mesh.rank(last, at)] for at in mesh.at.peers()]
            self._group, _ = distributed.new_subgroups_by_enumeration(pairs)

    @torch.no_grad()
    def add_up(self, parameters: dict[str, nn.Parameter]) -> None:
        """Give both copies the sum of their gradients; ranks with neither do nothing."""
        copies = [
            local(_gradient(parameters[name])) for name in (EMBEDDING, HEAD) if name in parameters
        ]
        if self._apart:
            for gradient in copies:
                distributed.all_reduce(gradient, group=self._group)
        elif copies:
            embedding, head = copies
            head.copy_(embedding.add_(head))


@torch.no_grad()
def clip(
    parameters: dict[str, nn.Parameter], at: Coordinate, largest: float, *, tied: bool
) -> float:
    """Scale all gradients so that their norm over the whole model is at most `largest`.

    Args:
        parameters: of this rank, by name.
        at: this rank's coordinate.
        largest: the norm to clip to.
        tied: whether the output projection is the embedding.

    Returns:
        The norm before clipping; the same on every rank. Not finite if a gradient is not.
    """
    gradients: dict[int, list[torch.Tensor]] = defaultdict(list)
    for name, parameter in parameters.items():
        copy_of_embedding = tied and name == HEAD
        if not copy_of_embedding:
            copies = cut_of(parameter).copies(at)
            gradients[copies].append(local(_gradient(parameter)))
    device = local(next(iter(parameters.values()))).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for copies, group in gradients.items():
        total += nn.utils.get_total_norm(group).double() ** 2 / copies
    if distributed.is_initialized():
        distributed.all_reduce(total)
    norm = total.sqrt().item()
    if norm > largest:
        for parameter in parameters.values():
            local(_gradient(parameter)).mul_(largest / (norm + EPSILON))
    return norm


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        raise Internal("A parameter has no gradient: backward did not reach it.")
    return parameter.grad
