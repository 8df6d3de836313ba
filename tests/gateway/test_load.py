"""What a replica has to do: when it is full, and which answers may still wait in it."""

from __future__ import annotations

import pytest

from appliance.api.inference.v1 import worker_service_pb2
from appliance.gateway.attempts import Attempt
from appliance.gateway.load import ReplicaLoad


def load(slots: int, waiting: int = 0) -> ReplicaLoad:
    made = ReplicaLoad()
    made.note_heartbeat(worker_service_pb2.Heartbeat(slots=slots, waiting=waiting, running=1))
    return made


@pytest.mark.parametrize(
    ("slots", "waiting", "answers", "full"),
    [
        (128, 0, 143, False),
        (128, 0, 144, True),
        # Its memory holds fewer than it has slots, or others have filled it.
        (128, 17, 16, True),
        (128, 17, 15, False),
        (128, 16, 100, False),
        (1, 0, 1, False),
        (1, 0, 2, True),
        # It does not say how many it works on.
        (0, 300, 511, False),
        (0, 0, 512, True),
    ],
)
def test_it_gets_what_it_works_on_and_an_eighth_more(
    slots: int, waiting: int, answers: int, full: object
) -> None:
    assert load(slots, waiting).is_full(answers, 512) is full


def test_what_the_site_says_counts_too() -> None:
    assert load(128).is_full(8, 8)


def test_one_that_was_busy_is_full() -> None:
    made = load(128)
    made.busy = True
    assert made.is_full(0, 512)


@pytest.mark.parametrize(
    ("slots", "waiting", "answers", "has"),
    [(4, 0, 3, True), (4, 0, 4, False), (4, 1, 2, False), (0, 0, 100, True)],
)
def test_a_slot_is_free_when_nobody_waits(
    slots: int, waiting: int, answers: int, has: object
) -> None:
    assert load(slots, waiting).has_slot(answers) is has


def test_an_answer_waits_until_one_that_came_later_begins() -> None:
    made = load(1, waiting=2)
    first, second = Attempt(1, 0.0, 99.0), Attempt(2, 0.0, 99.0)
    assert made.may_wait(first)
    made.note_first_token(second, 5.0)
    assert not made.may_wait(first)
    # Put back for want of memory after its token at 6: it may wait, until somebody overtakes it.
    second.since = 6.0
    assert made.may_wait(second)
    made.note_first_token(Attempt(3, 0.0, 99.0), 7.0)
    assert not made.may_wait(second)


def test_nobody_waits_for_a_replica_that_works_on_nothing() -> None:
    made = load(1, waiting=2)
    made.note_heartbeat(worker_service_pb2.Heartbeat(slots=1, waiting=2, running=0))
    assert not made.may_wait(Attempt(1, 0.0, 99.0))


def test_one_that_says_less_than_nothing_is_not_full_for_ever() -> None:
    assert not load(-1).is_full(0, 512)


def test_nothing_waits_where_nothing_waits() -> None:
    assert not load(4).may_wait(Attempt(1, 0.0, 99.0))
