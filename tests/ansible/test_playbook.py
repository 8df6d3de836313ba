"""The playbook: what it writes is what the processes read, and the linter has nothing to say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from appliance.control.config import ControlConfig
from appliance.core import config
from appliance.gateway.config import GatewayConfig
from appliance.node.config import NodeConfig

ANSIBLE = Path(__file__).parents[2] / "ansible"
FINGERPRINT = "ab" * 32
VALUES = {
    "control_address": "10.0.0.1",
    "control_cluster_id": "0123456789abcdef",
    "control_objects": "/srv/objects",
    "gateway_address": "10.0.0.1",
    "gateway_cluster_id": "0123456789abcdef",
    "agent_address": "10.0.0.2",
    "agent_ca_fingerprint": FINGERPRINT,
    "agent_control_address": "10.0.0.1",
    "agent_devices": 2,
    "agent_objects": "/srv/objects",
    "agent_scratch": "/dev/shm/appliance-agent",
}


def rendered(role: str, name: str) -> str:
    text = (ANSIBLE / "roles" / role / "templates" / f"{name}.j2").read_text()
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(text).render(VALUES)


def loaded(cls: type[Any], role: str, name: str, folder: Path) -> Any:
    path = folder / name
    path.write_text(rendered(role, name))
    return config.load(cls, path)


def test_ipv6_addresses_stand_in_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("control_address", "gateway_address", "agent_control_address"):
        monkeypatch.setitem(VALUES, name, "fd00::1")
    control = loaded(ControlConfig, "control", "control.toml", tmp_path)
    gateway = loaded(GatewayConfig, "gateway", "gateway.toml", tmp_path)
    node = loaded(NodeConfig, "agent", "node.toml", tmp_path)
    assert control.listen.api == node.control.join == "[fd00::1]:7443"
    assert gateway.control == node.control.machines == "[fd00::1]:7444"
    assert control.gateway.openai == f"https://{gateway.listen.openai}/v1"
    assert gateway.listen.grpc == control.gateway.grpc == "[fd00::1]:8443"


def test_the_processes_read_what_is_written_and_find_each_other(tmp_path: Path) -> None:
    control = loaded(ControlConfig, "control", "control.toml", tmp_path)
    gateway = loaded(GatewayConfig, "gateway", "gateway.toml", tmp_path)
    node = loaded(NodeConfig, "agent", "node.toml", tmp_path)
    assert gateway.cluster_id == control.cluster_id == VALUES["control_cluster_id"]
    assert gateway.control == node.control.machines == control.listen.machines == "10.0.0.1:7444"
    assert node.control.join == control.listen.api == "10.0.0.1:7443"
    assert gateway.listen.grpc == control.gateway.grpc
    assert control.gateway.openai == f"https://{gateway.listen.openai}/v1"
    assert node.objects == control.objects_url == "file:///srv/objects"
    assert node.control.ca_fingerprint == FINGERPRINT
    assert node.devices.count == 2


def tasks(role: str) -> list[dict[str, object]]:
    files = sorted((ANSIBLE / "roles" / role / "tasks").glob("*.yml"))
    return [task for file in files for task in yaml.safe_load(file.read_text())]


@pytest.mark.attack
def test_every_task_that_handles_a_secret_prints_nothing() -> None:
    secret = (
        "control_password_file) }}",
        "join_token",
        "join-token",
        "key.pem",
        "control_invitations.results",
    )
    handling = [
        task
        for role in ("common", "control", "gateway", "agent")
        for task in tasks(role)
        if any(word in str({k: v for k, v in task.items() if k != "name"}) for word in secret)
        and "ansible.builtin.template" not in task
    ]
    # Of a token that could not be made, the reason is shown.
    silent = (True, "{{ item.rc == 0 }}")
    loud = [task["name"] for task in handling if task.get("no_log") not in silent]
    assert loud == []
    assert len(handling) >= 5


def test_the_linter_s_strictest_profile_passes_and_nothing_is_skipped() -> None:
    files = [*ANSIBLE.rglob("*.yml"), ANSIBLE / ".ansible-lint"]
    texts = {path.name: path.read_text() for path in files}
    assert [name for name, text in texts.items() if "noqa" in text or "skip" in text] == []
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [programs / "ansible-lint", "--nocolor", "-c", ".ansible-lint", "."],
        cwd=ANSIBLE,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
