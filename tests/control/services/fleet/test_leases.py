"""Leases: who may act, whose work is lost, and whose devices are taken."""

from __future__ import annotations

import math

import pytest

from appliance.control.services.fleet.leases import (
    NODE_LOST_SECONDS,
    REMEMBERED_SECONDS,
    STRANGE_SECONDS,
    UNNAMED_SECONDS,
    Leases,
    Share,
)
from appliance.control.services.fleet.served_clock import MAX_STEP, ServedClock
from appliance.core.errors import LeaseLost

JOB, GIB = ("job", 1), 1 << 30
SILENT = f"has not been heard of for {NODE_LOST_SECONDS:.0f} s"


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
    """A job on the nodes a and b; c and d are there too."""
    made = Leases(clock)
    made.grant("job", 0, [Share("a", 0, (0, 1), 10), Share("b", 2, (0,), 5, port=29400)])
    heard(made, "cd")
    return made


def heard(leases: Leases, nodes: str, *, runs: str = "ab") -> None:
    for node in nodes:
        leases.renew(node, [JOB] if node in runs else [])


def lost(leases: Leases) -> list[tuple[str, str]]:
    return [(each.node, each.why) for each in leases.lost()]


@pytest.mark.attack
def test_nobody_but_the_holder_under_the_right_epoch(leases: Leases) -> None:
    assert leases.check("job", 1, "a").devices == (0, 1)
    for work, epoch, node in (("job", 2, "a"), ("job", 0, "a"), ("job", 1, "c"), ("x", 1, "a")):
        with pytest.raises(LeaseLost):
            leases.check(work, epoch, node)


def test_a_holder_that_is_heard_late_is_still_the_holder(leases: Leases, clock: Clock) -> None:
    clock.now += 1_000_000
    assert leases.check("job", 1, "a").devices == (0, 1)
    assert leases.renew("a", [JOB]) == []
    assert leases.of_node("a") == [JOB]


def test_work_that_is_given_to_a_node_is_no_word_from_it(leases: Leases, clock: Clock) -> None:
    clock.now += NODE_LOST_SECONDS - 1
    heard(leases, "bcd")
    leases.grant("other", 0, [Share("a", 0, (2,), 1)])
    clock.now += 1
    assert lost(leases) == [("a", f"node a {SILENT}"), ("a", f"node a {SILENT}")]


def test_a_part_that_has_ended_well_is_nothing_to_do(leases: Leases) -> None:
    leases.end_share("job", 1, "a")
    assert (leases.of_node("a"), leases.of_node("b")) == ([], [JOB])
    assert (leases.works_of("a"), leases.works_of("b")) == ([], ["job"])


def test_what_a_node_does_not_hold_it_must_stop(leases: Leases) -> None:
    assert leases.renew("a", [("job", 1), ("job", 9), ("old", 1)]) == [("job", 9), ("old", 1)]


def test_a_node_is_lost_when_it_has_been_silent_for_minutes(leases: Leases, clock: Clock) -> None:
    clock.now += NODE_LOST_SECONDS - 0.01
    heard(leases, "acd")
    assert lost(leases) == []
    clock.now += 0.01
    assert lost(leases) == [("b", f"node b {SILENT}")]
    assert leases.silent(NODE_LOST_SECONDS) == {"b": NODE_LOST_SECONDS}
    # It is heard again before anybody acted: whatever it says counts.
    heard(leases, "b")
    assert lost(leases) == []


def test_a_node_that_is_heard_and_names_a_work_no_more_has_lost_it(
    leases: Leases, clock: Clock
) -> None:
    for _ in range(int(UNNAMED_SECONDS)):
        assert lost(leases) == []
        clock.now += 1
        heard(leases, "abcd", runs="a")
    assert lost(leases) == [("b", "node b no longer runs it")]


@pytest.mark.parametrize("seconds", [UNNAMED_SECONDS, NODE_LOST_SECONDS - 1])
def test_a_node_that_was_silent_can_still_say_that_its_work_has_ended(
    leases: Leases, clock: Clock, seconds: float
) -> None:
    # Its hello names what runs; what ended while it was cut off it reports a moment later.
    clock.now += seconds
    heard(leases, "abcd", runs="a")
    assert lost(leases) == []
    assert [share.ended for share in leases.end_share("job", 1, "b")] == [False, True]
    clock.now += UNNAMED_SECONDS
    heard(leases, "abcd", runs="a")
    assert lost(leases) == []


def test_a_node_that_is_silent_after_it_came_back_has_its_whole_time(
    leases: Leases, clock: Clock
) -> None:
    # It says hello without naming the work, whose end it may be about to report, and is cut off.
    clock.now += UNNAMED_SECONDS - 1
    heard(leases, "acd")
    heard(leases, "b", runs="")
    clock.now += NODE_LOST_SECONDS - 1
    heard(leases, "acd")
    assert lost(leases) == []


