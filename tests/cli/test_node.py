"""`appliance node`: taking servers out and letting them back in, as people type it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from appliance.api.nodes.v1 import node_pb2, node_service_pb2
from appliance.api.serving.v1 import gateway_service_pb2
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

JOB = "projects/demo/jobs/one"
DRAINING = {"cordoned": True, "draining": True, "cordon_reason": "new disk"}


def node(state: str = "READY", *work: dict[str, Any], **fields: Any) -> node_pb2.Node:
    return node_pb2.Node(
        name="nodes/n1",
        state=f"STATE_{state}",  # type: ignore[arg-type]  # protobuf takes the name
        work=[node_pb2.NodeWork(**each) for each in work],
        **fields,
    )


def work(state: str, note: str = "", name: str = JOB) -> dict[str, Any]:
    return {"name": name, "kind": "train", "state": state, "devices": [0, 1], "note": note}


@pytest.mark.parametrize(
    ("fields", "shown"),
    [({}, "READY"), ({"cordoned": True}, "READY, cordoned"), (DRAINING, "READY, draining")],
)
def test_whether_a_node_takes_work_stands_beside_its_state(
    command: Run, logged_in: FakeApi, fields: dict[str, Any], shown: str
) -> None:
    logged_in.answers["NodeService.ListNodes"] = node_service_pb2.ListNodesResponse(
        nodes=[node(**fields)]
    )
    heading, row = command("node", "list").out.splitlines()
    start, end = heading.index("STATE"), heading.index("DEVICES")
    assert row[start:end].strip() == shown


def test_a_node_is_cordoned_with_a_reason_and_uncordoned(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["NodeService.CordonNode"] = node(cordoned=True)
    assert "READY, cordoned" in command("node", "cordon", "n1", "--reason", "new disk").out
    request = logged_in.calls[-1].request
    assert (request.name, request.reason) == ("nodes/n1", "new disk")
    logged_in.answers["NodeService.UncordonNode"] = node()
    assert "cordoned" not in command("node", "uncordon", "n1").out


def test_a_drain_is_followed_until_nothing_is_left(command: Run, logged_in: FakeApi) -> None:
    saves = "nodes/n1 is drained: it saves a checkpoint"
    logged_in.answers["NodeService.DrainNode"] = node("READY", work("RUNNING"), **DRAINING)
    logged_in.answers["NodeService.WatchNode"] = [
        node("READY", work("RUNNING"), **DRAINING),
        node("READY", work("PAUSING", saves), **DRAINING),
        node("READY", work("PAUSING", saves), **DRAINING, devices=3),
        node("READY", work("ENDING", name=""), **DRAINING),
        node("READY", **DRAINING),
        node("READY", work("RUNNING"), **DRAINING),
    ]
    shown = command("node", "drain", "n1", "--grace", "1.5m", "--wait")
    assert shown.code == 0, shown.err
    assert shown.err.splitlines() == [
        f"still there: {JOB} train RUNNING",
        f"still there: {JOB} train PAUSING: {saves}",
        "still there: (not yours to see) train ENDING",
        "nothing runs on n1 any more; `appliance node uncordon n1` lets work come again",
    ]
    (drained,) = logged_in.named("NodeService.DrainNode")
    assert drained.request.grace_seconds == 90
    # Without --wait it says what is there, and returns.
    shown = command("node", "drain", "n1")
    assert shown.err.splitlines() == [f"still there: {JOB} train RUNNING"]
    assert not logged_in.calls[-1].request.HasField("grace_seconds")


def test_who_waits_hears_that_somebody_has_ended_the_drain(
    command: Run, logged_in: FakeApi
) -> None:
    logged_in.answers["NodeService.DrainNode"] = node("READY", work("RUNNING"), **DRAINING)
    logged_in.answers["NodeService.WatchNode"] = [node("READY", work("RUNNING"))]
    shown = command("node", "drain", "n1", "--wait")
    assert shown.code == 1
    assert "somebody has uncordoned it" in shown.err


def test_of_a_node_that_is_away_nobody_waits_for_what_it_cannot_say(
    command: Run, logged_in: FakeApi
) -> None:
    logged_in.answers["NodeService.DrainNode"] = node("LOST", work("ENDING"), **DRAINING)
    logged_in.answers["NodeService.WatchNode"] = [node("LOST", work("ENDING"), **DRAINING)]
    shown = command("node", "drain", "n1", "--wait")
    assert shown.code == 0
    assert "n1 is away: what it still runs ends when it is back" in shown.err


def test_what_runs_on_a_node_is_described(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["NodeService.GetNode"] = node("READY", work("RUNNING", "why"), **DRAINING)
    shown = command("node", "describe", "n1").out
    assert re.search(r"^Cordon reason: +new disk$", shown, re.MULTILINE)
    *_, heading, row = shown.splitlines()
    assert heading.split() == ["WORK", "KIND", "STATE", "DEVICES", "NOTE"]
    assert row.split("  ") == [JOB, "train", "RUNNING", "0, 1", "  why"] or JOB in row
    assert json.loads(command("node", "describe", "n1", "-o", "json").out)["work"][0]["name"] == JOB
    logged_in.answers["NodeService.GetNode"] = node()
    assert "WORK" not in command("node", "describe", "n1").out


def test_a_removal_is_asked_for(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["NodeService.DeleteNode"] = node_service_pb2.DeleteNodeResponse()
    answer = gateway_service_pb2.DeleteGatewayResponse()
    logged_in.answers["GatewayService.DeleteGateway"] = answer
    for noun, name in (("node", "nodes/n1"), ("gateway", "gateways/n1")):
        before = len(logged_in.calls)
        assert command(noun, "remove", "n1").code == 3
        assert len(logged_in.calls) == before
        shown = command(noun, "remove", "n1", "--yes", "--etag", "abc", "-o", "json")
        assert json.loads(shown.out) == {"name": name, "deleted": True}
        request = logged_in.calls[-1].request
        assert (request.name, request.etag) == (name, "abc")


def test_a_gateway_is_shown(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["GatewayService.GetGateway"] = gateway_service_pb2.Gateway(
        name="gateways/g1", state=1, connected=True
    )
    assert "Connected: yes\n" in command("gateway", "get", "g1").out
