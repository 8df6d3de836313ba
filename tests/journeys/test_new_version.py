"""A new version of a served model, and back, while somebody asks all the time."""

from __future__ import annotations

import os
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.client.inference import AsyncInference
from tests.journeys.running import PROJECT, Appliance, sentence, texts, wait_for
from tests.journeys.streams import flowing

pytestmark = [pytest.mark.timeout(900), pytest.mark.long, pytest.mark.engine]

SHAPE = (
    *("--dataset=tokens/1", "--layers=2", "--hidden-size=128", "--intermediate-size=64"),
    *("--attention-heads=2", "--key-value-heads=1", "--context-length=64", "--steps=3"),
    *("--batch-size=4", "--sequence-length=16"),
)
ENDPOINT = f"projects/{PROJECT}/endpoints/chat"
WAIT = ("--wait", "--timeout", "300s")


@pytest.fixture(scope="module")
def served(appliance: Appliance) -> Iterator[Appliance]:
    """Two versions of a model, an endpoint that serves the first, and an application."""
    alice = appliance.alice
    alice.run("dataset", "create", "docs")
    alice.run("dataset", "upload", "docs", str(texts(appliance.home / "texts")))
    alice.run(
        *("job", "prepare", "prepare", "--dataset", "docs/1", "--output-dataset", "tokens"),
        *("--output-tokenizer", "bpe", "--vocabulary-size", "512", "--wait"),
    )
    for seed in ("1", "2"):
        name = f"train-{seed}"
        alice.run(
            "job", "train", name, "--output-model", "served", *SHAPE, f"--seed={seed}", "--wait"
        )
    alice.run(
        *("endpoint", "create", "chat", "--model", "served/1", "--cache-bytes", str(64 << 20)),
        *("--max-sequence-length", "32", *WAIT),
    )
    alice.run("service-account", "create", "app")
    alice.run(
        *("binding", "create", "--principal", f"serviceAccounts/{PROJECT}--app"),
        *("--role", "inference", "--project", PROJECT),
    )
    alice.run("service-account", "create-token", "app", "--out", str(_token(appliance)))
    yield appliance
    alice.run("endpoint", "delete", "chat", "--wait")


def _token(appliance: Appliance) -> Path:
    return appliance.home / "app.token"


def client(appliance: Appliance) -> AsyncInference:
    settings = tomllib.loads((appliance.data / "control.toml").read_text())
    ca_pem = (appliance.data / "ca.pem").read_bytes()
    return AsyncInference(
        settings["gateway"]["grpc"], ca_pem, _token(appliance).read_text().strip()
    )


def endpoint(appliance: Appliance) -> dict[str, Any]:
    found: dict[str, Any] = appliance.alice.json("endpoint", "get", "chat", echo=False)
    return found


def models(appliance: Appliance) -> list[str]:
    """Of the replicas."""
    return [each["model"].rpartition("/")[2] for each in endpoint(appliance)["replica_status"]]


def test_nobody_who_asks_notices_a_new_version_nor_the_way_back(served: Appliance) -> None:
    alice = served.alice
    ask = ("ask", "chat", "the process", "--raw", "--max-tokens", "8", "--temperature", "0")
    first = alice.run(*ask).stdout
    with flowing(lambda: client(served), ENDPOINT, count=3, tokens=20) as streams:
        wait_for(lambda: streams.answers > 5, "answers")
        alice.run("endpoint", "update", "chat", "--model", "served/2", *WAIT)
        wait_for(lambda: models(served) == ["2"], "the old replica to go")
        before = streams.answers
        wait_for(lambda: streams.answers > before + 5, "answers of the new version")
        # Back, and the control plane is killed in the middle of it.
        alice.run("endpoint", "update", "chat", "--model", "served/1")
        wait_for(lambda: len(models(served)) == 2, "a replica beside the other")
        control = served.process_id("control")
        os.kill(control, signal.SIGKILL)
        wait_for(lambda: _answers(served), "the control plane to answer")
        wait_for(lambda: models(served) == ["1"], "the swap to end", 300)
        before = streams.answers
        wait_for(lambda: streams.answers > before + 5, "answers of the version before")
    assert streams.failures == []
    assert endpoint(served)["state"] == "STATE_READY"
    assert alice.run(*ask).stdout == first


def _answers(appliance: Appliance) -> bool:
    try:
        endpoint(appliance)
    except Exception:  # noqa: BLE001 - whatever it says while the server starts, it is asked again
        return False
    return True


def test_stopped_it_says_so_and_started_it_answers(served: Appliance) -> None:
    alice = served.alice
    stopped = alice.json("endpoint", "stop", "chat", *WAIT)
    assert (stopped["state"], stopped["replica_status"]) == ("STATE_STOPPED", [])
    (node,) = alice.json("node", "list")
    assert int(node["devices_used"]) == 0
    said = sentence(alice.run("ask", "chat", "the process", expect=1))
    assert f"`appliance endpoint start {ENDPOINT}`" in said
    alice.run("endpoint", "update", "chat", "--model", "served/2")
    alice.run("endpoint", "start", "chat", *WAIT)
    assert models(served) == ["2"]
    alice.run("ask", "chat", "the process", "--raw", "--max-tokens", "3")
