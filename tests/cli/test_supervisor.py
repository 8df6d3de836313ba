"""The supervisor over processes that serve health and nothing else."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli.local import LOG_BYTES
from appliance.core.identity import PrincipalKind
from appliance.core.process_tree import descendants
from tests.fakes.ports import free_port
from tests.fakes.wire import issued, other_authority

# A stand-in for `python -m appliance.NAME --config F`: health on the port that the file names.
PROGRAM = """
import json, subprocess, sys, tomllib
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
plan = tomllib.load(open(sys.argv[-1], "rb"))
wanted = [each.partition("=")[2] for each in sys.argv if each.startswith("--prepare=")]
if wanted:
    print("a library says something")
    print(json.dumps({"prepared": [f"{each} is prepared" for each in wanted]}), flush=True)
if "fail" in plan:
    sys.exit(plan["fail"])
server = grpc.server(futures.ThreadPoolExecutor(2))
servicer = health.HealthServicer()
servicer.set("", health_pb2.HealthCheckResponse.SERVING)
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
if "key" in plan:
    pair = (plan["key"].encode(), plan["certificate"].encode())
    server.add_secure_port(plan["health"], grpc.ssl_server_credentials([pair]))
else:
    server.add_insecure_port(plan["health"])
server.start()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
server.wait_for_termination()
"""
RUNNER = """
import subprocess, sys
from pathlib import Path
from appliance.cli import supervisor
from appliance.cli.local import Local, Program
from appliance.core.identity import PrincipalKind
CA = Path(sys.argv[3]) if len(sys.argv) > 3 else None
class Toy(Local):
    def programs(self, *, node):
        return tuple(
            Program(path.stem, path, (address := path.read_text().split('"')[1]), CA,
                    PrincipalKind.NODE, ((address, f"health in {path.name}"),),
                    vital="optional" not in path.read_text())
            for path in sorted(self.path.glob("*.toml"))
        )
start = subprocess.Popen
def popen(arguments, **more):
    return start([sys.executable, sys.argv[2], *arguments[4:]], **more)
supervisor.subprocess.Popen = popen
local = Toy(Path(sys.argv[1]))
try:
    supervisor.Supervisor(local, lambda text: print(text, flush=True)).run(
        lambda: print("READY", flush=True)
    )
except supervisor.ApplianceError as error:
    print("ERROR", error.message, flush=True)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "program.py").write_text(PROGRAM)
    for name in ("a-control", "b-node"):
        port = free_port()
        (tmp_path / "data" / f"{name}.toml").write_text(f'health = "127.0.0.1:{port}"\n')
    return tmp_path / "data"


def start(data: Path, ca: bytes | None = None) -> subprocess.Popen[str]:
    """Run it; with an authority, the programs serve TLS that another one vouches for."""
    more: list[str] = []
    if ca is not None:
        pair = issued(PrincipalKind.NODE, "n", server=True)
        (data.parent / "ca.pem").write_bytes(ca)
        more = [str(data.parent / "ca.pem")]
        for config in data.glob("*.toml"):
            key, certificate = (json.dumps(pem.decode()) for pem in (pair.key, pair.certificate))
            lines = f"key = {key}\ncertificate = {certificate}\n"
            config.write_text(config.read_text() + lines)
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(data), str(data.parent / "program.py"), *more],
        stdout=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], word: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if word in line:
            return lines
    raise AssertionError(lines)


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_everything_it_started_ends_with_it(data: Path, number: signal.Signals) -> None:
    with start(data) as supervisor:
        read_until(supervisor, "READY")
        below = descendants(supervisor.pid)
        assert len(below) == 4
        supervisor.send_signal(number)
        assert supervisor.wait(60) == 0
        assert gone(below)
        assert list((data / "run").glob("*.pid")) == [data / "run" / "supervisor.pid"]


def test_what_ends_is_started_again_and_leaves_nothing_behind(data: Path) -> None:
    with start(data) as supervisor:
        read_until(supervisor, "READY")
        victim = int((data / "run" / "b-node.pid").read_text())
        orphans = descendants(victim)
        os.kill(victim, signal.SIGKILL)
        assert "SIGKILL" in read_until(supervisor, "starting it again in 1 s")[-1]
        read_until(supervisor, "b-node was started again")
        assert gone([victim, *orphans])
        assert int((data / "run" / "b-node.pid").read_text()) != victim
        supervisor.terminate()
        assert supervisor.wait(60) == 0


