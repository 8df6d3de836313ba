"""AdamW by name, against torch's own; the learning rate over the steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from appliance.core.errors import Internal
from appliance.jobs.train.optimizer import GROUP, Optimizer, learning_rate


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return {
        "matrix": nn.Parameter(torch.randn(4, 3, generator=generator)),
        "norm": nn.Parameter(torch.randn(5, generator=generator)),
    }


def test_updates_are_those_of_torch() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = Optimizer(ours, weight_decay=0.3)
    groups = [
        {"params": [theirs["matrix"]], "weight_decay": 0.3},
        {"params": [theirs["norm"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(2)
    for step in range(5):
        rate = 0.1 / (step + 1)
        for name, parameter in ours.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            theirs[name].grad = parameter.grad.clone()
        for group in reference.param_groups:
            group["lr"] = rate
        optimizer.update(rate)
        reference.step()
        assert all(parameter.grad is None for parameter in ours.values())
    assert optimizer.updates == 5
    for name, parameter in ours.items():
        assert torch.equal(parameter, theirs[name])
        assert torch.equal(optimizer.means[name], reference.state[theirs[name]]["exp_avg"])
        assert torch.equal(optimizer.squares[name], reference.state[theirs[name]]["exp_avg_sq"])


def test_parameters_move_in_groups_to_the_same_bits_and_each_group_is_marked() -> None:
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(3, 2, generator=generator) for _ in range(2 * GROUP + 1)]
    gradients = [torch.randn(3, 2, generator=generator) for _ in values]
    marks: list[int] = []

    def moved(values: list[torch.Tensor], mark: Callable[[], None] | None) -> list[torch.Tensor]:
        ours = {str(i): nn.Parameter(value.clone()) for i, value in enumerate(values)}
        for parameter, gradient in zip(ours.values(), gradients, strict=False):
            parameter.grad = gradient.clone()
        Optimizer(ours, 0.1, mark).update(0.5)
        return [parameter.detach() for parameter in ours.values()]

    together = moved(values, lambda: marks.append(1))
    assert len(marks) == 3
    alone = moved(values[:1], None)
    assert torch.equal(together[0], alone[0])


def test_a_missing_gradient_is_named() -> None:
    with pytest.raises(Internal, match="matrix"):
        Optimizer(parameters(), 0.0).update(0.1)


def test_the_rate_rises_linearly_and_falls_as_a_cosine_to_a_tenth() -> None:
    rates = [learning_rate(step, 8, 4, 1.0) for step in range(8)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[6] == pytest.approx(0.55)
    assert learning_rate(8, 8, 4, 1.0) == pytest.approx(0.1)
    assert learning_rate(0, 8, 0, 2.0) == 2.0
    assert learning_rate(2, 3, 3, 1.0) == 1.0
