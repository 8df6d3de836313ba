"""From text to a trained model, as a user drives it, while things break on the way.

All of it runs where every spelling of a proxy names one that nobody runs.
"""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from deploy.demo import processes
from deploy.demo.terminal import Terminal
from tests.journeys.running import PROGRAM, PROJECT, Appliance, sentence, texts, wait_for

pytestmark = pytest.mark.timeout(240)

SURROUNDINGS = {
    spelling: "http://127.0.0.1:9"
    for scheme in ("http", "https", "grpc", "all")
    for spelling in (f"{scheme}_proxy", f"{scheme}_PROXY".upper())
}
NOT_ALLOWED, FAILED = 5, 1
SMALL = (
    *("--dataset=tokens/1", "--layers=2", "--hidden-size=32", "--intermediate-size=64"),
    *("--attention-heads=4", "--key-value-heads=2", "--context-length=32"),
    *("--batch-size=4", "--sequence-length=16", "--seed=7"),
)
STEPS, INTERVAL = 300, 10
ENDLESS = 1_000_000


@pytest.fixture(scope="module")
def prepared(appliance: Appliance) -> Appliance:
    """The appliance with tokens `tokens/1`, made of a little text."""
    alice = appliance.alice
    alice.run("dataset", "create", "docs")
    alice.run("dataset", "upload", "docs", str(texts(appliance.home / "texts")))
    job = alice.json(
        *("job", "prepare", "prepare", "--dataset", "docs/1", "--output-dataset", "tokens"),
        *("--output-tokenizer", "bpe", "--vocabulary-size", "512", "--wait"),
    )
    report = alice.json("dataset", "report", "tokens/1")
    assert int(report["documents"]) == 120
    assert int(report["kept"]) == job["result"]["values"]["kept"] > 100
    return appliance


def train(appliance: Appliance, name: str, *options: str, steps: int = STEPS) -> dict[str, Any]:
    """Submit a small training job."""
    made: dict[str, Any] = appliance.alice.json(
        *("job", "train", name, "--output-model", name, f"--steps={steps}", *SMALL, *options),
        f"--checkpoint-interval={INTERVAL}",
    )
    return made


def wait_for_step(appliance: Appliance, name: str, step: int = INTERVAL) -> None:
    """Wait until a job is past a step."""

    def past() -> bool:
        job = appliance.alice.json("job", "get", name, echo=False)
        assert job["state"] in {"STATE_QUEUED", "STATE_STARTING", "STATE_RUNNING"}, job
        return int((job.get("progress") or {}).get("step", 0)) > step

    wait_for(past, f"step {step} of {name}")


def test_a_job_goes_on_from_its_checkpoint_when_a_rank_is_killed(prepared: Appliance) -> None:
    job = train(prepared, "killed", "--data=2")
    wait_for_step(prepared, "killed")
    ranks = processes.ranks_of(job["uid"])
    assert len(ranks) == 2
    os.kill(ranks[0], signal.SIGKILL)
    prepared.alice.run("job", "watch", "killed", "--timeout", "120s")
    job = prepared.alice.json("job", "get", "killed")
    assert job["state"] == "STATE_SUCCEEDED"
    assert job["result"]["values"]["resumed_at_step"] >= INTERVAL
    metrics = prepared.alice.json("job", "metrics", "killed")
    losses = {int(row["step"]): row["values"]["loss"] for row in metrics}
    assert losses[max(losses)] < losses[min(losses)]
    (version,) = prepared.alice.json("model", "versions", "killed")
    assert (version["architecture"], version["job"]) == (
        "LlamaForCausalLM",
        f"projects/{PROJECT}/jobs/killed",
    )
    assert processes.ranks_of(job["uid"]) == []


def test_whom_a_job_waits_for_is_shown_and_a_rank_that_stops_is_started_again(
    prepared: Appliance,
) -> None:
    job = train(prepared, "stopped", "--data=2", "--stall-seconds=6")
    assert job["train"]["learning_rate"] == 0.001
    wait_for_step(prepared, "stopped")
    os.kill(processes.ranks_of(job["uid"])[0], signal.SIGSTOP)

    def waits() -> bool:
        shown = prepared.alice.json("job", "get", "stopped", echo=False)
        return "all ranks are started again after 6 s" in shown["progress"]["message"]

    wait_for(waits, "the job to say that it waits")
    watched = prepared.alice.run("job", "watch", "stopped", "--timeout", "120s").stdout
    assert "waits for rank " in watched
    assert " has hung (" in watched, watched
    job = prepared.alice.json("job", "get", "stopped")
    assert (job["state"], job["restarts"]) == ("STATE_SUCCEEDED", 1)
    assert job["result"]["values"]["resumed_at_step"] >= INTERVAL


def test_a_job_goes_on_while_the_control_plane_is_killed(prepared: Appliance) -> None:
    train(prepared, "headless")
    wait_for_step(prepared, "headless")
    control = prepared.process_id("control")
    os.kill(control, signal.SIGKILL)
    wait_for(lambda: prepared.process_id("control") != control, "another control plane")
    wait_for(lambda: _answers(prepared), "the control plane to answer")
    prepared.alice.run("job", "watch", "headless", "--timeout", "120s")
    assert prepared.alice.json("job", "get", "headless")["state"] == "STATE_SUCCEEDED"
    assert len(prepared.alice.json("model", "versions", "headless")) == 1
    log = (prepared.data / "run" / "supervisor.log").read_text()
    assert "control was ended by SIGKILL" in log
    assert "control was started again" in log


