"""Real parts at their seams: control plane, gateway, two nodes, an endpoint with a replica on each.

The second node is in a network of its own, so that it can be cut off from the control plane and not
from the other node. Every process of the appliance's own server looks whether the object store is
in trouble (`bench/hung_store/hang.c`) and what the time is (`tests/fakes/moved_clock.py`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.client.connection import Connection
from appliance.client.inference import AsyncInference
from appliance.client.methods import find
from appliance.client.pages import all_pages
from appliance.client.profiles import Profiles
from appliance.core.errors import ApplianceError, Unavailable
from tests.fakes import moved_clock
from tests.fakes.disk import small_disk
from tests.journeys import network, running, weights
from tests.journeys.network import Network
from tests.journeys.running import PROJECT, Appliance, code_of, free_ports, texts, wait_for

DEVICES = 2
SHAPE = (
    *("--dataset=tokens/1", "--layers=2", "--hidden-size=128", "--intermediate-size=256"),
    *("--attention-heads=4", "--key-value-heads=2", "--context-length=512"),
    *("--batch-size=4", "--sequence-length=16", "--seed=7"),
)
INTERVAL = 50
"""Steps between checkpoints."""
STEPS = 200
PARENT = f"projects/{PROJECT}"
ENDPOINT = f"{PARENT}/endpoints/chat"
AT_WORK = frozenset({"QUEUED", "STARTING", "RUNNING", "PAUSED", "REGISTERING"})
DISK_MEBIBYTES = 2048
READS = "\n[callers]\nreads_per_second = 100.0\nread_burst = 6000\n"
"""Tests ask more often than people; all other settings are what they are by default."""
MEMORY = f"memory_bytes = {27 << 27}\n"
"""Of the first node: one replica has room there, and a rank beside it, but no second replica."""
_LIBRARY = Path(__file__).parents[2] / "bench" / "hung_store" / "hang.c"


@dataclass
class Two:
    """An appliance with a second node, an endpoint with a replica on each, and an application."""

    appliance: Appliance
    network: Network
    agent: subprocess.Popen[bytes] = field(repr=False)
    last_code: str = field(default="", repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        return tomllib.loads((self.appliance.data / "control.toml").read_text())

    @property
    def token(self) -> Path:
        """Of the application."""
        return self.appliance.home / "app.token"

    @property
    def trouble(self) -> Path:
        """While it is there, the object store is in the trouble that it says."""
        return self.appliance.home / "trouble"

    @property
    def clock(self) -> Path:
        """By how much the clock of the appliance's server is wrong."""
        return self.appliance.home / "clock"

    def ports(self) -> list[int]:
        """Those of the control plane."""
        listen = self.settings["listen"]
        return [int(listen[name].rpartition(":")[2]) for name in ("api", "machines")]

    def client(self, token: Path | None = None) -> AsyncInference:
        """The application's."""
        ca_pem = (self.appliance.data / "ca.pem").read_bytes()
        address = self.settings["gateway"]["grpc"]
        return AsyncInference(address, ca_pem, (token or self.token).read_text().strip())

    def call(self, rpc: str, *, rows: str = "", **fields: Any) -> Any:
        """One call as alice, or all rows of a list; each on a connection of its own."""
        method, profiles = find(rpc), Profiles(self.appliance.home / "alice/config/appliance")
        profile = profiles.get()
        connection = Connection(
            self.appliance.server, profile.ca_pem.encode(), profiles.token(profile)
        )
        request = method.request(**fields)
        with connection:
            call = getattr(connection.stub(method.stub), method.short)
            if rows:
                return list(all_pages(connection, call, request, rows))
            return connection.call(call, request, timeout=10)

    def answers(self) -> bool:
        """Whether the control plane does."""
        try:
            self.call("SystemService.GetSystem")
        except Unavailable:
            return False
        return True

    def ask(self, token: Path | None = None) -> str:
        """Ask for three tokens; the reason and the sentence of a refusal."""

        async def once() -> str:
            async with self.client(token) as client:
                asked = client.generate(ENDPOINT, prompt="Once", max_tokens=3, timeout=20)
                try:
                    async for _ in asked:
                        pass
                except ApplianceError as error:
                    return f"{error.reason}: {error.message}"
            return ""

        return asyncio.run(once())

    def new_token(self, name: str) -> tuple[Path, str]:
        """Another token of the application; its file and its id."""
        path, alice = self.appliance.home / f"{name}.token", self.appliance.alice
        before = {held["id"] for held in alice.json("service-account", "list-tokens")}
        alice.run("service-account", "create-token", "app", "--out", str(path))
        (made,) = {held["id"] for held in alice.json("service-account", "list-tokens")} - before
        wait_for(lambda: not self.ask(path), "the token to work", 20)
        return path, made

    @contextmanager
    def configured(self, process: str, before: str = "", after: str = "") -> Iterator[None]:
        """Start a process of the appliance's own server with other settings; then as before."""
        folder = self.appliance.data if process == "control" else self.appliance.data / process
        path = folder / f"{process}.toml"
        text = path.read_text()
        try:
            for settings in (before + text + after, text):
                path.write_text(settings)
                self.restart(process, signal.SIGTERM)
                if settings != text:
                    yield
        finally:
            path.write_text(text)

    def restart(self, process: str, number: int) -> None:
        """End a process of the appliance's own server by a signal; wait for the next one."""
        before = self.appliance.process_id(process)
        os.kill(before, number)
        self.wait_for_another(process, before)

    def wait_for_another(self, process: str, before: int) -> None:
        """Wait until a process of the appliance's own server is another one, and serves."""

        def is_another() -> bool:
            try:
                return self.appliance.process_id(process) != before
            except (OSError, ValueError):  # It is being written.
                return False

        wait_for(is_another, f"another {process}")
        if process == "control":
            wait_for(self.answers, "the control plane to answer")

    def log_in(self) -> None:
        """Prove the second factor anew, as what is dangerous asks for."""
        # Each code works once.
        code = wait_for(self._next_code, "another code", 40)
        given = f"{self.appliance.password}\n{code}\n"
        options = ("--password-file", "-", "--code-file", "-")
        self.appliance.alice.run("login", *options, stdin=given)

    def _next_code(self) -> str:
        code = code_of(self.appliance.secret, time.time())
        if code == self.last_code:
            return ""
        self.last_code = code
        return code

    def view_age(self) -> float:
        """Seconds since the gateway has heard the control plane, as it says itself."""
        settings = tomllib.loads((self.appliance.data / "gateway/gateway.toml").read_text())
        with urllib.request.urlopen(f"http://{settings['metrics']}/metrics") as answer:
            for line in answer.read().decode().splitlines():
                name, _, value = line.partition(" ")
                if name == "appliance_gateway_view_age_seconds":
                    return float(value)
        raise AssertionError("the gateway does not say how old its view is")

    def job(self, name: str) -> Any:
        return self.call("JobService.GetJob", name=f"{PARENT}/jobs/{name}")

    def state(self, name: str) -> str:
        """Of a job; empty while nobody can say it."""
        try:
            job = self.job(name)
        except Unavailable:
            return ""
        return str(type(job).State.Name(job.state)).removeprefix("STATE_")

    def wait_until(self, name: str, *states: str, timeout: float = 120) -> None:
        """Wait for one of these states of a job, while it has not ended otherwise."""

        def is_there() -> bool:
            found = self.state(name)
            assert found in {"", *AT_WORK, *states}, self.job(name)
            return found in states

        wait_for(is_there, f"{name} to be {' or '.join(states)}", timeout)

    def past(self, name: str, step: int, timeout: float = 120) -> None:
        """Wait until a job runs and is past a step."""

        def is_past() -> bool:
            found = self.state(name)
            assert found in {"", "QUEUED", "STARTING", "RUNNING"}, self.job(name)
            return bool(found) and int(self.job(name).progress.step) > step

        wait_for(is_past, f"step {step} of {name}", timeout)

    def train(self, name: str, options: Sequence[str] = ("--data=2",), steps: int = STEPS) -> str:
        """Submit a training; its uid."""
        made = self.appliance.alice.json(
            *("job", "train", name, "--output-model", name, f"--steps={steps}", *SHAPE),
            *(f"--checkpoint-interval={INTERVAL}", *options),
        )
        return str(made["uid"])

    def outcome(self, name: str) -> Outcome:
        """What a training that succeeded has made."""
        parent = f"{PARENT}/jobs/{name}"
        found = self.call("JobService.ListJobMetrics", rows="metrics", name=parent)
        losses = {int(row.step): float(row.values["loss"]) for row in found}
        return Outcome(losses, weights.digests(self.appliance, name))

    def replicas(self) -> list[Any]:
        return list(self.call("EndpointService.GetEndpoint", name=ENDPOINT).replica_status)

    def restarts(self) -> int:
        """How often replicas of the endpoint were started again."""
        return sum(int(replica.restarts) for replica in self.replicas())

    def settle(self) -> None:
        """Wait until both nodes and both replicas are there, as before everything.

        What a test that failed has left at work is cancelled.
        """
        for job in self.call("JobService.ListJobs", rows="jobs", parent=PARENT):
            if type(job).State.Name(job.state).removeprefix("STATE_") in AT_WORK:
                self.appliance.alice.run("job", "cancel", job.name.rpartition("/")[2])

        def is_settled() -> bool:
            try:
                nodes = self.call("NodeService.ListNodes", rows="nodes")
                ready = [replica for replica in self.replicas() if replica.address]
            except Unavailable:
                return False
            return len(ready) == 2 and all(node.state == node.STATE_READY for node in nodes)

        wait_for(is_settled, "two nodes and two replicas", 180)

    def recorded(self, text: str) -> int:
        """How often something is in the audit log."""
        segments = sorted((self.appliance.data / "audit").glob("*.log"))
        return sum(path.read_bytes().count(text.encode()) for path in segments)

    def start_agent(self) -> None:
        """Start the second node's agent again, as its unit would."""
        self.agent = _start_agent(self.network, self.appliance.home / "second")


