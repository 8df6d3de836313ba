"""How long somebody may be away is a setting: before it nothing ends, after it what its page says.

`stale_view_seconds` of the gateway and `scheduling.node_lost_seconds` are minutes by default; here
they are 20 s.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from deploy.demo import processes
from tests.journeys.faults import agent_hangs, control_hangs
from tests.journeys.running import wait_for
from tests.journeys.streams import flowing
from tests.journeys.two_nodes import ENDPOINT, INTERVAL, PARENT, Two

pytestmark = [pytest.mark.timeout(420), pytest.mark.long]

SECONDS = 20.0
STALE = f"stale_view_seconds = {SECONDS}\n"
LOST = f"\n[scheduling]\nnode_lost_seconds = {SECONDS}\n"
ALONE = ("--data=1",)
LONG = 2000
"""Steps: longer than a node that is lost is waited for."""


def test_a_view_is_good_until_its_time_is_over_and_begun_answers_longer(two: Two) -> None:
    two.settle()
    with two.configured("gateway", before=STALE):
        wait_for(lambda: not two.ask(), "the gateway to answer")
        with flowing(two.client, ENDPOINT, count=8, tokens=400) as asked:
            wait_for(lambda: asked.answers > 8, "answers")
            with control_hangs(two):
                begin = time.monotonic()
                wait_for(lambda: asked.failures, "a call to be refused", 2 * SECONDS)
                answered = asked.answers
                time.sleep(5)
            # Each was refused at its beginning, none before the time was over.
            for failure in asked.failures:
                assert failure.tokens == 0
                assert failure.reason == "UNAVAILABLE"
                assert "has not heard from the control plane for 2" in failure.message
                assert failure.asked - begin > SECONDS - 2
            # Those that were begun went on to their end.
            assert asked.answers > answered
            wait_for(lambda: not two.ask(), "the gateway to answer again", 20)
            refused = len(asked.failures)
            time.sleep(3)
            assert len(asked.failures) == refused
    two.settle()


def test_a_right_that_is_taken_away_stays_away_and_a_new_gateway_says_why_it_refuses(
    two: Two,
) -> None:
    two.settle()
    two.log_in()
    control = two.appliance.process_id("control")
    token, number = two.new_token("before")
    # Taken away just before: the control plane has said so, and is gone.
    two.appliance.alice.run("service-account", "revoke-token", "app", number)
    wait_for(lambda: two.ask(token).startswith("UNAUTHENTICATED"), "the gateway to know", 1)
    with control_hangs(two):
        assert two.ask(token).startswith("UNAUTHENTICATED")
        assert two.ask() == ""
        time.sleep(15)
        assert two.ask(token).startswith("UNAUTHENTICATED")
        assert two.ask() == ""
        # One that starts now knows nobody, and says why.
        two.restart("gateway", signal.SIGKILL)
        said = wait_for(lambda: _answered(two), "an answer of the new gateway")
        assert said.startswith("UNAVAILABLE: "), said
        assert "control plane" in said
    wait_for(lambda: two.ask() == "", "the gateway to answer")
    assert two.ask(token).startswith("UNAUTHENTICATED")
    assert two.appliance.process_id("control") == control


def _answered(two: Two) -> str:
    """What a gateway says, once it listens."""
    said = two.ask()
    return "" if "nothing listens" in said else said


def test_a_right_that_is_taken_away_meanwhile_holds_within_a_second_of_the_return(
    two: Two,
) -> None:
    two.settle()
    two.log_in()
    token, number = two.new_token("meanwhile")
    machines = two.ports()[1]
    with two.network.cut([machines], everybody=True):
        two.appliance.alice.run("service-account", "revoke-token", "app", number)
        time.sleep(12)
        assert two.view_age() > 10
        # The price of going on: decision 28.
        assert two.ask(token) == ""
    wait_for(lambda: two.view_age() < 1, "the gateway to hear the control plane")
    heard = time.monotonic()
    wait_for(lambda: two.ask(token).startswith("UNAUTHENTICATED"), "the gateway to know", 5)
    assert time.monotonic() - heard < 1
    assert two.ask() == ""


def test_a_node_that_is_silent_for_too_long_loses_its_work_and_cannot_take_it_back(
    two: Two,
) -> None:
    with two.configured("control", after=LOST):
        two.settle()
        # One of each node's devices is free, so there is one of these on each.
        uids = {name: two.train(name, ALONE, LONG) for name in ("one", "other")}
        for name in uids:
            two.past(name, INTERVAL)
        on = {two.job(name).nodes[0]: name for name in uids}
        lost, kept = on["nodes/second"], on["nodes/node-1"]
        old = processes.ranks_of(uids[lost])
        endpoint = two.call("EndpointService.GetEndpoint", name=ENDPOINT).uid
        workers = set(processes.workers_of(endpoint))
        with flowing(two.client, ENDPOINT, count=2, tokens=40, pause=2) as asked:
            with agent_hangs(two):
                begin = time.monotonic()
                wait_for(lambda: two.job(lost).state_reason, "the job to say it", SECONDS)
                assert two.job(lost).epoch == 1
                # It starts at once where a device is free.
                over = ("QUEUED", 1), ("STARTING", 2), ("RUNNING", 2)
                wait_for(
                    lambda: (two.state(lost), two.job(lost).epoch) in over,
                    "the node to be lost",
                    2 * SECONDS,
                )
                assert time.monotonic() - begin > SECONDS - 2
                wait_for(lambda: two.job(lost).epoch == 2, "its next start", 200)
                two.wait_until(lost, "RUNNING", "SUCCEEDED")
            # What it hears first is that all of that is over.
            wait_for(lambda: not _alive(old), "its ranks to end", 20)
            wait_for(lambda: len(workers & set(processes.workers_of(endpoint))) == 1, "its replica")
            two.wait_until(lost, "SUCCEEDED", timeout=200)
            two.wait_until(kept, "SUCCEEDED")
        assert asked.failures == []
    assert (two.job(lost).epoch, two.job(kept).epoch) == (2, 1)
    mine, theirs = two.outcome(lost), two.outcome(kept)
    assert mine.files == theirs.files
    # Steps that it did while nobody heard it are in no list; none is there that is another.
    assert mine.losses.items() <= theirs.losses.items()
    (version,) = two.call(
        "ModelService.ListModelVersions", rows="versions", parent=f"{PARENT}/models/{lost}"
    )
    assert version.job == f"{PARENT}/jobs/{lost}"
    two.settle()


def _alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]
