"""The process itself: it starts, answers, says what it does in JSON, and stops when told."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from appliance.core.errors import Unauthenticated
from appliance.wire.status import from_rpc_error
from appliance.wire.tls import sync_channel
from tests.fakes.appliance import PASSWORD

REPOSITORY = Path(__file__).parents[2]


# What the kernel says of the process at the moment when a command's work would begin.
CLOSED = """
import ctypes, resource, sys
from pathlib import Path
from appliance.control import __main__ as program
def look(*_):
    status = Path("/proc/self/status").read_text()
    print(
        ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        *resource.getrlimit(resource.RLIMIT_CORE),
        status.partition("NoNewPrivs:")[2].split()[0],
    )
    return 0
async def serve(*_):
    look()
program._init = program._join_token = program._who_joins = look
program._serve = serve
sys.exit(program.main(sys.argv[1:]))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "appliance.control", "--config", str(folder / "control.toml")],
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )


@pytest.fixture
def folder(copy: Path) -> Path:
    """A data directory that takes free ports."""
    path = copy / "control.toml"
    path.write_text(re.sub(r'"127\.0\.0\.1:74\d\d"', '"127.0.0.1:0"', path.read_text()))
    return copy


@pytest.fixture
def process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process, and what it said when it began to serve."""
    with start(folder) as started:
        try:
            yield started, json.loads(started.stderr.readline())
        finally:
            started.kill()


def test_it_serves_until_it_is_told_to_stop(
    folder: Path, process: tuple[subprocess.Popen[str], dict[str, Any]]
) -> None:
    running, said = process
    assert (said["message"], said["process"], said["level"]) == ("serving", "control", "INFO")
    address = f"127.0.0.1:{said['api_port']}"
    ca_pem = (folder / "ca.pem").read_bytes()
    with sync_channel(address, ca_pem, server_name="control.appliance") as channel:
        stub = auth_service_pb2_grpc.AuthServiceStub(channel)
        answer = stub.Login(
            auth_service_pb2.LoginRequest(user="alice", password=PASSWORD), timeout=20
        )
        with pytest.raises(grpc.RpcError) as refused:
            stub.WhoAmI(auth_service_pb2.WhoAmIRequest(), timeout=20)
    assert isinstance(from_rpc_error(refused.value), Unauthenticated)
    running.send_signal(signal.SIGTERM)
    rest = running.stderr.read()
    assert running.wait(20) == 0
    assert [secret for secret in (PASSWORD, answer.token.split("_")[3]) if secret in rest] == []
    for line in rest.splitlines():
        json.loads(line)


def test_a_second_one_says_what_to_do(
    folder: Path, process: tuple[subprocess.Popen[str], dict[str, Any]]
) -> None:
    del process
    with start(folder) as second:
        said = second.stderr.read()
    assert second.returncode == 1
    assert said == f"error: another control plane uses {folder}: stop it first\n"


def test_a_wrong_key_in_the_configuration_is_one_sentence(folder: Path) -> None:
    config = folder / "control.toml"
    config.write_text(config.read_text().replace("[listen]\napi", "[listen]\napy"))
    with start(folder) as started:
        said = started.stderr.read()
    assert started.returncode == 1
    assert said == f"error: {config}: listen.apy: is not a key; did you mean api?\n"


@pytest.mark.attack
@pytest.mark.parametrize(
    "command",
    [
        ("init", "--data-dir", "/nowhere", "--admin", "alice", "--password-stdin"),
        ("--config", "{config}"),
        ("--config", "{config}", "join-token", "--node", "n-2"),
        ("--config", "{config}", "who-joins"),
    ],
)
def test_nobody_looks_into_it_and_it_leaves_no_core(folder: Path, command: tuple[str, ...]) -> None:
    """Not dumpable, no core file, no new rights: before anything of the data directory is read."""
    typed = [part.format(config=folder / "control.toml") for part in command]
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, *typed],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 0 0 1\n", "")


@pytest.mark.attack
def test_the_process_that_serves_is_closed(
    process: tuple[subprocess.Popen[str], dict[str, Any]],
) -> None:
    about = Path(f"/proc/{process[0].pid}")
    limits = (about / "limits").read_text().splitlines()
    assert next(line for line in limits if "core file" in line).split()[4:6] == ["0", "0"]
    assert "NoNewPrivs:\t1" in (about / "status").read_text()
