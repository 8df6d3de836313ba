"""What a caller may ask of the choice of tokens. Pure. Called by `appliance.gateway.pipeline`."""

from __future__ import annotations

import math

from appliance.api.inference.v1 import generation_pb2
from appliance.core.errors import InvalidInput
from appliance.core.numbers import span

MOST_STOPS = 16
LONGEST_STOP = 256
HOTTEST = 2.0
_LARGEST_SEED = (1 << 63) - 1


def check_sampling(sampling: generation_pb2.Sampling) -> None:
    """Raise InvalidInput for what no replica would take, naming the field."""
    checks = {
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
        "seed": (abs(sampling.seed) <= _LARGEST_SEED, "is too large"),
        "stop": (
            len(sampling.stop) <= MOST_STOPS
            and all(0 < len(stop) <= LONGEST_STOP for stop in sampling.stop),
            f"may have {MOST_STOPS} texts of {span(1, LONGEST_STOP)} characters",
        ),
    }
    for name, (right, rule) in checks.items():
        if not right:
            raise InvalidInput(f"{name} {rule}", fields={name: rule})
