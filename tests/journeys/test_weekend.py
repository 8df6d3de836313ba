"""An appliance that was off for days comes up by `appliance up` alone; so does an evicted node.

The first days are lived under a clock that stands that far back, by all processes; the present one
is the machine's own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.local import Local
from deploy.demo.terminal import Terminal
from tests.fakes import moved_clock
from tests.journeys import running
from tests.journeys.running import PROGRAM, PROJECT, Appliance, code_of, texts, wait_for

pytestmark = [pytest.mark.timeout(240), pytest.mark.long]

NODE, GATEWAY = "nodes/node-1", "gateways/gateway-1"
ADVICE = "`appliance node create-join-token node-1 --out join.token`"


@contextmanager
def off_for(home: Path, off: timedelta) -> Iterator[Appliance]:
    """An appliance that was made, up and used so long ago, and is down since; alice logged in."""
    then = Terminal(
        PROGRAM, home / "alice", moved_clock.surroundings(moved_clock.build(home), -off)
    )
    data, password = home / "data", secrets.token_urlsafe(18)
    running.init(then, data, password)
    up(then, data)
    secret = then.first_login("alice", password, clock=lambda: time.time() - off.total_seconds())
    then.run("project", "create", PROJECT)
    then.run("context", "set-project", PROJECT)
    now = Terminal(PROGRAM, home / "alice")
    try:
        yield Appliance(home, data, Local(data).api, now, password, secret)
    finally:
        now.run("down", "--data-dir", str(data))
    assert running.mentioning(data) == []


def up(terminal: Terminal, data: Path, *more: str) -> list[str]:
    """Type `appliance up --detach`; the lines that it says."""
    return terminal.run("up", "--data-dir", str(data), "--detach", *more).stderr.splitlines()


def down(appliance: Appliance) -> None:
    appliance.alice.run("down", "--data-dir", str(appliance.data))


def log_in(appliance: Appliance) -> None:
    code = code_of(appliance.secret, time.time())
    given = f"{appliance.password}\n{code}\n"
    appliance.alice.run("login", "--password-file", "-", "--code-file", "-", stdin=given)


def state_of(alice: Terminal) -> str:
    return str(alice.json("node", "get", "node-1", echo=False)["state"])


def join_records(alice: Terminal) -> list[dict[str, Any]]:
    records = alice.json("audit", "list")
    made = [each for each in records if each["method"] == "join-token" and each["outcome"] == "OK"]
    return [each for each in made if each["resource"] == NODE]


@pytest.fixture(scope="module")
def said(appliance: Appliance) -> list[str]:
    """What the first `up` after twelve days said."""
    return up(appliance.alice, appliance.data)


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    home = tmp_path_factory.mktemp("weekend")
    with off_for(home, timedelta(days=12)) as found:
        then = Terminal(PROGRAM, home / "alice", moved_clock_of(home, timedelta(days=12)))
        then.run("dataset", "create", "docs")
        then.run("dataset", "upload", "docs", str(texts(home / "texts", 300)))
        then.run(
            *("job", "prepare", "cut", "--dataset", "docs/1", "--output-dataset", "tokens"),
            *("--output-tokenizer", "bpe", "--vocabulary-size", "512"),
        )
        wait_for(
            lambda: then.json("job", "get", "cut", echo=False)["state"] == "STATE_RUNNING",
            "the job to run",
        )
        down(found)
        yield found


def moved_clock_of(home: Path, off: timedelta) -> dict[str, str]:
    return moved_clock.surroundings(home / "moved_clock.so", -off)


def test_after_twelve_days_the_node_joins_anew_and_its_work_goes_on(
    appliance: Appliance, said: list[str]
) -> None:
    alice = appliance.alice
    renewed = [line.partition(" on 20")[0] for line in said if "joins anew" in line]
    assert renewed == [
        f"{machine} joins anew, with a new key: its certificate ended"
        for machine in (NODE, GATEWAY)
    ]
    assert [line.split(" serves ")[0] for line in said if " serves " in line] == [
        *("control", "gateway", "node")
    ]
    log_in(appliance)
    assert state_of(alice) == "STATE_READY"
    alice.run("job", "watch", "cut")
    job = alice.json("job", "get", "cut")
    assert (job["state"], job["epoch"]) == ("STATE_SUCCEEDED", 2)
    (record,) = join_records(alice)
    assert record["principal"] == ""


def test_an_evicted_node_stops_nobody_and_comes_back_by_up(
    appliance: Appliance, said: list[str]
) -> None:
    alice, node = appliance.alice, appliance.process_id("node")
    alice.run("node", "evict", "node-1", "--yes")
    log = appliance.data / "run" / "node.log"
    wait_for(lambda: ADVICE in log.read_text(), "the agent to say what to type")
    assert state_of(alice) == "STATE_EVICTED"
    alice.run("status")
    assert appliance.process_id("node") == node
    down(appliance)
    assert not [line for line in up(alice, appliance.data, "--no-node") if NODE in line]
    assert state_of(alice) == "STATE_EVICTED"
    assert len(appliance.process_ids) == 3
    down(appliance)
    (again,) = [line for line in up(alice, appliance.data) if "joins anew" in line]
    assert "it was evicted (`appliance up --no-node` starts without it)" in again
    wait_for(lambda: state_of(alice) == "STATE_READY", "the node to be back")
    assert len(join_records(alice)) == 2


def test_after_400_days_the_gateway_joins_anew_too(tmp_path: Path) -> None:
    with off_for(tmp_path, timedelta(days=400)) as appliance:
        down(appliance)
        said = up(appliance.alice, appliance.data)
        assert [line for line in said if line.startswith(f"{GATEWAY} joins anew")]
        log_in(appliance)
        assert state_of(appliance.alice) == "STATE_READY"
        down(appliance)
        # What holds is left alone.
        assert not [line for line in up(appliance.alice, appliance.data) if "anew" in line]