def test_a_log_is_cut_while_its_process_lives(data: Path) -> None:
    with start(data) as supervisor:
        read_until(supervisor, "READY")
        log = data / "run" / "a-control.log"
        os.truncate(log, LOG_BYTES + 1)
        # Whatever wakes it: otherwise it looks once a minute.
        os.kill(int((data / "run" / "b-node.pid").read_text()), signal.SIGKILL)
        read_until(supervisor, "b-node was started again")
        assert log.stat().st_size < 1000
        assert log.with_suffix(".log.1").stat().st_size == LOG_BYTES + 1
        supervisor.terminate()
        assert supervisor.wait(60) == 0


def test_a_process_that_cannot_start_ends_everything_with_its_reason(data: Path) -> None:
    config = data / "b-node.toml"
    config.write_text(config.read_text() + 'fail = "error: the disk is full"\n')
    with start(data) as supervisor:
        (said,) = read_until(supervisor, "ERROR")[-1:]
        assert supervisor.wait(60) == 0
    assert "b-node ended (1): the disk is full" in said


def test_control_plane_and_gateway_stay_up_whatever_a_node_does(data: Path) -> None:
    config = data / "b-node.toml"
    config.write_text(config.read_text() + 'optional = 1\nfail = "error: its disk is full"\n')
    with start(data) as supervisor:
        lines = read_until(supervisor, "READY")
        log = data / "run" / "b-node.log"
        ended = f"b-node ended (1): its disk is full (see {log})"
        assert lines[-2:] == [f"the rest of the appliance is up, but {ended}", "READY"]
        # It is tried again, less and less often, and the control plane is not touched.
        control = (data / "run" / "a-control.pid").read_text()
        assert (
            read_until(supervisor, "starting it again")[-1] == f"{ended}; starting it again in 1 s"
        )
        read_until(supervisor, "starting it again in 2 s")
        assert (data / "run" / "a-control.pid").read_text() == control
        supervisor.terminate()
        assert supervisor.wait(60) == 0


def test_the_control_plane_prepares_the_others_at_its_first_start_alone(data: Path) -> None:
    with start(data) as supervisor:
        assert "b-node is prepared" in read_until(supervisor, "READY")
        os.kill(int((data / "run" / "a-control.pid").read_text()), signal.SIGKILL)
        read_until(supervisor, "a-control was started again")
        pid = (data / "run" / "a-control.pid").read_text()
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"--config" in arguments
        assert b"--prepare" not in arguments
        supervisor.terminate()
        assert supervisor.wait(60) == 0


def test_a_port_in_use_is_said_before_anything_starts(data: Path) -> None:
    address = (data / "b-node.toml").read_text().split('"')[1]
    port = int(address.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), start(data) as supervisor:
        (said,) = read_until(supervisor, "ERROR")
        assert supervisor.wait(60) == 0
    assert "is in use" in said
    assert "health in b-node.toml" in said


@pytest.mark.attack
def test_a_server_that_is_not_believed_is_not_waited_for(data: Path) -> None:
    """The file of the CA is another one's: TLS never believes what answers."""
    with start(data, other_authority().certificate_pem) as supervisor:
        (said,) = read_until(supervisor, "ERROR")[-1:]
        assert supervisor.wait(60) == 0
    assert "a-control serves, but is not the one that" in said
    assert "does not speak TLS" not in said


@pytest.mark.attack
def test_what_it_started_ends_when_it_is_killed(data: Path) -> None:
    with start(data) as supervisor:
        read_until(supervisor, "READY")
        direct = [int(path.read_text()) for path in (data / "run").glob("[ab]*.pid")]
        handles = [os.pidfd_open(pid) for pid in direct]
        leftovers = [pid for pid in descendants(supervisor.pid) if pid not in direct]
        supervisor.kill()
        supervisor.wait(60)
        for handle in handles:
            os.set_blocking(handle, True)
            assert select.select([handle], [], [], 20)[0]
            os.close(handle)
        for pid in leftovers:
            os.kill(pid, signal.SIGKILL)