@pytest.mark.parametrize(("silent", "gone"), [("b", "b"), ("ab", "ab"), ("abc", ""), ("abcd", "")])
def test_while_most_nodes_are_silent_none_is_lost(
    leases: Leases, clock: Clock, silent: str, gone: str
) -> None:
    clock.now += NODE_LOST_SECONDS
    heard(leases, "".join(set("abcd") - set(silent)))
    assert lost(leases) == [(node, f"node {node} {SILENT}") for node in gone]
    assert leases.is_cut_off() is (not gone)


def test_a_node_alone_is_waited_for_and_one_that_was_away_for_a_day_is_not(clock: Clock) -> None:
    leases = Leases(clock)
    leases.grant("job", 0, [Share("a", 0, (0,), 10)])
    clock.now += REMEMBERED_SECONDS - 1
    assert (lost(leases), leases.is_cut_off()) == ([], True)
    clock.now += 1
    assert (lost(leases), leases.is_cut_off()) == ([("a", f"node a {SILENT}")], False)


def test_work_is_lost_when_its_nodes_were_silent_for_as_long_as_it_waits(clock: Clock) -> None:
    leases = Leases(clock)
    for work, seconds in (("soon", 20.0), ("late", 1000.0), ("never", math.inf), ("site", None)):
        leases.grant(work, 0, [Share("a", 0, (0,), 1)], seconds)
    running = [(work, 1) for work in ("soon", "late", "never", "site")]
    for node in "abc":
        leases.renew(node, running if node == "a" else [])

    def after(seconds: float) -> list[str]:
        clock.now += seconds
        for node in "bc":
            leases.renew(node, [])
        return [each.work for each in leases.lost()]

    assert after(19.9) == []
    assert after(0.1) == ["soon"]
    assert leases.lost()[0].why == "node a has not been heard of for 20 s"
    assert after(NODE_LOST_SECONDS - 20) == ["site", "soon"]
    assert after(700) == ["late", "site", "soon"]
    assert after(100 * REMEMBERED_SECONDS) == ["late", "site", "soon"]
    assert leases.lost_seconds("never") == math.inf
    # It is not silence that ends the wait.
    leases.evict("a")
    assert [each.work for each in leases.lost()] == ["late", "never", "site", "soon"]


def test_work_that_waits_for_ever_is_lost_when_its_node_names_it_no_more(clock: Clock) -> None:
    leases = Leases(clock)
    leases.grant("never", 0, [Share("a", 0, (0,), 1)], math.inf)
    leases.renew("a", [])
    for _ in range(int(UNNAMED_SECONDS)):
        assert leases.lost() == []
        clock.now += 1.0
        leases.renew("a", [])
    assert [each.why for each in leases.lost()] == ["node a no longer runs it"]


@pytest.mark.parametrize("seconds", [20.0, None])
def test_nodes_that_fall_silent_together_are_not_lost_one_by_one(
    clock: Clock, seconds: float | None
) -> None:
    """The one that was heard first is silent for long enough a moment before the others are."""
    leases = Leases(clock)
    leases.grant("job", 0, [Share("a", 0, (0,), 1)], seconds)
    for node in "abc":
        leases.renew(node, [JOB] if node == "a" else [])
        clock.now += 0.4
    clock.now += (seconds or NODE_LOST_SECONDS) - 1.0
    assert leases.lost() == []
    # The others are back: it was not the network.
    for node in "bc":
        leases.renew(node, [])
    assert [each.node for each in leases.lost()] == ["a"]


def test_a_share_that_ended_well_is_not_lost(leases: Leases, clock: Clock) -> None:
    assert [share.ended for share in leases.end_share("job", 1, "a")] == [True, False]
    clock.now += NODE_LOST_SECONDS
    heard(leases, "cd")
    assert lost(leases) == [("b", f"node b {SILENT}")]
    assert leases.capacity("a", 4, 100).free == [0, 1, 2, 3]


def test_released_devices_stay_taken_until_the_node_is_done(leases: Leases, clock: Clock) -> None:
    assert [share.node for share in leases.release("job", 1)] == ["a", "b"]
    assert leases.release("job", 1) == []
    found = leases.capacity("a", 4, 100)
    assert (found.free, found.memory_used) == ([2, 3], 10)
    heard(leases, "a")
    assert leases.capacity("a", 4, 100).free == [2, 3]
    heard(leases, "a", runs="")
    assert leases.capacity("a", 4, 100).free == [0, 1, 2, 3]
    # A node that is cut off may be at work on it still.
    clock.now += 10 * NODE_LOST_SECONDS
    assert leases.capacity("b", 4, 100).free == [1, 2, 3]
    leases.confirm_stopped("job", 1, "b")
    assert leases.capacity("b", 4, 100).free == [0, 1, 2, 3]


