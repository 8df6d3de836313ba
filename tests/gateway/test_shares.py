"""How the gateway's places are shared by endpoints."""

from __future__ import annotations

from collections import Counter

import pytest

from appliance.gateway.shares import may_enter, own, victim


def fill(held: Counter[str], endpoint: str, endpoints: int, places: int) -> int:
    """Let an endpoint take what it gets; how many it has then."""
    while may_enter(held, endpoint, endpoints, places):
        held[endpoint] += 1
    return held[endpoint]


@pytest.mark.parametrize("places", [1, 2, 7, 1024])
def test_one_endpoint_has_them_all(places: int) -> None:
    assert fill(Counter(), "a", 1, places) == places


@pytest.mark.attack
@pytest.mark.parametrize("endpoints", [2, 3, 10, 200])
def test_whoever_floods_leaves_the_others_their_share(endpoints: int) -> None:
    held, mine = Counter[str](), own(1024, endpoints)
    names = [f"e{number}" for number in range(endpoints)]
    assert fill(held, names[0], endpoints, 1024) == 1024 - mine * (endpoints - 1)
    assert [fill(held, name, endpoints, 1024) for name in names[1:]] == [mine] * (endpoints - 1)
    assert held.total() == 1024


def test_more_endpoints_than_places_share_what_there_is() -> None:
    held = Counter[str]()
    assert [fill(held, name, 100, 10) for name in "ab"] == [10, 0]


def test_a_place_that_gets_free_is_for_whoever_comes() -> None:
    held = Counter({"a": 768})
    assert not may_enter(held, "a", 2, 1024)
    held["a"] -= 1
    assert may_enter(held, "a", 2, 1024)
    assert may_enter(held, "b", 2, 1024)


@pytest.mark.parametrize(
    ("waiting", "held", "shared", "goes"),
    [
        ({}, {"a": 9}, False, None),
        ({"a": 1}, {"a": 1}, False, "a"),
        ({"a": 1, "b": 3, "c": 2}, {"a": 9, "b": 3, "c": 9}, False, "b"),
        # Of those that hold what all share; what is kept for an endpoint frees nothing.
        ({"a": 1}, {"a": 2}, True, None),
        ({"a": 1}, {"a": 3}, True, "a"),
        ({"a": 1, "b": 2, "c": 2}, {"a": 9, "b": 2, "c": 3}, True, "c"),
        ({"a": 1}, {}, True, None),
    ],
)
def test_one_that_waits_is_turned_away_only_when_that_is_enough(
    waiting: dict[str, int], held: dict[str, int], *, shared: bool, goes: str | None
) -> None:
    assert victim(waiting, held, 2, shared=shared) == goes
