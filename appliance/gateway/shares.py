"""Whether an endpoint gets one more of the gateway's places.

Half of them belong to the endpoints in equal shares, which nobody else takes; the other half is for
whoever comes. So an endpoint that is asked for more than it can answer fills the common half at
most, and one that is asked little finds its own. Pure. Called by `appliance.gateway.pipeline`.

One that only waits may be turned away for another: one, and only when that makes the other fit.
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


def victim(
    waiting: Mapping[str, int], held: Mapping[str, int], mine: int, *, shared: bool
) -> str | None:
    """The endpoint of which an answer that waits is turned away, so that another call fits.

    None when turning one away would not do: then nobody goes.

    Args:
        waiting: how many wait, by endpoint: those of which one may go whose end frees what else
            the call needs, such as a place of its own caller.
        held: places by endpoint; those that have none may be missing.
        mine: places that each endpoint has to itself.
        shared: the call needs a common place. Only an endpoint that has more than its own gives
            one back; what is kept for it is nobody else's.
    """
    found = [
        (count, name) for name, count in waiting.items() if not shared or held.get(name, 0) > mine
    ]
    return max(found)[1] if found else None
