"""Work outlives everything around it: the appliance goes down and up."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.journeys.running import Appliance, texts, wait_for

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

SMALL = (
    *("--dataset=tokens/1", "--layers=2", "--hidden-size=32", "--intermediate-size=64"),
    *("--attention-heads=4", "--key-value-heads=2", "--context-length=32", "--data=2"),
    *("--batch-size=4", "--sequence-length=16", "--seed=7", "--checkpoint-interval=50"),
)
ENDLESS = 1_000_000


@pytest.fixture(scope="module")
def prepared(appliance: Appliance) -> Appliance:
    """The appliance with tokens `tokens/1`."""
    alice = appliance.alice
    alice.run("dataset", "create", "docs")
    alice.run("dataset", "upload", "docs", str(texts(appliance.home / "texts")))
    alice.run(
        *("job", "prepare", "prepare", "--dataset", "docs/1", "--output-dataset", "tokens"),
        *("--output-tokenizer", "bpe", "--vocabulary-size", "512", "--wait"),
    )
    return appliance


def train(appliance: Appliance, name: str, steps: int) -> dict[str, Any]:
    made: dict[str, Any] = appliance.alice.json(
        "job", "train", name, "--output-model", name, f"--steps={steps}", *SMALL
    )
    return made


def job(appliance: Appliance, name: str) -> dict[str, Any]:
    found: dict[str, Any] = appliance.alice.json("job", "get", name, echo=False)
    return found


def at_work(appliance: Appliance, name: str, epoch: int) -> bool:
    found = job(appliance, name)
    assert found["state"] in {"STATE_QUEUED", "STATE_STARTING", "STATE_RUNNING"}, found
    return (found["state"], found["epoch"]) == ("STATE_RUNNING", epoch)


def past(appliance: Appliance, name: str, step: int) -> None:
    def is_past() -> bool:
        found = job(appliance, name)
        assert found["state"] in {"STATE_QUEUED", "STATE_STARTING", "STATE_RUNNING"}, found
        return int((found.get("progress") or {}).get("step", 0)) > step

    wait_for(is_past, f"step {step} of {name}", 120)


def test_going_down_and_up_is_no_failure_of_a_job(prepared: Appliance) -> None:
    alice = prepared.alice
    train(prepared, "often", ENDLESS)
    reached = 60
    for epoch in range(1, 5):
        wait_for(lambda number=epoch: at_work(prepared, "often", number), f"start {epoch}")
        past(prepared, "often", reached)
        found = job(prepared, "often")
        reached = int(found["progress"]["step"])
        alice.run("down", "--data-dir", str(prepared.data))
        alice.run("up", "--data-dir", str(prepared.data), "--detach")
    # From the newest checkpoint each time: no step twice but those since it.
    resumed = reached - reached % 50
    wait_for(lambda: at_work(prepared, "often", 5), "the next start")
    past(prepared, "often", resumed)
    alice.run("job", "cancel", "often")
    cancelled = job(prepared, "often")
    assert cancelled["state"] == "STATE_CANCELLED"
    assert int(cancelled["checkpoint_step"]) >= resumed
    # And what somebody has stopped goes on where it was.
    alice.run("job", "resume", "often", "--mesh", "data=1,tensor=2")
    wait_for(lambda: at_work(prepared, "often", 6), "the job to go on")
    past(prepared, "often", int(cancelled["checkpoint_step"]))
    alice.run("job", "cancel", "often")


def test_who_follows_the_output_of_a_job_goes_on_when_the_server_is_back(
    prepared: Appliance,
) -> None:
    alice = prepared.alice
    train(prepared, "followed", ENDLESS)
    wait_for(lambda: at_work(prepared, "followed", 1), "the first start")
    output = prepared.home / "output"
    with output.open("wb") as file:
        following = alice.begin("job", "logs", "followed", "-f", "--rank", "0", output=file)
    try:
        wait_for(lambda: b"works on cpu" in output.read_bytes(), "a line")
        # The control plane alone is killed: the job goes on, and so does who reads.
        os.kill(prepared.process_id("control"), signal.SIGKILL)
        before = output.read_bytes().count(b"saved the checkpoint")
        wait_for(
            lambda: output.read_bytes().count(b"saved the checkpoint") > before, "further lines", 90
        )
        alice.run("job", "cancel", "followed")
        assert following.wait(60) == 0
    finally:
        following.kill()
        following.wait()
    lines = output.read_text().splitlines()
    steps = [line.rpartition(" ")[2] for line in lines if "saved the checkpoint" in line]
    # Nothing twice, and nothing left out.
    assert steps == [str(50 * (place + 1)) for place in range(len(steps))]
