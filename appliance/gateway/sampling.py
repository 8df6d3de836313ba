"""What a caller may ask of the choice of tokens. Pure. Called by `appliance.gateway.questions`."""

from __future__ import annotations

from appliance.api.inference.v1 import generation_pb2
from appliance.core.numbers import span
from appliance.wire.sampling import check_choice, check_fields

MAX_STOPS = 16
MAX_STOP = 256


def check_sampling(sampling: generation_pb2.Sampling) -> None:
    """Raise InvalidInput for what no replica would take, naming the field."""
    check_choice(sampling)
    right = len(sampling.stop) <= MAX_STOPS and all(
        0 < len(stop) <= MAX_STOP for stop in sampling.stop
    )
    rule = f"may have {MAX_STOPS} texts of {span(1, MAX_STOP)} characters"
    check_fields({"stop": (right, rule)})
