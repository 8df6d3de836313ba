"""Takes rows that are no token out of what an engine chooses from.

Constructed by vLLM in each rank, for engines of models that have such rows; named to it by
`appliance.worker.engine`.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor.interface import LogitsProcessor

MISSING = "appliance_missing_tokens"
"""Member of vLLM's additional configuration that holds the ranges."""


class TokensOnly(LogitsProcessor):  # type: ignore[misc]  # vLLM has no types that mypy follows
    """Makes ids that the tokenizer does not have impossible."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:  # noqa: FBT001  # vLLM's own signature
        del device, is_pin_memory
        self._ranges = [tuple(pair) for pair in vllm_config.additional_config[MISSING]]

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of a step, one row an answer, changed in place."""
        for first, end in self._ranges:
            logits[:, first:end] = float("-inf")
        return logits

    def is_argmax_invariant(self) -> bool:
        """No: such a row could be the likeliest."""
        return False

    def update_state(self, batch_update: Any) -> None:  # noqa: ANN401  # vLLM's own
        """Nothing depends on the answers in work."""
