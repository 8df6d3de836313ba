"""`init`: a whole data directory, or none."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.control.bootstrap.setup import InitPlan, init
from appliance.control.config import ControlConfig
from appliance.control.main import ControlPlane
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core import config
from appliance.core.data_directory import DataDirectory
from appliance.core.errors import Exhausted, FailedPrecondition, InvalidInput
from appliance.core.site import PORTS
from appliance.crypto.reading import (
    fingerprint,
)
from appliance.gateway.config import GatewayConfig
from appliance.node.config import NodeConfig
from tests.fakes.appliance import PASSWORD, MovingClock, settings_of

REPOSITORY = Path(__file__).parents[3]


def files_below(folder: Path) -> dict[str, str]:
    """Every path and its mode."""
    return {
        str(path.relative_to(folder)): oct(stat.S_IMODE(path.lstat().st_mode))
        for path in sorted(folder.rglob("*"))
    }


def command(
    *arguments: str, stdin: str = PASSWORD + "\n", largest_file: int | None = None
) -> object:
    program = [sys.executable, "-m", "appliance.control", *arguments]
    if largest_file is not None:
        # Not between fork and exec: a fork here may end in what other tests left of gRPC.
        limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file}, {largest_file}))"
        code = f"import os, resource, sys; {limit}; os.execv(sys.argv[1], sys.argv[1:])"
        program = [sys.executable, "-c", code, *program]
    return subprocess.run(
        program,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=False,
    )


def test_the_directory_holds_what_the_processes_need_and_keeps_it_to_its_owner(
    template: Path,
) -> None:
    assert files_below(template) == {
        "audit": "0o700",
        "audit/000000000000.log": "0o600",
        "audit/checkpoints": "0o600",
        "audit/reserve": "0o600",
        "ca.pem": "0o644",
        "control.toml": "0o600",
        "gateway": "0o700",
        "gateway/ca.pem": "0o644",
        "gateway/gateway.toml": "0o600",
        "gateway/state": "0o700",
        "gateway/state/identity.json": "0o600",
        "keyring.sealed": "0o600",
        "node": "0o700",
        "node/ca.pem": "0o644",
        "node/join.token": "0o600",
        "node/node.toml": "0o600",
        "objects": "0o700",
        "root.key": "0o600",
        "run": "0o700",
        "state.db": "0o600",
    }
    assert stat.S_IMODE(template.stat().st_mode) == 0o700


def test_the_configurations_are_what_the_processes_read(template: Path) -> None:
    control = config.load(ControlConfig, template / "control.toml")
    gateway = config.load(GatewayConfig, template / "gateway" / "gateway.toml")
    node = config.load(NodeConfig, template / "node" / "node.toml")
    assert gateway.cluster_id == control.cluster_id
    assert gateway.control == node.control.machines == control.listen.machines
    assert gateway.api == node.control.join == control.listen.api
    assert gateway.ca_fingerprint == node.control.ca_fingerprint
    assert gateway.listen.grpc == control.gateway.grpc
    assert control.gateway.openai == f"https://{gateway.listen.openai}/v1"
    assert node.objects == control.objects_url
    assert node.control.ca_fingerprint == fingerprint((template / "ca.pem").read_bytes())
    assert node.control.ca.read_bytes() == (template / "ca.pem").read_bytes()
    addresses = [*vars(control.listen).values(), node.health, node.metrics, gateway.metrics]
    assert len(set(addresses)) == len(addresses)


def test_the_first_administrator_is_there_and_no_secret_is_in_clear(template: Path) -> None:
    database = Database(template / "state.db")
    with database.read() as state:
        bindings = [
            (row.subject, row.role, row.domain) for row in state.all(tables.binding.select())
        ]
        users = [row.id for row in state.all(tables.user.select())]
    database.close()
    assert users == ["alice"]
    assert sorted(bindings) == [
        ("user:alice", "administrator", "*"),
        ("user:alice", "administrator", "/platform"),
    ]
    token = (template / "node" / "join.token").read_text().split("_")[3]
    clear = [
        path.name
        for path in template.rglob("*")
        if path.is_file()
        and path.name != "join.token"
        and any(secret.encode() in path.read_bytes() for secret in (PASSWORD, token))
    ]
    assert clear == []


def test_a_second_init_is_refused_and_changes_nothing(template: Path) -> None:
    before = {path: path.read_bytes() for path in template.rglob("*") if path.is_file()}
    answer = command("init", "--data-dir", str(template), "--admin", "eve", "--password-stdin")
    assert answer.returncode == 1
    assert answer.stderr == (
        f"error: {template} already holds an appliance, which was left as it is: start it with "
        "`appliance up`, or choose another data directory\n"
    )
    after = {path: path.read_bytes() for path in template.rglob("*") if path.is_file()}
    assert after == before


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(FailedPrecondition):
        init(InitPlan(tmp_path / "data", "alice"), PASSWORD)
    assert files_below(tmp_path).keys() == {"data", "data/thesis.txt"}


@pytest.mark.parametrize(
    ("administrator", "password", "field"),
    [("Alice", PASSWORD, "admin"), ("alice", "short", "password"), ("a", PASSWORD, "admin")],
)
def test_bad_input_makes_nothing(
    tmp_path: Path, administrator: str, password: str, field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        init(InitPlan(tmp_path / "data", administrator), password)
    assert list(refused.value.fields) == [field]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kilobytes", [1, 64, 200, 260])
def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path, kilobytes: int) -> None:
    """No file may grow further than this: keys, the database or its log fail to be written."""
    answer = command(
        "init",
        "--data-dir",
        str(tmp_path / "data"),
        "--admin",
        "alice",
        "--password-stdin",
        largest_file=kilobytes << 10,
    )
    assert answer.returncode == 1, answer.stderr
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("size", ["16k", "128k", "400k"])
def test_a_small_file_system_leaves_nothing_half_made(tmp_path: Path, size: str) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)], check=False
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        with pytest.raises(Exhausted) as refused:
            init(InitPlan(tmp_path / "data", "alice"), PASSWORD)
        assert "no space left" in refused.value.message
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    answer = command(
        *("init", "--data-dir", str(tmp_path / "new" / "data"), "--admin", "alice"),
        *("--password-stdin", "--port", "api=17443"),
    )
    assert answer.returncode == 0, answer.stderr
    made = json.loads(answer.stdout)
    data = DataDirectory(tmp_path / "new" / "data")
    loaded = config.load(ControlConfig, data.config)
    assert made == {
        "data": str(data.path),
        "cluster_id": loaded.cluster_id,
        "ca_fingerprint": fingerprint(data.authority.read_bytes()),
    }
    assert loaded.listen.api == "127.0.0.1:17443"


def test_a_wrong_port_option_is_one_sentence(tmp_path: Path) -> None:
    answer = command(
        *("init", "--data-dir", str(tmp_path / "data"), "--admin", "alice"),
        *("--password-stdin", "--port", "apy=1"),
    )
    assert answer.returncode == 1
    assert answer.stderr == (
        "error: --port apy=1: write NAME=NUMBER with one of api, gateway, gateway-metrics, "
        "machines, metrics, node-health, node-metrics, openai\n"
    )
    assert list(tmp_path.iterdir()) == []


async def test_a_port_in_use_is_one_sentence_and_nothing_stays_open(
    template: Path, copy: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = settings_of(copy)
        settings = type(settings)(
            **{**vars(settings), "listen": type(settings.listen)(api=f"127.0.0.1:{port}")}
        )
        for _ in range(2):
            with pytest.raises(FailedPrecondition) as refused:
                ControlPlane.build(settings, MovingClock())
            assert refused.value.message == (
                f"port {port} is in use: stop what listens on 127.0.0.1:{port}, or set "
                "listen.api to another port"
            )


def test_ports_have_names_for_every_process() -> None:
    assert len(set(PORTS.values())) == len(PORTS) == 8
