"""What may be asked of the choice of tokens; the same for a gateway's callers and for a worker.

Called by `appliance.gateway.sampling` and `appliance.worker.requests`. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from appliance.api.inference.v1 import generation_pb2
from appliance.core.errors import InvalidInput
from appliance.core.numbers import span

HOTTEST = 2.0
MAX_SEED = (1 << 63) - 1

Rules = Mapping[str, tuple[bool, str]]
"""Field -> whether it is as it must be, and how that is."""


def check_choice(sampling: generation_pb2.Sampling) -> None:
    """Raise InvalidInput for what no engine takes, naming the field; not for stop texts."""
    check_fields(
        {
            "temperature": (
                math.isfinite(sampling.temperature) and 0 <= sampling.temperature <= HOTTEST,
                f"must be {span(0, HOTTEST)}",
            ),
            "top_p": (
                math.isfinite(sampling.top_p) and 0 <= sampling.top_p <= 1,
                f"must be {span(0, 1)}",
            ),
            "top_k": (sampling.top_k >= 0, "must not be negative"),
            "max_tokens": (
                sampling.max_tokens >= 1 or not sampling.HasField("max_tokens"),
                "must be at least 1: leave it out for as many as the context leaves",
            ),
            "seed": (abs(sampling.seed) <= MAX_SEED, "is too large"),
        }
    )


def check_fields(rules: Rules) -> None:
    """Raise InvalidInput for the first field that is not as it must be."""
    for name, (right, rule) in rules.items():
        if not right:
            raise InvalidInput(f"{name} {rule}", fields={name: rule})
