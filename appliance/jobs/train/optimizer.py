"""AdamW (arXiv 1711.05101) with linear warm-up and cosine decay.

AdamW treats every element by itself, so each rank updates its own slices as plain tensors, whatever
the layout; state is kept by the parameter's name.

Made by `appliance.jobs.train.recipe`, called by `loop`; `checkpoint` saves its state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.optim.adamw import adamw

from appliance.core.errors import Internal
from appliance.jobs.train.parallel.slices import local

BETA1 = 0.9
BETA2 = 0.95
EPSILON = 1e-8
LAST_SHARE = 0.1
GROUP = 16
"""Parameters that are moved at once: what they are grouped with changes no bit of them."""


def learning_rate(step: int, steps: int, warmup: int, highest: float) -> float:
    """The rate of a step, counted from 0.

    It rises linearly to `highest` over `warmup` steps and falls as a cosine to a tenth of it.
    """
    if step < warmup:
        return highest * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return highest * (LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


class Optimizer:
    """AdamW over this rank's slices.

    Matrices decay, norms do not. `means` and `squares` hold the running moments by name; `updates`
    counts the steps done.

    Args:
        parameters: by name, with memory.
        weight_decay: share of the learning rate by which matrices shrink each step.
        mark: called when a group of parameters has moved.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        weight_decay: float,
        mark: Callable[[], None] | None = None,
    ) -> None:
        self.means = {name: torch.zeros_like(local(p.detach())) for name, p in parameters.items()}
        self.squares = {name: torch.zeros_like(mean) for name, mean in self.means.items()}
        self.updates = 0
        self._parameters = parameters
        self._weight_decay = weight_decay
        self._mark = mark

    @torch.no_grad()
    def update(self, rate: float) -> None:
        """Move every parameter by its gradient, and drop the gradients."""
        names = list(self._parameters)
        matrices = [name for name in names if self._parameters[name].dim() > 1]
        norms = [name for name in names if self._parameters[name].dim() <= 1]
        for group in _groups(matrices):
            self._move(group, rate, self._weight_decay)
        for group in _groups(norms):
            self._move(group, rate, 0.0)
        self.updates += 1
        for parameter in self._parameters.values():
            parameter.grad = None

    def _move(self, names: list[str], rate: float, weight_decay: float) -> None:
        # FSDP may replace local tensors on first use: they are looked up anew each time.
        slices = [local(self._parameters[name]) for name in names]
        gradients = [self._gradient(name) for name in names]
        adamw(
            slices,
            gradients,
            [self.means[name] for name in names],
            [self.squares[name] for name in names],
            [],
            [torch.tensor(float(self.updates), device=each.device) for each in slices],
            fused=True,
            amsgrad=False,
            beta1=BETA1,
            beta2=BETA2,
            lr=rate,
            weight_decay=weight_decay,
            eps=EPSILON,
            maximize=False,
        )
        if self._mark is not None:
            self._mark()

    def _gradient(self, name: str) -> torch.Tensor:
        gradient = self._parameters[name].grad
        if gradient is None:
            raise Internal(f"The parameter {name} has no gradient.")
        return local(gradient)


def _groups(names: list[str]) -> Iterator[list[str]]:
    for first in range(0, len(names), GROUP):
        yield names[first : first + GROUP]
