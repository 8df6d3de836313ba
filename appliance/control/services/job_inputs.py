"""What is known of a thing that a job reads. Pure.

Called by the checks of specs and by `job_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Input:
    """What a job reads: kind `dataset`, `model` or `checkpoint`, its facts, bytes of plaintext.

    Of a checkpoint the facts are `step`; `spec` of its job and whether that has `ended`;
    `vocabulary_size` and `tokenizer` while the tokens are there that it was trained on.
    """

    kind: str
    facts: Mapping[str, Any]
    size_bytes: int


def is_tokens(item: Input | None) -> bool:
    """Whether it holds tokens, as far as is known."""
    return item is None or item.facts.get("kind") == "tokens"