@dataclass(frozen=True)
class Outcome:
    """The losses of a training by step, and digests of its model's files in the clear."""

    losses: dict[int, float]
    files: dict[str, str]


@contextmanager
def two_nodes(home: Path) -> Iterator[Two]:
    """All of it, from its making to its end."""
    with network.joined() as made, ExitStack() as stack:
        around = _surroundings(home)
        options = ("--devices", str(DEVICES), "--listen", made.here)

        def prepare(data: Path) -> None:
            for path, more in ((data / "control.toml", READS), (data / "node/node.toml", MEMORY)):
                with path.open("a") as settings:
                    settings.write(more)
            stack.enter_context(_on_a_disk_of_its_own(data / "objects"))

        with running.running(home, around, *options, prepare=prepare) as appliance:
            agent = _second_node(appliance, made)
            two = Two(appliance, made, agent)
            try:
                _serve(two)
                yield two
            finally:
                two.agent.send_signal(signal.SIGCONT)
                two.agent.send_signal(signal.SIGTERM)
                two.agent.wait(30)


@contextmanager
def _on_a_disk_of_its_own(objects: Path) -> Iterator[None]:
    """Move an object store onto a disk that can be filled."""
    aside = objects.rename(objects.with_name("aside"))
    with small_disk(objects, DISK_MEBIBYTES):
        shutil.copytree(aside, objects, dirs_exist_ok=True)
        yield


