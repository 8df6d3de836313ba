"""What is said in several places is the same: periods, and keys of configurations that are read."""

from __future__ import annotations

import ast
import dataclasses
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.control.config import ControlConfig
from appliance.core.heartbeat import HEARTBEAT_SECONDS, SILENT_SECONDS
from appliance.core.site import PORTS
from appliance.gateway.config import GatewayConfig
from appliance.node.config import NodeConfig
from tests.fakes.pages import ROOT

_PROTO = "proto/appliance/api/agent/v1/agent_service.proto"
_WORDS = {1.0: "every second", 6.0: "six seconds"}


@pytest.mark.parametrize(
    ("file", "seconds", "part"),
    [
        ("docs/nodes.md", HEARTBEAT_SECONDS, "a heartbeat {}"),
        ("docs/jobs.md", SILENT_SECONDS, "has been silent for {} gets no new work"),
        (
            "appliance/control/services/fleet/connected_agents.py",
            SILENT_SECONDS,
            "has been silent for {} gets",
        ),
        (
            "proto/appliance/api/agent/v1/agent_service.proto",
            HEARTBEAT_SECONDS,
            "{}: what the node",
        ),
    ],
)
def test_a_heartbeat_has_one_period(file: str, seconds: float, part: str) -> None:
    assert part.format(_WORDS[seconds]).lower() in (ROOT / file).read_text().lower()


def test_the_agent_listens_by_default_where_the_table_of_ports_says() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(NodeConfig)}
    assert defaults["health"] == f"127.0.0.1:{PORTS['node-health']}"
    assert defaults["metrics"] == f"127.0.0.1:{PORTS['node-metrics']}"


def keys(cls: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a configuration, and the attribute that holds it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield f"{at}{field.name}", field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys(hints[field.name], f"{at}{field.name}.")


def read_in(*folders: str) -> set[str]:
    """Names of all attributes that code in these folders reads, but to check them where they are
    declared (`__post_init__`)."""
    found: set[str] = set()
    for folder in folders:
        for path in (ROOT / "appliance" / folder).rglob("*.py"):
            found |= _attributes(path)
    return found


def _attributes(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    checks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__"
    ]
    left_out = {id(node) for check in checks for node in ast.walk(check)}
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and id(node) not in left_out
    }


@pytest.mark.parametrize("cls", [ControlConfig, GatewayConfig, NodeConfig])
def test_a_retired_key_lives_for_the_releases_of_one_number(cls: Any) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    known = {key for key, _ in keys(cls)}
    for key, retired in getattr(cls, "RETIRED", {}).items():
        assert key not in known
        assert version.startswith(f"{retired.since}."), f"{key} has had its time: remove it"
        assert retired.successor in known if retired.successor else retired.advice


@pytest.mark.parametrize(
    ("cls", "folder"),
    [(ControlConfig, "control"), (GatewayConfig, "gateway"), (NodeConfig, "node")],
)
def test_every_key_of_a_configuration_is_read_by_its_process(cls: Any, folder: str) -> None:
    read = read_in(folder, "wire", "machine")
    assert [key for key, attribute in keys(cls) if attribute not in read] == []
