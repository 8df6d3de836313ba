"""What is flooded: a real control plane and a real gateway, as processes, and one known caller.

No node and no engine: a well-behaved caller asks the control plane who it is and the gateway which
models it may ask, which takes every step of a call but the answer.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyotp

from appliance.api.access.v1 import service_account_service_pb2 as accounts
from appliance.api.access.v1 import service_account_service_pb2_grpc as accounts_grpc
from appliance.api.auth.v1 import auth_service_pb2 as auth
from appliance.api.auth.v1 import auth_service_pb2_grpc as auth_grpc
from appliance.api.projects.v1 import project_service_pb2 as projects
from appliance.api.projects.v1 import project_service_pb2_grpc as projects_grpc
from appliance.client.connection import Connection
from appliance.control.bootstrap import setup
from appliance.core.errors import ApplianceError
from appliance.core.site import PORTS, Site
from appliance.crypto.tokens import Parsed, TokenKind, text_of
from bench.flood.flooder import Target

ADMINISTRATOR = "alice"
PROJECT = "flood"
START_SECONDS = 60.0
HELD = ("tasks", "threads", "descriptors", "resident_bytes")
T = TypeVar("T")


@dataclass
class Stage:
    """Everything that runs, and who may call it.

    Attributes:
        surroundings: more environment variables of the control plane.
        password: of the administrator.
        session: bearer token of the administrator; `token`: of an application.
        callers: principals of these two.
    """

    data: Path
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]]
    surroundings: dict[str, str] = field(default_factory=dict)
    password: str = field(repr=False, default="")
    session: str = field(repr=False, default="")
    token: str = field(repr=False, default="")
    callers: frozenset[str] = frozenset()
    _read: dict[Path, int] = field(default_factory=dict)

    @property
    def ca(self) -> bytes:
        """The authority of the appliance, PEM."""
        return (self.data / "ca.pem").read_bytes()

    def target(self, name: str) -> Target:
        """A listener, as a stranger sees it."""
        tokens = tuple(_invented() for _ in range(50))
        inference = "/appliance.api.inference.v1.InferenceService/Generate"
        login = "/appliance.api.auth.v1.AuthService/Login"
        who = "/appliance.api.auth.v1.AuthService/WhoAmI"
        if name == "control":
            return Target(name, self.ports["api"], login, who, tokens)
        if name == "gateway":
            return Target(name, self.ports["gateway"], inference, inference, tokens)
        return Target(name, self.ports["openai"], tokens=tokens)

    def process_of(self, listener: str) -> str:
        """Name of the process that has a listener."""
        return "control" if listener == "control" else "gateway"

    def held(self, process: str) -> dict[str, int]:
        """What a process holds now, by its own metrics."""
        port = self.ports["metrics" if process == "control" else "gateway-metrics"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        return {
            name: int(float(_found(rf"^appliance_process_{name} (\S+)$", text))) for name in HELD
        }

    def cpu_seconds(self, process: str) -> float:
        """User and system time that a process has taken (proc_pid_stat(5), fields 14 and 15)."""
        stat = Path(f"/proc/{self.processes[process].pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def strangers_records(self) -> int:
        """Audit records since the last question that are of nobody we know."""
        count = 0
        for path in sorted((self.data / "audit").glob("*.log")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole = file.read().rpartition(b"\n")[0]
            self._read[path] = self._read.get(path, 0) + len(whole) + bool(whole)
            for line in whole.splitlines():
                record = json.loads(line)
                count += record["principal"] not in self.callers
        return count

    def log_bytes(self) -> int:
        """Size of what the processes have written to their logs."""
        return sum(path.stat().st_size for path in self.data.glob("run/*.log"))


def _invented() -> str:
    secret = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(52))
    return text_of(Parsed(TokenKind.SERVICE, secrets.token_hex(8), secret))


@contextlib.contextmanager
def stage(
    folder: Path,
    surroundings: dict[str, str] | None = None,
    settings: str = "",
    roles: Path | None = None,
) -> Iterator[Stage]:
    """Make an appliance, start its control plane and its gateway, log in; end both afterwards.

    Args:
        folder: of its data directory.
        surroundings: more environment variables of the control plane.
        settings: more lines of `control.toml`.
        roles: file with roles of the site's own.
    """
    ports = {name: _free_port() for name in PORTS}
    password = secrets.token_urlsafe(18)
    data = folder / "data"
    setup.init(setup.InitPlan(data, ADMINISTRATOR, Site(ports=ports)), password)
    made = Stage(data, ports, {}, surroundings or {}, password)
    with contextlib.ExitStack() as stack:
        # The caller is timed 30 times a second for minutes: more than one may ask by default.
        config = data / "control.toml"
        own = f'roles = "{roles}"\n' if roles else ""
        callers = f"\n[callers]\nreads_per_second = 100.0\n{settings}"
        config.write_text(own + config.read_text() + callers)
        _start(made, stack, "control", config)
        _enter(made, password)
        _start(made, stack, "gateway", data / "gateway" / "gateway.toml")
        # It has its view a moment after it listens.
        _patiently(functools.partial(_models, made), OSError, made.processes["gateway"])
        yield made


def _models(made: Stage) -> None:
    url = f"https://localhost:{made.ports['openai']}/v1/models"
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {made.token}"})
    trust = ssl.create_default_context(cadata=made.ca.decode())
    with urllib.request.urlopen(request, timeout=5, context=trust) as answer:
        answer.read()


def _start(made: Stage, stack: contextlib.ExitStack, name: str, config: Path) -> None:
    log = stack.enter_context((made.data / "run" / f"{name}.log").open("wb"))
    command = [sys.executable, "-m", f"appliance.{name}", "--config", str(config)]
    more = made.surroundings if name == "control" else {}
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **more})
    stack.callback(_end, process)
    made.processes[name] = process
    _patiently(lambda: made.held(name), OSError, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _found(pattern: str, text: str) -> str:
    """The group of the first line that a pattern finds."""
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, pattern
    return match[1]


def _patiently(
    work: Callable[[], T], error: type[Exception], process: subprocess.Popen[bytes]
) -> T:
    """What `work` returns as soon as it does not raise `error`."""
    limit = time.monotonic() + START_SECONDS
    while True:
        try:
            return work()
        except error as reason:
            if time.monotonic() > limit or process.poll() is not None:
                raise SystemExit(f"the appliance does not start: {reason}") from reason
            time.sleep(0.2)


def _enter(made: Stage, password: str) -> None:
    """Log in for the first time, and make an application with a token."""
    address = f"127.0.0.1:{made.ports['api']}"
    with Connection(address, made.ca) as connection:
        stub = connection.stub(auth_grpc.AuthServiceStub)

        def log_in() -> Any:  # noqa: ANN401 - a generated message
            request = auth.LoginRequest(user=ADMINISTRATOR, password=password)
            return connection.call(stub.Login, request)

        token = _patiently(log_in, ApplianceError, made.processes["control"]).token
        enrolment = connection.call(stub.EnrollTotp, auth.EnrollTotpRequest(token=token))
        enrolled = pyotp.parse_uri(enrolment.provisioning_uri)
        assert isinstance(enrolled, pyotp.TOTP)
        code = enrolled.now()
        proof = auth.VerifyTotpRequest(token=token, code=code)
        made.session = connection.call(stub.VerifyTotp, proof).token
    with Connection(address, made.ca, made.session) as connection:
        project = projects.CreateProjectRequest(project_id=PROJECT, request_id=_id())
        connection.call(connection.stub(projects_grpc.ProjectServiceStub).CreateProject, project)
        service = connection.stub(accounts_grpc.ServiceAccountServiceStub)
        account = connection.call(
            service.CreateServiceAccount,
            accounts.CreateServiceAccountRequest(
                parent=f"projects/{PROJECT}", service_account_id="app", request_id=_id()
            ),
        )
        request = accounts.CreateTokenRequest(name=account.name)
        made.token = connection.call(service.CreateToken, request).token
    made.callers = frozenset({f"users/{ADMINISTRATOR}", account.name})


def _id() -> str:
    return str(uuid.uuid4())


def _free_port() -> int:
    # Below what the kernel hands to clients: a free one stays free.
    for _ in range(1000):
        port = 20_000 + secrets.randbelow(9_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SystemExit("no port is free")
