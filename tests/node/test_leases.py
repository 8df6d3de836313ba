"""When work must stop, by the node's own clock."""

import pytest

from appliance.node.leases import FIRST_SECONDS, Leases

JOB = ("job", 1)


def test_a_new_work_must_stop_at_two_thirds_of_its_first_lease() -> None:
    leases = Leases()
    leases.begin(JOB, 100.0)
    assert leases.over(100.0 + FIRST_SECONDS * 2 / 3 - 0.01) == []
    assert leases.over(100.0 + FIRST_SECONDS * 2 / 3) == [JOB]


def test_a_renewal_counts_from_the_heartbeat_it_answers() -> None:
    leases = Leases()
    leases.begin(JOB, 0.0)
    leases.heartbeat(1, 5.0)
    leases.renew([JOB], 15.0, 1)
    assert leases.over(14.9) == []
    assert leases.over(15.0) == [JOB]


@pytest.mark.attack
def test_a_renewal_that_was_on_its_way_for_long_renews_nothing() -> None:
    leases = Leases()
    leases.begin(JOB, 0.0)
    leases.heartbeat(1, 0.0)
    # The process was paused until 60; then it reads what was sent at 0.
    leases.renew([JOB], 15.0, 1)
    assert leases.over(60.0) == [JOB]


@pytest.mark.attack
def test_a_renewal_of_another_stream_or_epoch_renews_nothing() -> None:
    leases = Leases()
    leases.begin(JOB, 0.0)
    leases.heartbeat(1, 9.0)
    leases.renew([("job", 2)], 15.0, 1)
    leases.new_stream()
    leases.renew([JOB], 15.0, 1)
    leases.renew([JOB], 15.0, 0)
    assert leases.over(10.0) == [JOB]


def test_a_shorter_renewal_takes_nothing_away() -> None:
    leases = Leases()
    leases.begin(JOB, 0.0)
    leases.heartbeat(1, 1.0)
    leases.renew([JOB], 3.0, 1)
    assert leases.over(9.9) == []


def test_ended_work_is_forgotten() -> None:
    leases = Leases()
    leases.begin(JOB, 0.0)
    leases.end(JOB)
    assert leases.over(1000.0) == []
