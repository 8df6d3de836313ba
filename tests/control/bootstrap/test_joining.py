"""A join token made where the keys are: recorded, good for one join, never while it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.control.auth import join_tokens
from appliance.control.bootstrap import joining
from appliance.control.bootstrap.opening import open_data
from appliance.control.store import tables
from appliance.core.errors import FailedPrecondition, InvalidInput, Unauthenticated
from appliance.core.identity import Principal, PrincipalKind
from appliance.crypto.reading import fingerprint
from tests.fakes.appliance import settings_of

NODE7 = Principal(PrincipalKind.NODE, "node7")
GATEWAY7 = Principal(PrincipalKind.GATEWAY, "gateway7")
REPOSITORY = Path(__file__).parents[3]


def now() -> datetime:
    return datetime.now(UTC)


def records(folder: Path) -> list[dict[str, Any]]:
    lines = b"".join(path.read_bytes() for path in sorted((folder / "audit").glob("0*.log")))
    return [json.loads(line) for line in lines.splitlines()]


def test_the_token_lets_one_server_join_under_its_name_for_an_hour(copy: Path) -> None:
    made = joining.make(settings_of(copy), NODE7, now)
    assert made.ca_fingerprint == fingerprint((copy / "ca.pem").read_bytes())
    assert timedelta(minutes=59) < made.token.expire_time - now() <= timedelta(hours=1)
    opened = open_data(settings_of(copy), now)
    try:
        key = opened.keyring.token_hmac
        with opened.database.write() as transaction:
            assert join_tokens.consume(transaction, key, made.token.text, now()).machine == "node7"
        with pytest.raises(Unauthenticated), opened.database.write() as transaction:
            join_tokens.consume(transaction, key, made.token.text, now())
    finally:
        opened.close()


def test_intent_and_result_are_recorded_without_the_token(copy: Path) -> None:
    made = joining.make(settings_of(copy), NODE7, now)
    found = records(copy)[-2:]
    said = [(each["kind"], each["method"], each["resource"], each["outcome"]) for each in found]
    assert said == [
        ("intent", "join-token", "nodes/node7", ""),
        ("result", "join-token", "nodes/node7", "OK"),
    ]
    assert all(each["details"]["by"].startswith("offline, uid ") for each in found)
    assert made.token.text not in json.dumps(records(copy))
    assert made.token.text not in repr(made)


def test_it_is_refused_while_the_control_plane_runs_and_for_no_name(copy: Path) -> None:
    opened = open_data(settings_of(copy), now)
    try:
        with pytest.raises(FailedPrecondition, match="another control plane uses"):
            joining.make(settings_of(copy), NODE7, now)
    finally:
        opened.close()
    with pytest.raises(InvalidInput):
        joining.make(settings_of(copy), Principal(PrincipalKind.NODE, "node.7"), now)
    for host in ("control.appliance", "*.example", "a b", "Head", "x" * 64):
        with pytest.raises(InvalidInput, match="is no host of a gateway"):
            joining.make(settings_of(copy), GATEWAY7, now, [host])


@pytest.mark.attack
def test_an_evicted_machine_gets_one_only_when_it_is_said_that_it_may_come_back(
    copy: Path,
) -> None:
    with closing(open_data(settings_of(copy), now)) as opened, opened.database.write() as change:
        change.run(tables.gateway.update().values(state="EVICTED"))
    gateway = Principal(PrincipalKind.GATEWAY, "gateway-1")
    with pytest.raises(FailedPrecondition, match="was evicted: add --readmit if it may come back"):
        joining.make(settings_of(copy), gateway, now)
    assert [each["kind"] for each in records(copy) if each["method"] == "join-token"] == []
    assert joining.make(settings_of(copy), gateway, now, readmit=True)
    # A node of that name is somebody else.
    assert joining.make(settings_of(copy), Principal(PrincipalKind.NODE, "gateway-1"), now)


def test_the_names_of_a_gateway_are_recorded(copy: Path) -> None:
    joining.make(settings_of(copy), GATEWAY7, now, ["llm.example", "192.0.2.7"])
    asked = [each["details"]["asked"] for each in records(copy)[-2:]]
    assert asked == [{"hosts": ["llm.example", "192.0.2.7"]}] * 2


@pytest.mark.attack
def test_a_token_for_a_gateway_lets_no_node_in_and_the_other_way_round(copy: Path) -> None:
    made = [joining.make(settings_of(copy), machine, now) for machine in (NODE7, GATEWAY7)]
    opened = open_data(settings_of(copy), now)
    try:
        key = opened.keyring.token_hmac
        kinds = (PrincipalKind.GATEWAY, PrincipalKind.NODE)
        for each, wrong, right in zip(made, kinds, kinds[::-1], strict=True):
            with pytest.raises(Unauthenticated), opened.database.write() as transaction:
                join_tokens.consume(transaction, key, each.token.text, now(), wrong)
            with opened.database.write() as transaction:
                join_tokens.consume(transaction, key, each.token.text, now(), right)
    finally:
        opened.close()


def test_the_command_prints_one_json_object(copy: Path) -> None:
    program = [sys.executable, "-m", "appliance.control", "--config", str(copy / "control.toml")]
    done = subprocess.run(
        [*program, "join-token", "--node", "node7"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts.keys() == {"token", "ca_fingerprint"}
    assert facts["token"].startswith("sla_join_")
