"""Whether an endpoint gets one more of the gateway's places.

Half of them belong to the endpoints in equal shares, which nobody else takes; the other half is for
whoever comes. So an endpoint that is asked for more than it can answer fills the common half at
most, and one that is asked little finds its own. Pure. Called by `appliance.gateway.pipeline`.
"""

from __future__ import annotations

from collections.abc import Mapping

KEPT_SHARE = 2
"""One place for so many is kept for an endpoint of its own."""


def own(places: int, endpoints: int) -> int:
    """Places that each endpoint has to itself."""
    return places // (KEPT_SHARE * max(1, endpoints))


def may_enter(held: Mapping[str, int], endpoint: str, endpoints: int, places: int) -> bool:
    """Whether an endpoint may have one place more.

    Args:
        held: places by endpoint; those that have none may be missing.
        endpoint: that wants one.
        endpoints: how many there are.
        places: of all of them together.
    """
    mine = own(places, endpoints)
    if held.get(endpoint, 0) < mine:
        # What is kept for others is theirs, so this one is free.
        return True
    common = places - mine * max(1, endpoints)
    return sum(max(0, count - mine) for count in held.values()) < common
