"""The playbook: what it writes is what the processes read, and the linter has nothing to say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from appliance.control.config import ControlConfig
from appliance.core import config, names
from appliance.core.addresses import is_host, split_address
from appliance.core.errors import InvalidInput
from appliance.gateway.config import GatewayConfig
from appliance.node.config import NodeConfig

ANSIBLE = Path(__file__).parents[2] / "ansible"
FINGERPRINT = "ab" * 32
VALUES = {
    "control_address": "10.0.0.1",
    "control_cluster_id": "0123456789abcdef",
    "control_objects": "/srv/objects",
    "control_roles_file": "",
    "gateway_address": "10.0.0.1",
    "gateway_cluster_id": "0123456789abcdef",
    "gateway_ca_fingerprint": FINGERPRINT,
    "gateway_of_before": False,
    "gateway_front_certificate": "",
    "gateway_front_key": "",
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
    monkeypatch.setitem(VALUES, "agent_address", "fd00::2")
    control = loaded(ControlConfig, "control", "control.toml", tmp_path)
    gateway = loaded(GatewayConfig, "gateway", "gateway.toml", tmp_path)
    node = loaded(NodeConfig, "agent", "node.toml", tmp_path)
    assert control.listen.api == node.control.join == "[fd00::1]:7443"
    assert gateway.control == node.control.machines == "[fd00::1]:7444"
    assert control.gateway.openai == f"https://{gateway.listen.openai}/v1"
    assert gateway.listen.grpc == control.gateway.grpc == "[fd00::1]:8443"
    assert gateway.api == "[fd00::1]:7443"
    # A host alone has no brackets: a port follows later.
    assert node.address == "fd00::2"
    assert is_host(node.address)
    for address in (control.listen.metrics, gateway.metrics, node.health, node.metrics):
        assert split_address(address, "it")[0] == "127.0.0.1"


def test_the_processes_read_what_is_written_and_find_each_other(tmp_path: Path) -> None:
    control = loaded(ControlConfig, "control", "control.toml", tmp_path)
    gateway = loaded(GatewayConfig, "gateway", "gateway.toml", tmp_path)
    node = loaded(NodeConfig, "agent", "node.toml", tmp_path)
    assert gateway.cluster_id == control.cluster_id == VALUES["control_cluster_id"]
    assert gateway.control == node.control.machines == control.listen.machines == "10.0.0.1:7444"
    assert gateway.api == node.control.join == control.listen.api == "10.0.0.1:7443"
    assert gateway.ca_fingerprint == FINGERPRINT
    assert (gateway.key, gateway.front.files) == (None, None)
    assert gateway.listen.grpc == control.gateway.grpc
    assert control.gateway.openai == f"https://{gateway.listen.openai}/v1"
    assert node.objects == control.objects_url == "file:///srv/objects"
    assert node.control.ca_fingerprint == FINGERPRINT
    assert node.devices.count == 2


def test_roles_of_the_site_are_named_when_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded(ControlConfig, "control", "control.toml", tmp_path).roles is None
    monkeypatch.setitem(VALUES, "control_roles_file", "files/roles.yaml")
    control = loaded(ControlConfig, "control", "control.toml", tmp_path)
    assert control.roles == Path("/var/lib/appliance-control/roles.yaml")


def test_files_of_the_release_before_and_of_the_sites_pki_are_named_when_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VALUES, "gateway_of_before", True)
    monkeypatch.setitem(VALUES, "gateway_front_certificate", "/etc/pki/llm.pem")
    monkeypatch.setitem(VALUES, "gateway_front_key", "/etc/pki/llm.key")
    gateway = loaded(GatewayConfig, "gateway", "gateway.toml", tmp_path)
    assert gateway.key == Path("/etc/appliance-gateway/key.pem")
    assert gateway.front.files is not None
    assert gateway.front.files.key == Path("/etc/pki/llm.key")


def defaults(role: str) -> dict[str, Any]:
    found = yaml.safe_load((ANSIBLE / "roles" / role / "defaults" / "main.yml").read_text())
    assert isinstance(found, dict)
    return found


def test_who_is_invited_is_said_by_the_control_plane() -> None:
    """Not by a missing identity alone: an evicted node has one, another one is foreign."""
    asks = named("control", "Ask who has to join")
    assert asks["vars"]["control_ask"][-1] == "who-joins"
    assert "control_identities.results" in asks["ansible.builtin.command"]["stdin"]
    newcomers = named("control", "List machines that have to join")["ansible.builtin.set_fact"]
    assert "joins.keys()" in newcomers["control_newcomers"]


def test_an_evicted_machine_is_let_in_again_only_when_it_is_named() -> None:
    assert defaults("control")["control_readmit"] == []
    argv = named("control", "Ask who has to join")["ansible.builtin.command"]["argv"]
    assert "control_readmit" in argv
    assert "--readmit=" in argv
    makes = named("control", "Make join tokens")["ansible.builtin.command"]["argv"]
    assert "(['--readmit'] if item in control_readmit else [])" in makes
    said = named("control", "Say which were evicted and stay so")
    assert ".evicted" in said["loop"]


@pytest.mark.parametrize(("role", "machine"), [("agent", "nodes/"), ("gateway", "gateways/")])
def test_node_and_gateway_take_their_token_by_name_and_only_if_there_is_one(
    role: str, machine: str
) -> None:
    assert (
        f"control_join_tokens | default({{}})).get('{machine}'"
        in defaults(role)[f"{role}_join_token"]
    )
    handed = named(role, "Hand over its join token")
    assert handed["when"] == f"{role}_join_token | length > 0"
    copied = handed["ansible.builtin.copy"]
    (read,) = re.findall(r'^join_token = "(.*)"$', rendered(role, TEMPLATES[role]), re.MULTILINE)
    assert (copied["dest"], copied["mode"]) == (read, "0600")


def test_files_that_a_gateway_has_taken_over_do_not_stay() -> None:
    removes = named("gateway", "Remove the files of release 0.1.0 that it has taken over")
    assert removes["when"] == "gateway_identity.stat.exists"
    assert removes["loop"] == ["key.pem", "cert.pem"]


TEMPLATES = {"agent": "node.toml", "gateway": "gateway.toml"}


def tasks(role: str) -> list[dict[str, Any]]:
    files = sorted((ANSIBLE / "roles" / role / "tasks").glob("*.yml"))
    return [
        task for file in files for outer in yaml.safe_load(file.read_text()) for task in flat(outer)
    ]


def flat(task: dict[str, Any]) -> list[dict[str, Any]]:
    """A task, or those of a block, its rescue and its end."""
    if "block" not in task:
        return [task]
    parts = [task.get(part, []) for part in ("block", "rescue", "always")]
    return [inner for part in parts for each in part for inner in flat(each)]


def named(role: str, name: str) -> dict[str, Any]:
    (found,) = (task for task in tasks(role) if task["name"] == name)
    return found


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


def test_an_environment_counts_when_it_is_complete_and_others_can_read_it() -> None:
    """It is made under a mask of its own, and anew when it was interrupted."""
    for name in ("Make the environment", "Install the packages, each by its hash"):
        command = named("common", name)["ansible.builtin.command"]
        assert command["argv"][:4] == ["/bin/sh", "-c", 'umask 022 && exec "$@"', "sh"]
        assert command["creates"].endswith("/.complete")
    made = named("common", "Make the environment")["ansible.builtin.command"]["argv"]
    assert "--clear" in made
    release = named(
        "common", "Name the environment after what is in it, and the Python that runs it"
    )
    text = release["ansible.builtin.set_fact"]["common_release"]
    assert "common_python_version" in text
    assert "common_list.stat.checksum" in text


@pytest.mark.parametrize(("mask", "made"), [("077", True), ("027", True)])
def test_whatever_the_mask_of_a_server_the_environment_is_readable(
    tmp_path: Path, mask: str, *, made: bool
) -> None:
    """The command as the role runs it, in a shell with the mask of a hardened server."""
    argv = named("common", "Make the environment")["ansible.builtin.command"]["argv"]
    release = tmp_path / "release"
    (release / "bin").mkdir(parents=True)
    (release / "bin" / "python").write_text("half made")
    values = {"common_python": sys.executable, "common_release": str(release)}
    command = [jinja2.Template(word).render(values) for word in argv]
    subprocess.run(
        ["/bin/sh", "-c", f'umask {mask}; exec "$@"', "sh", *command], check=True, timeout=100
    )
    assert (release / "bin" / "activate").stat().st_mode & 0o777 == 0o644
    assert release.stat().st_mode & 0o005 == 0o005
    assert ((release / "bin" / "python").resolve() != release / "bin" / "python") is made


def test_a_node_s_name_is_looked_at_before_anything_is_changed() -> None:
    first, *_ = yaml.safe_load((ANSIBLE / "site.yml").read_text())
    check = first["tasks"][-1]["ansible.builtin.assert"]
    (pattern,) = re.findall(r"match\('(.*)'\)", check["that"])
    for name in ("node1", "gpu-2", "ab"):
        assert re.match(pattern, name)
        names.check_id(name, "node")
    for name in ("Node1", "node_1", "1node", "a", "n" * 64, "node.example"):
        assert not re.match(pattern, name)
        with pytest.raises(InvalidInput):
            names.check_id(name, "node")


def test_the_control_plane_is_started_again_when_no_token_can_be_made() -> None:
    (block,) = (
        task
        for task in yaml.safe_load(
            (ANSIBLE / "roles" / "control" / "tasks" / "invite.yml").read_text()
        )
        if "block" in task
    )
    assert block["rescue"][0]["ansible.builtin.systemd_service"]["state"] == "started"
    assert "ansible.builtin.fail" in block["rescue"][1]


def look(folder: Path, before: Path) -> str:
    """What the task that looks at a server prints there."""
    argv = named("control", "Look at the certificates of nodes and gateway")
    *_, program, _, _ = argv["ansible.builtin.command"]["argv"]
    done = subprocess.run(
        [sys.executable, "-c", program, folder, before],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_the_certificate_that_lies_on_a_server_is_found(tmp_path: Path) -> None:
    state, before = tmp_path / "identity.json", tmp_path / "cert.pem"
    assert look(state, before) == ""
    before.write_text("of 0.1.0")
    assert look(state, before) == "of 0.1.0"
    state.write_text('{"certificate": "newest"}')
    assert look(state, before) == "newest"


def test_the_play_of_a_node_ends_with_its_being_ready_or_says_why_not() -> None:
    last = tasks("agent")[-1]["ansible.builtin.assert"]
    assert last["that"] == "agent_ready.rc == 0"
    assert "agent_said.stdout" in last["fail_msg"]


def test_the_play_of_the_gateway_says_why_it_does_not_answer() -> None:
    last = tasks("gateway")[-1]["ansible.builtin.assert"]
    assert last["that"] == "gateway_answers is not failed"
    assert "gateway_said.stdout" in last["fail_msg"]
    # Whatever the reason, it is no answer: not that a time was over alone.
    waits = named("gateway", "Wait until it answers")
    assert "failed_when" not in waits
    assert named("gateway", "Read the last thing it said")["when"] == "gateway_answers is failed"


def test_what_is_only_looked_at_is_looked_at_in_check_mode_too() -> None:
    looks = [
        task
        for role in ("common", "control", "gateway", "agent")
        for task in tasks(role)
        if ("ansible.builtin.command" in task or "ansible.builtin.script" in task)
        and "register" in task
        and task.get("changed_when") is False
        and "until" not in task
    ]
    assert {task["name"] for task in looks} >= {"Ask Python for its version"}
    assert [task["name"] for task in looks if task.get("check_mode") is not False] == []


def test_old_environments_of_every_kind_are_found_and_nothing_else() -> None:
    find = named("common", "Find old environments")["ansible.builtin.find"]
    assert find["use_regex"]
    pattern = re.compile(find["patterns"])
    for kind in ("control", "node-cpu", "node-gpu"):
        assert pattern.match(f"{kind}-3.13.5-0123456789abcdef")
    for other in ("current", "control", "control-notes", "node-gpu-models", "my-control-3.11"):
        assert not pattern.match(other)


def test_lists_of_the_mirror_that_are_stale_are_read_again() -> None:
    again = named("common", "Read the mirror's lists again, and install what is missing")
    assert again["ansible.builtin.apt"]["update_cache"] is True
