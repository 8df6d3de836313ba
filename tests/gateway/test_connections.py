"""Who gets a connection, and whose is closed for it."""

from __future__ import annotations

import pytest

from appliance.core.errors import Exhausted
from appliance.gateway.connections import Connections, ConnectionSlot
from appliance.wire.admission import Rates


def places(
    total: int, per_source: int, *, burst: int = 10_000, now: list[float] | None = None
) -> Connections:
    clock = now or [0.0]
    return Connections(total, per_source, Rates(1.0, burst, lambda: clock[0]))


def enter(made: Connections, source: str, count: int = 1) -> list[ConnectionSlot]:
    return [made.enter(source)[0] for _ in range(count)]


@pytest.mark.attack
def test_in_a_full_share_the_oldest_stranger_of_that_source_goes() -> None:
    made = places(10, 3)
    first, *_ = enter(made, "a", 3)
    other = enter(made, "b")[0]
    place, leaving = made.enter("a")
    assert leaving is first
    assert not place.is_full
    assert len(made) == 4
    made.leave(first)  # its connection is lost a moment later
    assert len(made) == 4
    assert made.enter("b")[1] is None
    made.leave(other)
    assert len(made) == 4


@pytest.mark.attack
def test_when_all_places_are_taken_the_largest_holder_gives_one() -> None:
    made = places(8, 6)
    many = enter(made, "a", 6)
    enter(made, "b", 2)
    place, leaving = made.enter("c")
    assert leaving is many[0]
    assert not place.is_full
    assert len(made) == 8


@pytest.mark.attack
def test_many_sources_cannot_keep_a_newcomer_out() -> None:
    made = places(100, 10)
    for number in range(1000):
        made.enter(f"source-{number}")
    place, leaving = made.enter("newcomer")
    assert leaving is not None
    assert not place.is_full
    assert len(made) == 100


@pytest.mark.attack
def test_a_known_caller_keeps_its_connection_whatever_comes() -> None:
    made = places(4, 4)
    mine = enter(made, "a")[0]
    made.mark_authenticated(mine)
    left = [made.enter("a")[1] for _ in range(50)]
    assert mine not in left
    made.mark_authenticated(mine)
    made.leave(mine)


def test_a_share_full_of_known_callers_takes_nobody_more() -> None:
    made = places(10, 2)
    for place in enter(made, "a", 2):
        made.mark_authenticated(place)
    with pytest.raises(Exhausted, match="as many connections as one may") as refused:
        made.enter("a")
    assert refused.value.retry_after == 1.0
    assert len(made) == 2
    assert made.enter("b")[1] is None


def test_when_known_callers_hold_all_places_a_few_are_told_so() -> None:
    made = places(32, 32)
    for place in enter(made, "a", 32):
        made.mark_authenticated(place)
    assert [place.is_full for place in enter(made, "b", 2)] == [True, True]
    told, leaving = made.enter("c")
    assert (told.is_full, len(made)) == (True, 34)
    assert leaving is not None
    assert leaving.is_full


def test_when_all_are_known_and_told_the_next_one_is_closed() -> None:
    made = places(16, 16)
    for source, count in (("a", 16), ("b", 1)):
        for place in enter(made, source, count):
            made.mark_authenticated(place)
    with pytest.raises(Exhausted, match="all connections are taken"):
        made.enter("c")


@pytest.mark.attack
def test_a_source_opens_so_many_a_second() -> None:
    now = [0.0]
    made = places(100, 100, burst=3, now=now)
    enter(made, "a", 3)
    with pytest.raises(Exhausted, match="too many new connections") as refused:
        made.enter("a")
    assert refused.value.retry_after == 1.0
    enter(made, "b", 3)
    now[0] = 2.0
    enter(made, "a", 2)


def test_nothing_is_remembered_of_who_has_left() -> None:
    made = places(10, 10)
    for place in enter(made, "a", 5):
        made.leave(place)
        made.leave(place)
    assert (len(made), made.ended) == (0, 5)
    assert made._held == {}
    assert made._strangers == {}
