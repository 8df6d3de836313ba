"""Two nodes, an endpoint on both, a job over both, sixteen streams: what may go away goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from appliance.client.inference import AsyncInference
from appliance.core.errors import ApplianceError
from tests.journeys import running
from tests.journeys.running import PROJECT, Appliance, free_ports, texts, wait_for

pytestmark = [pytest.mark.timeout(900), pytest.mark.long]

DEVICES = 2
STREAMS = 16
HUNG_SECONDS = 45.0
"""Four times what ended work in 0.1.0, and each time-out that a silent control plane meets."""
SHAPE = (
    *("--dataset=tokens/1", "--layers=2", "--hidden-size=128", "--intermediate-size=256"),
    *("--attention-heads=4", "--key-value-heads=2", "--context-length=512"),
    *("--batch-size=4", "--sequence-length=16", "--seed=7"),
)
STEPS = 1500
ENDPOINT = f"projects/{PROJECT}/endpoints/chat"


@dataclass
class Two:
    """An appliance with a second node, an endpoint with a replica on each, and an application."""

    appliance: Appliance
    token: Path
    agent: subprocess.Popen[bytes] = field(repr=False)

    def client(self) -> AsyncInference:
        address = _settings(self.appliance)["gateway"]["grpc"]
        ca_pem = (self.appliance.data / "ca.pem").read_bytes()
        return AsyncInference(address, ca_pem, self.token.read_text().strip())

    def job(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.appliance.alice.json("job", "get", name, echo=False)
        return found

    def losses(self, name: str) -> dict[int, float]:
        rows = self.appliance.alice.json("job", "metrics", name, echo=False)
        return {int(row["step"]): row["values"]["loss"] for row in rows}

    def restarts(self) -> list[int]:
        endpoint = self.appliance.alice.json("endpoint", "get", "chat", echo=False)
        return [int(replica["restarts"]) for replica in endpoint["replica_status"]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    home = tmp_path_factory.mktemp("two")
    with running.running(home, None, "--devices", str(DEVICES)) as appliance:
        agent = _second_node(appliance)
        try:
            yield _served(appliance, agent)
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(30)


def _settings(appliance: Appliance) -> dict[str, Any]:
    return tomllib.loads((appliance.data / "control.toml").read_text())


def _second_node(appliance: Appliance) -> subprocess.Popen[bytes]:
    """Another agent of this machine, as a server of its own would run it."""
    folder, alice = appliance.home / "second", appliance.alice
    folder.mkdir(mode=0o700)
    made = alice.json("node", "create-join-token", "second", "--out", str(folder / "join.token"))
    (folder / "ca.pem").write_bytes((appliance.data / "ca.pem").read_bytes())
    port = free_ports(2)
    machines = _settings(appliance)["listen"]["machines"]
    (folder / "node.toml").write_text(
        f'objects = "file://{appliance.objects}"\n'
        'join_token = "join.token"\nstate = "state"\n'
        f'health = "127.0.0.1:{port}"\nmetrics = "127.0.0.1:{port + 1}"\n'
        f'[control]\nca = "ca.pem"\nca_fingerprint = "{made["ca_fingerprint"]}"\n'
        f'join = "{appliance.server}"\nmachines = "{machines}"\n'
        f'[devices]\nkind = "cpu"\ncount = {DEVICES}\n'
    )
    with (folder / "agent.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "appliance.node", "--config", str(folder / "node.toml")],
            stdout=log,
            stderr=log,
        )


def _served(appliance: Appliance, agent: subprocess.Popen[bytes]) -> Two:
    """A model of a few steps, served by a replica on each node."""
    alice, token = appliance.alice, appliance.home / "app.token"

    def nodes() -> bool:
        found = alice.json("node", "list", echo=False)
        return [node["state"] for node in found] == ["STATE_READY"] * 2

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
    endpoint = alice.json("endpoint", "get", "chat")
    places = {replica["node"] for replica in endpoint["replica_status"]}
    assert places == {"nodes/node-1", "nodes/second"}
    alice.run("service-account", "create", "app")
    alice.run(
        *("binding", "create", "--principal", f"serviceAccounts/{PROJECT}--app"),
        *("--role", "inference", "--project", PROJECT),
    )
    alice.run("service-account", "create-token", "app", "--out", str(token))
    return Two(appliance, token, agent)


@dataclass
class Streams:
    """Callers that ask one answer after the other, until they are told to stop."""

    two: Two
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    stopped: bool = False

    async def run(self, work: Callable[[], None]) -> None:
        """Ask while `work` runs in a thread; each caller has its last answer to its end."""
        async with self.two.client() as client:
            callers = [asyncio.create_task(self._ask(client)) for _ in range(STREAMS)]
            try:
                await asyncio.to_thread(work)
            finally:
                self.stopped = True
                await asyncio.gather(*callers)

    async def _ask(self, client: AsyncInference) -> None:
        while not self.stopped:
            try:
                tokens = 0
                pieces = client.generate(
                    ENDPOINT, prompt="Once", max_tokens=400, ignore_end=True, timeout=120
                )
                async for piece in pieces:
                    tokens += len(piece.token_ids)
                if tokens != 400:
                    self.failures.append(f"an answer has {tokens} tokens")
                self.answers += 1
            except ApplianceError as error:
                self.failures.append(f"{error.reason}: {error.message}")
                await asyncio.sleep(0.5)


def train(two: Two, name: str) -> dict[str, Any]:
    made: dict[str, Any] = two.appliance.alice.json(
        *("job", "train", name, "--output-model", name, f"--steps={STEPS}", *SHAPE),
        *("--data=2", "--checkpoint-interval=50"),
    )
    return made


def past(two: Two, name: str, step: int) -> None:
    def is_past() -> bool:
        found = two.job(name)
        assert found["state"] in {"STATE_QUEUED", "STATE_STARTING", "STATE_RUNNING"}, found
        return int((found.get("progress") or {}).get("step", 0)) > step

    wait_for(is_past, f"step {step} of {name}", 240)


@pytest.fixture(scope="module")
def calm(two: Two) -> dict[int, float]:
    """The losses of a run that nothing disturbs."""
    train(two, "calm")
    two.appliance.alice.run("job", "watch", "calm", "--timeout", "600s")
    return two.losses("calm")


def test_nobody_notices_that_the_control_plane_is_away(two: Two, calm: dict[int, float]) -> None:
    appliance, alice = two.appliance, two.appliance.alice
    train(two, "disturbed")
    past(two, "disturbed", 60)
    assert set(two.job("disturbed")["nodes"]) == {"nodes/node-1", "nodes/second"}

    def disturb() -> None:
        control = appliance.process_id("control")
        # It hangs, and is killed as it comes back.
        os.kill(control, signal.SIGSTOP)
        time.sleep(HUNG_SECONDS)
        os.kill(control, signal.SIGCONT)
        time.sleep(3)
        os.kill(control, signal.SIGKILL)
        wait_for(lambda: appliance.process_id("control") != control, "another control plane")
        time.sleep(10)

    streams = Streams(two)
    asyncio.run(streams.run(disturb))
    assert streams.failures == []
    assert streams.answers >= STREAMS
    alice.run("job", "watch", "disturbed", "--timeout", "600s")
    disturbed = two.job("disturbed")
    assert (disturbed["state"], disturbed["epoch"]) == ("STATE_SUCCEEDED", "1")
    assert two.restarts() == [0, 0]
    # Everything that was asked is in the audit log.
    wait_for(lambda: _recorded(two) >= streams.answers, "the records of the answers", 60)
    assert two.losses("disturbed") == calm


def _recorded(two: Two) -> int:
    """Answers in the audit log."""
    count = 0
    for path in sorted((two.appliance.data / "audit").glob("*.log")):
        count += path.read_bytes().count(b'"kind":"inference"')
    return count


def test_a_right_that_is_taken_away_stays_away_and_a_new_gateway_says_why_it_refuses(
    two: Two,
) -> None:
    appliance, alice = two.appliance, two.appliance.alice

    async def ask() -> str:
        async with two.client() as client:
            try:
                async for _ in client.generate(ENDPOINT, prompt="Once", max_tokens=3, timeout=20):
                    pass
            except ApplianceError as error:
                return f"{error.reason}: {error.message}"
        return ""

    assert asyncio.run(ask()) == ""
    (held,) = alice.json("service-account", "list-tokens")
    control, gateway = appliance.process_id("control"), appliance.process_id("gateway")
    # Taken away just before: the control plane has said so, and is gone.
    alice.run("service-account", "revoke-token", "app", held["id"])
    wait_for(lambda: asyncio.run(ask()).startswith("UNAUTHENTICATED"), "the gateway to know", 1)
    os.kill(control, signal.SIGSTOP)
    try:
        assert asyncio.run(ask()).startswith("UNAUTHENTICATED")
        time.sleep(15)
        assert asyncio.run(ask()).startswith("UNAUTHENTICATED")
        # One that starts now knows nobody, and says why.
        os.kill(gateway, signal.SIGKILL)
        wait_for(lambda: appliance.process_id("gateway") != gateway, "another gateway")
        said = wait_for(lambda: _answered(ask), "an answer of the new gateway", 60)
    finally:
        os.kill(control, signal.SIGCONT)
    assert said.startswith("UNAVAILABLE: "), said
    assert "control plane" in said
    wait_for(lambda: asyncio.run(ask()).startswith("UNAUTHENTICATED"), "the gateway to know", 60)


def _answered(ask: Any) -> str:
    """What a gateway says, once it listens."""
    said: str = asyncio.run(ask())
    return "" if "nothing listens" in said else said


def test_a_node_that_hangs_costs_its_work_nothing(two: Two, calm: dict[int, float]) -> None:
    alice = two.appliance.alice
    train(two, "waiting")
    past(two, "waiting", 60)
    os.kill(two.agent.pid, signal.SIGSTOP)
    try:
        time.sleep(20)
        reason = two.job("waiting")["state_reason"]
        assert "node second has not been heard of since" in reason
    finally:
        os.kill(two.agent.pid, signal.SIGCONT)
    alice.run("job", "watch", "waiting", "--timeout", "600s")
    found = two.job("waiting")
    assert (found["state"], found["epoch"]) == ("STATE_SUCCEEDED", "1")
    assert two.restarts() == [0, 0]
    assert two.losses("waiting") == calm
