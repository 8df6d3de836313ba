"""What an endpoint should have, as a table: its replicas now, and what is done.

A replica is written `r0@1 READY n1`: id, generation, state, node. Behind the state: `?`, it has
never been ready; `x`, its last start failed; `!`, it has found no room for two minutes.
"""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime, timedelta

import pytest

from appliance.control.services.serving.endpoint_state import Words, judge
from appliance.control.services.serving.replica_plan import (
    DELETED,
    RUNNING,
    STOPPED,
    Aim,
    Member,
    plan,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = Words("projects/p/endpoints/e", "--model m/1")
BACK = "`appliance endpoint update projects/p/endpoints/e --model m/1`"
ALLOW = (
    "free devices, or let an older one stop before the new one answers: "
    "`appliance endpoint update projects/p/endpoints/e --allow-downtime`"
)
AFTER = "an older one makes room after 60 s"
ROOM = "waiting for 1 free device(s)"


def member(text: str) -> Member:
    found = re.fullmatch(r"(r\d+)@(\d) ([A-Z]+)([?!x]*)(?: (\w+))?", text)
    assert found is not None, text
    name, generation, state, marks, node = found.groups()
    return Member(
        name,
        int(generation),
        state,
        ROOM if "!" in marks else "it died" if "x" in marks else "",
        node or "",
        was_ready="?" not in marks and "!" not in marks,
        failed="x" in marks,
        since=NOW - timedelta(minutes=2),
    )


def members(text: str) -> list[Member]:
    return [member(each.strip()) for each in text.split(",") if each.strip()]


ONE, TWO, THREE = Aim(RUNNING, 1, 1), Aim(RUNNING, 2, 1), Aim(RUNNING, 3, 1)
NEW_ONE, NEW_THREE = Aim(RUNNING, 1, 2), Aim(RUNNING, 3, 2)
DOWN_ONE = Aim(RUNNING, 1, 2, allow_downtime=True)
DOWN_TWO = Aim(RUNNING, 2, 2, allow_downtime=True)
CASES = [
    ("a new endpoint gets all of its replicas", THREE, "", "", 3, ""),
    ("all is well", TWO, "r0@1 READY a, r1@1 READY b", "", 0, ""),
    ("one more is wanted", THREE, "r0@1 READY a, r1@1 READY b", "", 1, ""),
    ("one less: the newest goes", ONE, "r0@1 READY a, r1@1 READY b", "", 0, "r1"),
    ("of the fullest node first", TWO, "r0@1 READY a, r1@1 READY a, r2@1 READY b", "", 0, "r1"),
    ("first what does not answer", ONE, "r0@1 LOST, r1@1 READY a", "", 0, "r0"),
    ("what drains does not count", TWO, "r0@1 DRAINING a, r1@1 READY a", "", 1, ""),
    ("r10 is newer than r9", Aim(RUNNING, 1, 1), "r9@1 READY a, r10@1 READY a", "", 0, "r10"),
    # A change of the model.
    ("one new one beside the old", NEW_ONE, "r0@1 READY a", "", 1, ""),
    ("it starts, and nothing else happens", NEW_ONE, "r0@1 READY a, r1@2 STARTING? b", "", 0, ""),
    ("it is ready, and the old one goes", NEW_ONE, "r0@1 READY a, r1@2 READY b", "", 0, "r0"),
    ("it is over", NEW_ONE, "r1@2 READY b", "", 0, ""),
    (
        "one of three at a time",
        NEW_THREE,
        "r0@1 READY a, r1@1 READY b, r2@1 READY c",
        "",
        1,
        "",
    ),
    (
        "one is ready: one goes, and holds its devices until it has gone",
        NEW_THREE,
        "r0@1 READY a, r1@1 READY b, r2@1 READY c, r3@2 READY a",
        "",
        0,
        "r0",
    ),
    (
        "it drains: no other one is started yet",
        NEW_THREE,
        "r0@1 READY a, r1@1 READY b, r2@1 DRAINING c, r3@2 READY a",
        "",
        0,
        "",
    ),
    ("it has gone: the next", NEW_THREE, "r0@1 READY a, r1@1 READY b, r3@2 READY a", "", 1, ""),
    (
        "a broken old one goes before one that answers",
        NEW_THREE,
        "r0@1 LOST, r1@1 READY b, r2@1 READY c, r3@2 READY a",
        "",
        0,
        "r0",
    ),
    ("an old one that died waits for its start", NEW_ONE, "r0@1 LOST, r1@2 LOST?x", "", 0, ""),
    ("more replicas of a new version", NEW_THREE, "r0@1 READY a", "", 3, ""),
    (
        "fewer of a new version: the surplus goes now",
        NEW_ONE,
        "r0@1 READY a, r1@1 READY b",
        "",
        0,
        "r1",
    ),
    ("what never answered is not waited for", NEW_ONE, "r0@1 PENDING?", "", 1, "r0"),
    (
        "of a version in between that starts nothing is waited for",
        Aim(RUNNING, 1, 3),
        "r0@1 READY a, r1@2 STARTING? b",
        "",
        0,
        "r1",
    ),
    (
        "one in between that answers goes first",
        Aim(RUNNING, 2, 3),
        "r0@1 READY a, r1@2 READY b, r2@3 READY c",
        "",
        0,
        "r1",
    ),
    # No room.
    (
        "an old one makes room when others answer",
        NEW_THREE,
        "r0@1 READY a, r1@1 READY b, r2@1 READY c, r3@2 PENDING!",
        "",
        0,
        "r2",
    ),
    (
        "once",
        NEW_THREE,
        "r0@1 READY a, r1@1 READY b, r3@2 PENDING!",
        "",
        0,
        "",
    ),
    (
        "not while one is on its way out",
        NEW_THREE,
        "r0@1 READY a, r1@1 READY b, r2@1 DRAINING c, r3@2 PENDING!",
        "",
        0,
        "",
    ),
    ("the last one stays", NEW_ONE, "r0@1 READY a, r1@2 PENDING!", "", 0, ""),
    ("unless a downtime is allowed", DOWN_ONE, "r0@1 READY a, r1@2 PENDING!", "", 0, "r0"),
    (
        "then also the next, for one that needs the devices of both",
        DOWN_TWO,
        "r0@1 READY a, r2@2 PENDING!",
        "",
        0,
        "r0",
    ),
    (
        "a version that has failed takes nobody's place",
        NEW_THREE,
        "r0@1 READY a, r1@1 READY b, r2@1 READY c, r3@2 PENDING!x",
        "",
        0,
        "",
    ),
    # A node is drained.
    ("another one elsewhere first", ONE, "r0@1 READY a", "a", 1, ""),
    ("then it goes", ONE, "r0@1 READY a, r1@1 READY b", "a", 0, "r0"),
    ("one that starts there begins anew", ONE, "r0@1 STARTING? a", "a", 1, "r0"),
    (
        "room on a drained node is no room",
        TWO,
        "r0@1 READY a, r1@1 READY a, r2@1 PENDING!",
        "a",
        0,
        "",
    ),
    ("one that is lost with its node moves anyway", ONE, "r0@1 LOST", "a", 0, ""),
    (
        "the node is let in again: what is not needed goes",
        ONE,
        "r0@1 READY a, r1@1 STARTING? b",
        "",
        0,
        "r1",
    ),
    (
        "a drained node and a new version",
        Aim(RUNNING, 2, 2),
        "r0@1 READY a, r1@1 READY b, r2@2 READY c",
        "a",
        0,
        "r1",
    ),
    # The end.
    (
        "stopped",
        Aim(STOPPED, 2, 1),
        "r0@1 READY a, r1@1 PENDING?, r2@1 DRAINING b",
        "",
        0,
        "r0 r1",
    ),
    ("deleted", Aim(DELETED, 1, 1), "r0@1 LOST", "", 0, "r0"),
]


@pytest.mark.parametrize(
    ("aim", "has", "leaving", "add", "go"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_plan(aim: Aim, has: str, leaving: str, add: int, go: str) -> None:
    made = plan(aim, members(has), set(leaving.split()), NOW)
    assert (made.add, sorted(name for name, _ in made.drain)) == (add, sorted(go.split()))


def test_room_is_waited_for_a_minute_or_five_seconds_where_a_downtime_is_allowed() -> None:
    has = members("r0@1 READY a, r1@1 READY b, r2@2 PENDING!")
    waited = NOW - timedelta(minutes=2)
    for aim, seconds in ((Aim(RUNNING, 2, 2), 60), (DOWN_TWO, 5)):
        for more, gone in ((-1, 0), (0, 1)):
            at = waited + timedelta(seconds=seconds + more)
            assert len(plan(aim, has, set(), at).drain) == gone


@pytest.mark.parametrize("seed", range(50))
def test_a_swap_ends_and_as_many_answer_as_before_at_every_moment(seed: int) -> None:
    """Random ends of starts and drains, until nothing is left to do."""
    dice = random.Random(seed)
    count = dice.randint(1, 5)
    aim = Aim(RUNNING, count, 2)
    now = {f"r{n}": member(f"r{n}@1 READY n{n}") for n in range(count)}
    number = count
    for _ in range(200):
        made = plan(aim, list(now.values()), set(), NOW)
        for name, _why in made.drain:
            now[name] = member(f"{name}@{now[name].generation} DRAINING x")
        for _ in range(made.add):
            now[f"r{number}"] = member(f"r{number}@2 STARTING? x")
            number += 1
        ready = [each for each in now.values() if each.state == "READY"]
        assert count <= len(ready) <= len(now) <= count + 1
        moving = [each for each in now.values() if each.state in {"STARTING", "DRAINING"}]
        if not moving:
            break
        one = dice.choice(moving)
        if one.state == "DRAINING":
            del now[one.id]
        else:
            now[one.id] = member(f"{one.id}@2 READY x")
    assert [each.generation for each in now.values()] == [2] * count


STATES = [
    (TWO, "STARTING", "r0@1 READY a, r1@1 READY b", 0, "READY", ""),
    (TWO, "READY", "r0@1 READY a, r1@1 LOSTx", 1, "DEGRADED", "it died"),
    (TWO, "READY", "r0@1 READY a, r1@1 STARTING?", 0, "DEGRADED", "1 of 2 replicas are ready"),
    (TWO, "STARTING", "r0@1 LOST?x, r1@1 LOST?x", 1, "STARTING", "it died"),
    (
        ONE,
        "STARTING",
        "r0@1 LOST?x",
        5,
        "FAILED",
        "no replica stays up, tried again every 30 s: it died",
    ),
    (ONE, "FAILED", "r0@1 STARTING?", 5, "FAILED", "as before"),
    (ONE, "FAILED", "r0@1 STARTING?", 0, "FAILED", "as before"),
    (ONE, "READY", "r0@1 READY a, r1@1 DRAINING b", 0, "READY", ""),
    (Aim(STOPPED, 1, 1), "STOPPING", "r0@1 DRAINING a", 0, "STOPPING", "as before"),
    (Aim(STOPPED, 1, 1), "STOPPING", "", 0, "STOPPED", ""),
    (Aim(DELETED, 1, 1), "STOPPING", "r0@1 DRAINING a", 0, "STOPPING", "as before"),
    (
        NEW_ONE,
        "STARTING",
        "r0@1 READY a, r1@2 STARTING? b",
        0,
        "UPDATING",
        "0 of 1 replicas are of the new version; r1 starts",
    ),
    (
        NEW_ONE,
        "UPDATING",
        "r0@1 READY a, r1@2 LOST?x",
        1,
        "UPDATING",
        "0 of 1 replicas are of the new version; r1 failed and is started again: it died",
    ),
    (
        NEW_ONE,
        "UPDATING",
        "r0@1 READY a, r1@2 LOST?x",
        5,
        "DEGRADED",
        "the new version does not start (it died); the one before answers: go back with " + BACK,
    ),
    (NEW_ONE, "DEGRADED", "r0@1 READY a, r1@2 STARTING? b", 5, "DEGRADED", "as before"),
    (NEW_ONE, "DEGRADED", "r0@1 READY a, r1@2 STARTING? b", 0, "DEGRADED", "as before"),
    (
        NEW_ONE,
        "UPDATING",
        "r0@1 READY a, r1@2 PENDING!",
        0,
        "UPDATING",
        f"0 of 1 replicas are of the new version; r1 has no room: {ROOM}; " + ALLOW,
    ),
    (
        DOWN_ONE,
        "UPDATING",
        "r0@1 READY a, r1@2 PENDING!",
        0,
        "UPDATING",
        f"0 of 1 replicas are of the new version; r1 has no room: {ROOM}; an older one makes room",
    ),
    (
        Aim(RUNNING, 2, 2),
        "UPDATING",
        "r0@1 READY a, r1@1 READY b, r2@2 PENDING!",
        0,
        "UPDATING",
        f"0 of 2 replicas are of the new version; r2 has no room: {ROOM}; {AFTER}",
    ),
    (
        Aim(RUNNING, 2, 2),
        "UPDATING",
        "r0@1 READY a, r1@1 DRAINING b, r2@2 READY c",
        0,
        "UPDATING",
        "1 of 2 replicas are of the new version; r1 finishes its answers",
    ),
]


@pytest.mark.parametrize(("aim", "before", "has", "failures", "state", "reason"), STATES)
def test_state(aim: Aim, before: str, has: str, failures: int, state: str, reason: str) -> None:
    found = judge(aim, (before, "as before"), members(has), set(), failures, WORDS)
    assert found == (state, reason)


def test_whose_node_is_drained_says_so() -> None:
    has = "r0@1 READY a, r1@1 PENDING!"
    assert judge(ONE, ("READY", ""), members(has), {"a"}, 0, WORDS) == (
        "READY",
        f"r0 leaves node a, which is drained, when r1 has room: {ROOM}",
    )
