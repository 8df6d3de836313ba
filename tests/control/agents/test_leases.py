"""Leases: who may act, until when, and whose devices are taken."""

from __future__ import annotations

import pytest

from appliance.control.services.leases import Leases, Share
from appliance.core.errors import LeaseLost


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(clock: Clock) -> Leases:
    made = Leases(clock)
    made.grant("job", 0, [Share("a", 0, (0, 1), 10), Share("b", 2, (0,), 5, port=29400)])
    return made


def test_only_the_holder_under_the_right_epoch_and_in_time(leases: Leases, clock: Clock) -> None:
    assert leases.check("job", 1, "a").devices == (0, 1)
    for work, epoch, node in (("job", 2, "a"), ("job", 0, "a"), ("job", 1, "c"), ("x", 1, "a")):
        with pytest.raises(LeaseLost):
            leases.check(work, epoch, node)
    clock.now += 14.99
    leases.check("job", 1, "a")
    clock.now += 0.01
    with pytest.raises(LeaseLost):
        leases.check("job", 1, "a")
    assert leases.expired() == [("job", 1, "a"), ("job", 1, "b")]
    assert leases.of_node("a") == []


def test_a_heartbeat_renews_what_it_names_and_nothing_else(leases: Leases, clock: Clock) -> None:
    clock.now += 10
    assert leases.renew("a", [("job", 1), ("job", 9), ("old", 1)]) == [("job", 9), ("old", 1)]
    leases.renew("b", [])
    clock.now += 10
    assert leases.expired() == [("job", 1, "b")]
    # Too late is too late: the lease of b is over for good.
    assert leases.renew("b", [("job", 1)]) == [("job", 1)]


def test_a_share_that_ended_well_does_not_expire(leases: Leases, clock: Clock) -> None:
    assert [share.ended for share in leases.end_share("job", 1, "a")] == [True, False]
    clock.now += 20
    assert leases.expired() == [("job", 1, "b")]
    assert leases.capacity("a", 4, 100).free == [0, 1, 2, 3]


def test_released_devices_stay_taken_until_the_node_is_done(leases: Leases, clock: Clock) -> None:
    assert [share.node for share in leases.release("job", 1)] == ["a", "b"]
    assert leases.release("job", 1) == []
    found = leases.capacity("a", 4, 100)
    assert (found.free, found.memory_used) == ([2, 3], 10)
    leases.renew("a", [("job", 1)])
    assert leases.capacity("a", 4, 100).free == [2, 3]
    leases.renew("a", [])
    assert leases.capacity("a", 4, 100).free == [0, 1, 2, 3]
    assert leases.capacity("b", 4, 100).free == [1, 2, 3]
    clock.now += 15
    assert leases.capacity("b", 4, 100).free == [0, 1, 2, 3]


def test_an_evicted_node_loses_all_at_once(leases: Leases) -> None:
    leases.expire("b")
    assert leases.expired() == [("job", 1, "b")]
    with pytest.raises(LeaseLost):
        leases.check("job", 1, "b")
    leases.check("job", 1, "a")


def test_shares_are_stored_as_they_are() -> None:
    share = Share("a", 2, (3, 4), 10, port=29400, ended=True)
    assert Share.from_json(share.as_json()) == share