def _surroundings(home: Path) -> dict[str, str]:
    library, clock = home / "hang.so", moved_clock.build(home)
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(_LIBRARY), "-ldl"]
    subprocess.run(command, check=True)
    return {
        **moved_clock.settable(clock, home / "clock"),
        "LD_PRELOAD": f"{library}:{clock}",
        "HANG_FLAG": str(home / "trouble"),
        "HANG_BELOW": str(home / "data" / "objects"),
        # Where the next version of the product is put, if it is.
        "PYTHONPATH": str(home / "next"),
    }


def _second_node(appliance: Appliance, at: Network) -> subprocess.Popen[bytes]:
    """Another agent, as a server of its own would run it."""
    folder, alice = appliance.home / "second", appliance.alice
    folder.mkdir(mode=0o700)
    made = alice.json("node", "create-join-token", "second", "--out", str(folder / "join.token"))
    (folder / "ca.pem").write_bytes((appliance.data / "ca.pem").read_bytes())
    port = free_ports(2)
    control = tomllib.loads((appliance.data / "control.toml").read_text())
    (folder / "node.toml").write_text(
        f'objects = "file://{appliance.objects}"\n'
        f'join_token = "join.token"\nstate = "state"\naddress = "{at.there}"\n'
        f'health = "127.0.0.1:{port}"\nmetrics = "127.0.0.1:{port + 1}"\n'
        f'[control]\nca = "ca.pem"\nca_fingerprint = "{made["ca_fingerprint"]}"\n'
        f'join = "{appliance.server}"\nmachines = "{control["listen"]["machines"]}"\n'
        f'[devices]\nkind = "cpu"\ncount = {DEVICES}\n'
    )
    return _start_agent(at, folder)


def _start_agent(at: Network, folder: Path) -> subprocess.Popen[bytes]:
    program = (sys.executable, "-m", "appliance.node", "--config", str(folder / "node.toml"))
    with (folder / "agent.log").open("ab") as log:
        return subprocess.Popen(at.inside(*program), stdout=log, stderr=log)


def _serve(two: Two) -> None:
    """A model of a few steps, served by a replica on each node."""
    appliance, alice = two.appliance, two.appliance.alice

    def nodes() -> bool:
        found = two.call("NodeService.ListNodes", rows="nodes")
        return sum(node.state == node.STATE_READY for node in found) == 2

    wait_for(nodes, "two nodes")
    alice.run("dataset", "create", "docs")
    alice.run("dataset", "upload", "docs", str(texts(appliance.home / "texts")))
    alice.run(
        *("job", "prepare", "prepare", "--dataset", "docs/1", "--output-dataset", "tokens"),
        *("--output-tokenizer", "bpe", "--vocabulary-size", "512", "--wait"),
    )
    alice.run("job", "train", "tiny", "--output-model", "tiny", "--steps=3", *SHAPE, "--wait")
    alice.run(
        *("endpoint", "create", "chat", "--model", "tiny/1", "--replicas", "2"),
        *("--cache-bytes", str(1 << 28), "--wait", "--timeout", "300s"),
    )
    assert {replica.node for replica in two.replicas()} == {"nodes/node-1", "nodes/second"}
    alice.run("service-account", "create", "app")
    alice.run(
        *("binding", "create", "--principal", f"serviceAccounts/{PROJECT}--app"),
        *("--role", "inference", "--project", PROJECT),
    )
    alice.run("service-account", "create-token", "app", "--out", str(two.token))