def _answers(appliance: Appliance) -> bool:
    try:
        appliance.alice.run("whoami", echo=False)
    except Exception:  # noqa: BLE001 - whatever it says while the server starts, it is asked again
        return False
    return True


def without_checkpoints(holdings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in holdings.items() if "/e1/step-" not in key}


def test_a_cancelled_job_leaves_its_checkpoints_and_nothing_else(prepared: Appliance) -> None:
    before = prepared.holdings()
    job = train(prepared, "cancelled", steps=ENDLESS)
    wait_for_step(prepared, "cancelled", step=0)
    prepared.alice.run("job", "cancel", "cancelled")
    done = prepared.alice.run("job", "watch", "cancelled", "--timeout", "60s", expect=FAILED)
    assert f"projects/{PROJECT}/jobs/cancelled cancelled: " in sentence(done)
    wait_for(lambda: processes.ranks_of(job["uid"]) == [], "its ranks to end")

    def as_before() -> bool:
        after = prepared.holdings()
        after["jobs"] = [row for row in after["jobs"] if "jobs/cancelled" not in row]
        return without_checkpoints(after) == without_checkpoints(before)

    wait_for(as_before, "its files to go", timeout=20)


def test_an_application_may_infer_and_nothing_else(prepared: Appliance, tmp_path: Path) -> None:
    alice, token = prepared.alice, tmp_path / "app.token"
    account = "serviceAccounts/demo--app"
    alice.run("service-account", "create", "app")
    alice.run(
        *("binding", "create", "--principal", account, "--role", "inference"),
        *("--project", PROJECT),
    )
    alice.run("service-account", "create-token", account, "--out", str(token))
    prepared.person("app")
    app = Terminal(_with_token(tmp_path, token), prepared.home / "app")
    for command in (
        ("user", "list"),
        ("dataset", "list"),
        ("dataset", "upload", "docs", str(prepared.home / "texts")),
        ("job", "list"),
        ("job", "cancel", "killed"),
        ("model", "list"),
        ("endpoint", "delete", "chat"),
        ("audit", "list"),
        ("node", "list"),
    ):
        prepared.refused(*command, code=NOT_ALLOWED, who=app)
    records = alice.json("audit", "list", "--outcome", "PERMISSION_DENIED")
    methods = {row["method"].rpartition("/")[2] for row in records if row["principal"] == account}
    assert {"ListUsers", "CreateUpload", "CancelJob", "DeleteEndpoint"} <= methods


def _with_token(folder: Path, token: Path) -> Path:
    """The command as an application's script starts it: with a token file."""
    script = folder / "appliance"
    script.write_text(f'#!/bin/sh\nAPPLIANCE_TOKEN_FILE={token} exec {PROGRAM} "$@"\n')
    script.chmod(0o700)
    return script


def test_a_changed_audit_record_is_named(prepared: Appliance, tmp_path: Path) -> None:
    note, key, records = (str(tmp_path / name) for name in ("note", "key.pem", "records"))
    alice = prepared.alice
    alice.run("audit", "checkpoint", "--out", note, "--public-key-out", key)
    alice.run("audit", "export", "--out", records)
    verify = ("audit", "verify", "--records", records, "--public-key", key, "--checkpoint", note)
    assert alice.json(*verify)["signed"] > 0
    lines = Path(records).read_bytes().splitlines(keepends=True)
    victim = next(i for i, line in enumerate(lines) if b"CreateProject" in line)
    lines[victim] = lines[victim].replace(b"users/alice", b"users/mallo")
    Path(records).write_bytes(b"".join(lines))
    done = alice.run(*verify, expect=FAILED)
    assert f"audit record {json.loads(lines[victim])['sequence']} " in sentence(done)
    assert done.stdout == ""
    alice.run(*verify[:2], "--data-dir", str(prepared.data), *verify[4:])


@pytest.mark.engine
def test_the_trained_model_answers(prepared: Appliance) -> None:
    """Heads of 64, which the engine serves; two requests at once through the gateway."""
    alice = prepared.alice
    wide = ("--hidden-size=128", "--attention-heads=2", "--key-value-heads=1")
    train(prepared, "served", *wide, steps=20)
    alice.run("job", "watch", "served", "--timeout", "120s")
    shape = ("--max-sequence-length", "32", "--cache-bytes", str(64 << 20))
    alice.run("endpoint", "create", "chat", "--model", "served/1", *shape, "--wait")
    ask = ("ask", "chat", "the process", "--raw", "--max-tokens", "8", "--temperature", "0")

    async def twice() -> list[str]:
        both = (asyncio.to_thread(alice.run, *ask), asyncio.to_thread(alice.run, *ask))
        return [done.stdout for done in await asyncio.gather(*both)]

    first, second = asyncio.run(twice())
    assert first == second != ""
    alice.run("endpoint", "delete", "chat", "--wait")