@pytest.mark.attack
def test_a_node_that_connects_with_work_of_before_gets_none_until_that_has_ended(
    leases: Leases, clock: Clock
) -> None:
    """Its devices are not known: the lease ended before this process began."""
    assert leases.renew("c", [("old", 3)], is_new=True) == [("old", 3)]
    assert leases.capacity("c", 4, GIB).devices_used == frozenset(range(4))
    assert leases.renew("c", [("old", 3), ("other", 1)]) == [("old", 3), ("other", 1)]
    assert leases.capacity("c", 4, GIB).memory_used == GIB
    leases.renew("c", [("other", 1)])
    assert leases.capacity("c", 4, GIB).devices_used == frozenset()
    # A process that cannot be ended does not hold the node for ever.
    leases.renew("c", [("old", 3)], is_new=True)
    clock.now += STRANGE_SECONDS
    assert leases.capacity("c", 4, GIB).devices_used == frozenset()


def test_a_start_whose_end_was_not_noted_yet_gives_way_to_the_next(leases: Leases) -> None:
    leases.grant("job", 0, [Share("a", 0, (0,), GIB)])
    assert leases.grant("job", 1, [Share("b", 0, (1,), GIB)]) == 2
    assert leases.release("job", 1) == []
    assert leases.capacity("a", 2, 2 * GIB).devices_used == {0}
    assert leases.renew("a", [("job", 1)]) == [("job", 1)]
    leases.renew("a", [])
    assert leases.capacity("a", 2, 2 * GIB).devices_used == frozenset()


def test_an_evicted_node_loses_all_at_once(leases: Leases) -> None:
    leases.evict("b")
    assert lost(leases) == [("b", "node b was evicted")]
    assert leases.of_node("b") == []
    with pytest.raises(LeaseLost):
        leases.check("job", 1, "b")
    leases.check("job", 1, "a")
    leases.release("job", 1)
    assert leases.capacity("b", 4, 100).free == [0, 1, 2, 3]


def test_what_an_evicted_node_was_ending_holds_no_devices(leases: Leases) -> None:
    leases.release("job", 1)
    leases.renew("c", [("old", 3)], is_new=True)
    for node in "ac":
        assert leases.capacity(node, 4, 100).free != [0, 1, 2, 3]
        leases.evict(node)
        assert leases.capacity(node, 4, 100).free == [0, 1, 2, 3]
    assert leases.capacity("b", 4, 100).free == [1, 2, 3]


def test_an_evicted_node_is_none_of_those_that_may_be_cut_off(leases: Leases, clock: Clock) -> None:
    leases.evict("b")
    leases.evict("c")
    clock.now += NODE_LOST_SECONDS
    heard(leases, "d")
    # One of two is not most of them.
    assert sorted(leases.silent(1)) == ["a"]
    assert not leases.is_cut_off()


def test_nodes_that_are_switched_off_for_maintenance_hide_no_lost_one(
    leases: Leases, clock: Clock
) -> None:
    clock.now += NODE_LOST_SECONDS
    heard(leases, "a")
    # Three of four are silent: that is the network, unless somebody has drained two of them.
    assert (lost(leases), leases.is_cut_off()) == ([], True)
    leases.leave_out(["c", "d"])
    assert (lost(leases), leases.is_cut_off()) == ([("b", f"node b {SILENT}")], False)


def test_a_node_that_connects_anew_with_what_it_is_ending_has_its_other_devices(
    leases: Leases,
) -> None:
    leases.release("job", 1)
    assert leases.renew("a", [JOB], is_new=True) == [JOB]
    assert leases.capacity("a", 4, 100).free == [2, 3]


def test_of_a_lease_that_ends_only_what_runs_is_to_stop(leases: Leases) -> None:
    leases.end_share("job", 1, "a")
    assert [share.node for share in leases.release("job", 1)] == ["b"]
    assert leases.capacity("a", 4, 100).free == [0, 1, 2, 3]


def test_shares_are_stored_as_they_are() -> None:
    share = Share("a", 2, (3, 4), 10, port=29400, ended=True)
    assert Share.from_json(share.as_json()) == share


def test_time_in_which_the_control_plane_stood_still_counts_for_two_seconds(clock: Clock) -> None:
    served = ServedClock(clock)
    for _ in range(5):
        clock.now += 1
        served.tick()
    assert served() == 5
    clock.now += 600
    served.tick()
    assert served() == 5 + MAX_STEP
    # A clock that was set back moves nothing back.
    clock.now -= 1000
    served.tick()
    assert served() == 5 + MAX_STEP
