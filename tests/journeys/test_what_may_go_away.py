"""A table of faults and phases: who goes away while a job runs over two nodes and callers ask.

Afterwards it is as if nothing had been: the job has succeeded with the losses and the weights of a
run that nothing disturbed, bit for bit, no answer has failed, what was asked is in the audit log.
What a row says otherwise, `docs/operations.md` says too ("What may go away").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest

from appliance.core import heartbeat
from tests.journeys.faults import FAULTS, cut
from tests.journeys.running import wait_for
from tests.journeys.streams import Streams, flowing
from tests.journeys.table import ROWS, Row
from tests.journeys.two_nodes import ENDPOINT, INTERVAL, Outcome, Two

pytestmark = [pytest.mark.timeout(420), pytest.mark.long]

ANSWER = '"kind":"inference"'
"""In each record of one in the audit log."""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nobody_notices(two: Two, calm: Outcome, row: Row) -> None:
    two.settle()
    name, restarts = f"job-{ROWS.index(row)}", two.restarts()
    recorded = two.recorded(ANSWER)
    streams = {"count": row.callers, "tokens": row.tokens, "pause": row.pause}
    with flowing(two.client, ENDPOINT, **streams) as asked:
        PHASES[row.phase](two, row, name)
        two.wait_until(name, "SUCCEEDED", timeout=300)
        check_answers(two, row, asked)
    found = two.job(name)
    assert (found.epoch, found.restarts) == (row.epoch, row.rank_restarts)
    assert two.outcome(name) == calm
    assert two.recorded(f"jobs/{name}") > 0
    # Also of those that a gateway had begun when it was killed.
    begun = asked.answers + sum(failure.tokens > 0 for failure in asked.failures)
    wait_for(lambda: two.recorded(ANSWER) >= recorded + begun, "the records of the answers")
    two.settle()
    assert two.restarts() - restarts == row.replicas


def check_answers(two: Two, row: Row, asked: Streams) -> None:
    assert asked.answers > 0
    if row.answers:
        assert asked.failures == []


def happens(two: Two, row: Row, uid: str) -> None:
    """The fault, from its beginning until it is over."""
    with FAULTS[row.fault](two, uid):
        time.sleep(row.seconds)


def while_queued(two: Two, row: Row, name: str) -> None:
    """A node that is cut off gets no new work, so the job waits for it."""
    with cut(two, everybody=False):
        time.sleep(heartbeat.SILENT_SECONDS + 2)
        uid = two.train(name)
        two.wait_until(name, "QUEUED")
        happens(two, row, uid)
        assert two.state(name) == "QUEUED"


def while_starting(two: Two, row: Row, name: str) -> None:
    uid = two.train(name)
    two.wait_until(name, "STARTING")
    happens(two, row, uid)


def while_running(two: Two, row: Row, name: str) -> None:
    uid = two.train(name)
    two.past(name, INTERVAL)
    assert set(two.job(name).nodes) == {"nodes/node-1", "nodes/second"}
    happens(two, row, uid)


def while_finishing(two: Two, row: Row, name: str) -> None:
    """What is made cannot be registered as long as the store is in trouble."""
    uid = two.train(name)
    two.past(name, INTERVAL)
    held = FAULTS[row.fault if row.fault.startswith("store") else "store, EIO"]
    with held(two, uid):
        two.wait_until(name, "REGISTERING")
        if held is FAULTS[row.fault]:
            time.sleep(row.seconds)
        else:
            happens(two, row, uid)
        assert two.state(name) == "REGISTERING"


PHASES: Mapping[str, Callable[[Two, Row, str], None]] = {
    "queued": while_queued,
    "starting": while_starting,
    "running": while_running,
    "finishing": while_finishing,
}
