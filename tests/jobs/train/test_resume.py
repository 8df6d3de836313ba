"""A run whose ranks are killed in the middle ends with the same bits as one that was left alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from appliance.core.errors import (
    FailedPrecondition,
    InvalidInput,
    LeaseLost,
    Paused,
    Tampered,
)
from appliance.jobs.train import loop
from appliance.jobs.train.job import run
from tests.fakes.gang import RunningGang
from tests.fakes.job_context import FakeJob
from tests.fakes.training import (
    checkpoint,
    continued,
    measured,
    run_ranks,
    training_job,
)

LONG = {"steps": 40, "checkpoint_interval": 8}


def bits(job: FakeJob, step: int) -> dict[str, bytes]:
    """Weights and moments of a checkpoint, and the model, as bytes by file."""
    stored, model = checkpoint(job, step), job.output("model")
    found = {f"checkpoint/{file}": stored.read_bytes(file) for file in stored.files()}
    return found | {f"model/{file}": model.read_bytes(file) for file in model.files()}


@pytest.mark.timeout(180)
def test_ranks_killed_in_the_middle_change_nothing(tmp_path: Path) -> None:
    layout = {"data": 2, "pipeline": 2, "tie": True}
    calm = training_job(tmp_path / "calm", **layout, **LONG)
    run_ranks([calm])
    stormy = training_job(tmp_path / "stormy", **layout, **LONG)
    gang = RunningGang(stormy, module="appliance.jobs")
    try:
        gang.until("progress", step=10)
        ranks = [process for process in gang.family() if process != gang.process.pid]
        for process in ranks[:2]:
            os.kill(process, signal.SIGKILL)
        assert gang.wait(120) == 0, gang.log.read_text()
    finally:
        gang.kill()
    restart = next(line for line in stormy.lines("event") if line["name"] == "rank_restart")
    resumed = restart["resumed_at_step"]
    assert resumed >= 8
    assert resumed % 8 == 0
    assert stormy.lines("result")[0]["value"]["values"]["resumed_at_step"] == resumed
    assert measured(stormy, "loss")[-(40 - resumed) :] == measured(calm, "loss")[resumed:]
    assert bits(stormy, 40) == bits(calm, 40)


@pytest.mark.timeout(180)
def test_a_rank_that_stops_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    calm = training_job(tmp_path / "calm", data=2, **LONG)
    run_ranks([calm])
    stormy = training_job(tmp_path / "stormy", data=2, stall_seconds=5, **LONG)
    gang = RunningGang(stormy, module="appliance.jobs")
    try:
        gang.until("progress", step=10)
        _, _, second = gang.family()
        os.kill(second, signal.SIGSTOP)
        # It is said before anything is done about it, and done well before a minute is over.
        assert gang.until("waiting")["message"].startswith("waits for rank 1 (step ")
        restart = gang.until("event", name="rank_restart", timeout=40)
        assert gang.wait(120) == 0, gang.log.read_text()
    finally:
        gang.kill()
    resumed = restart["resumed_at_step"]
    assert resumed >= 8
    assert f"started again at step {resumed}, because rank 1 has hung (step " in restart["message"]
    assert measured(stormy, "loss")[-(40 - resumed) :] == measured(calm, "loss")[resumed:]
    assert bits(stormy, 40) == bits(calm, 40)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("layout", [{"data": 2}, {"data": 2, "pipeline": 2, "tie": True}])
def test_a_paused_run_goes_on_to_the_same_bits(tmp_path: Path, layout: dict[str, int]) -> None:
    calm = training_job(tmp_path / "calm", **layout, **LONG)
    run_ranks([calm])
    paused = training_job(tmp_path / "paused", **layout, **LONG)
    gang = RunningGang(paused, module="appliance.jobs")
    try:
        gang.until("progress", step=10)
        gang.process.send_signal(signal.SIGUSR1)
        assert gang.wait(120) == 1, gang.log.read_text()
        assert gang.family() == []
    finally:
        gang.kill()
    (error,) = paused.lines("error")
    step = paused.lines("checkpoint")[-1]["step"]
    assert error["reason"] == "PAUSED"
    assert error["message"] == f"saved the checkpoint of step {step}"
    # Ranks that are told in the middle of a step end after the same one, wherever that is.
    assert 10 <= step < 40
    assert paused.lines("progress")[-1]["step"] == step
    assert not [line for line in paused.lines("event") if line["name"] == "rank_restart"]
    assert not paused.lines("output")

    again = RunningGang(paused, module="appliance.jobs")
    try:
        assert again.wait(120) == 0, again.log.read_text()
    finally:
        again.kill()
    assert paused.lines("result")[0]["value"]["values"]["resumed_at_step"] == step
    assert measured(paused, "loss") == measured(calm, "loss")
    assert bits(paused, 40) == bits(calm, 40)


@pytest.mark.timeout(180)
def test_one_rank_that_was_told_takes_all_with_it(tmp_path: Path) -> None:
    jobs = [training_job(tmp_path / name, data=2, **LONG) for name in ("calm", "told")]
    run_ranks(jobs[:1])
    jobs[1].save_on = 1
    run_ranks(jobs[1:])
    assert [line["step"] for line in jobs[1].lines("checkpoint")] == [1]
    assert measured(jobs[1], "loss") == measured(jobs[0], "loss")[:1]
    assert not jobs[1].lines("output")


def test_a_pause_in_the_last_step_leaves_only_the_model_to_write(tmp_path: Path) -> None:
    job = training_job(tmp_path, steps=4, checkpoint_interval=4)
    context = job.context()
    object.__setattr__(context, "saving", lambda: len(job.lines("progress")) == 3)
    with pytest.raises(Paused) as caught:
        run(context)
    assert caught.value.metadata == {"step": "4"}
    # A checkpoint was due anyway: it is saved once.
    assert [line["step"] for line in job.lines("checkpoint")] == [4]
    assert not job.lines("output")
    run(job.context())
    assert len(job.lines("progress")) == 4
    assert [line["slot"] for line in job.lines("output")] == ["model"]


def stopped_job(folder: Path) -> FakeJob:
    """A one-rank job that was stopped after its checkpoint of step 4."""
    job = training_job(folder, steps=6, checkpoint_interval=4)
    context, asked = job.context(), []

    def stopping() -> bool:
        asked.append(True)
        return bool(job.lines("checkpoint"))

    object.__setattr__(context, "stopping", stopping)
    with pytest.raises(LeaseLost):
        run(context)
    assert not job.lines("output")
    return job


def test_one_rank_resumes_to_the_same_bits(tmp_path: Path) -> None:
    job = stopped_job(tmp_path / "job")
    run(job.context())
    calm = training_job(tmp_path / "calm", steps=6, checkpoint_interval=4)
    run(calm.context())
    assert bits(job, 4) == bits(calm, 4)
    assert measured(job, "loss") == measured(calm, "loss")
    job_result, calm_result = (
        {
            name: value
            for name, value in one.lines("result")[0]["value"]["values"].items()
            if name.startswith("loss") or name == "steps"
        }
        for one in (job, calm)
    )
    assert job_result == calm_result


def test_a_finished_run_that_lost_its_export_only_exports(tmp_path: Path) -> None:
    job = training_job(tmp_path, steps=4, checkpoint_interval=4)
    run(job.context())
    first = job.output("model").read_bytes("model.safetensors")
    run(job.context())
    assert job.output("model").read_bytes("model.safetensors") == first
    one, other = (line["value"]["values"] for line in job.lines("result"))
    assert other["loss_last"] == one["loss_last"]
    assert len(job.lines("progress")) == 4


@pytest.mark.parametrize(
    ("change", "what"),
    [({"seed": 8}, "seed"), ({"sequence_length": 8}, "sequence_length"), ({"steps": 7}, "steps")],
)
def test_the_checkpoint_of_another_run_is_refused(
    tmp_path: Path, change: dict[str, int], what: str
) -> None:
    job = stopped_job(tmp_path / "job")
    settings = {"steps": 6, "checkpoint_interval": 4} | change
    other = continued(tmp_path / "other", job, **settings)
    with pytest.raises(InvalidInput) as caught:
        run(other.context())
    assert caught.value.message.startswith(f"The checkpoint was made with {what} ")


def test_a_job_begins_with_the_checkpoint_of_another(tmp_path: Path) -> None:
    first = training_job(tmp_path / "first", steps=4, checkpoint_interval=4)
    run(first.context())
    whole = training_job(tmp_path / "whole", steps=8, checkpoint_interval=4, warmup_steps=8)
    settings = {"steps": 8, "checkpoint_interval": 4, "warmup_steps": 8}
    later = continued(tmp_path / "later", first, **settings)
    begin_with(later, first, 4)
    run(later.context())
    # Its step, its data and its learning rate go on; they are those of its own spec.
    run(whole.context())
    assert [line["step"] for line in later.lines("progress")] == [5, 6, 7, 8]
    assert measured(later, "learning_rate") == measured(whole, "learning_rate")[4:]
    result = later.lines("result")[0]["value"]["values"]
    assert (result["resumed_at_step"], result["steps"]) == (4, 8)
    assert result["loss_first"] == measured(first, "loss")[0]


def test_a_beginning_with_the_same_spec_has_the_same_bits(tmp_path: Path) -> None:
    settings = {"steps": 8, "checkpoint_interval": 4}
    whole = training_job(tmp_path / "whole", **settings)
    run(whole.context())
    later = continued(tmp_path / "later", whole, **settings)
    begin_with(later, whole, 4)
    run(later.context())
    assert bits(later, 8) == bits(whole, 8)


def begin_with(job: FakeJob, other: FakeJob, step: int) -> None:
    """Let a job begin with a checkpoint of another, as the control plane orders it."""
    name = "projects/p/jobs/first/checkpoints/e1-step-4"
    series = other.orders["outputs"]["checkpoints"]
    digest = next(line["digest"] for line in other.lines("checkpoint") if line["step"] == step)
    part = f"e1/step-{step:08d}"
    job.orders["inputs"][name] = {
        **series,
        "name": name,
        "kind": "checkpoint",
        "folder": f"{series['folder']}/{part}",
        "object": f"{series['object']}/{part}",
        "digest": digest,
    }
    job.orders["spec"]["fromCheckpoint"] = name
    job.add_output("checkpoints")
    job.orders["resume"] = None


@pytest.mark.attack
def test_a_changed_checkpoint_is_refused(tmp_path: Path) -> None:
    job = stopped_job(tmp_path)
    place = job.orders["outputs"]["checkpoints"]["folder"]
    file = tmp_path / "objects" / place / "e1" / "step-00000004" / "rank-00000.safetensors"
    sealed = bytearray(file.read_bytes())
    sealed[len(sealed) // 2] ^= 1
    file.write_bytes(sealed)
    with pytest.raises(Tampered) as caught:
        run(job.context())
    assert "rank-00000.safetensors" in caught.value.message
    assert not job.lines("output")


def test_the_tokenizer_of_a_model_ends_where_its_context_does(tmp_path: Path) -> None:
    job = training_job(tmp_path, steps=2)
    run(job.context())
    found = job.output("model").read_json("tokenizer_config.json")
    assert found == {"eos_token": "<|end|>", "model_max_length": 32}


def test_a_gradient_that_is_no_number_never_reaches_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = training_job(tmp_path, steps=4, checkpoint_interval=2)
    norms = iter([1.0, 1.0, 1.0, float("nan")])
    monkeypatch.setattr(loop, "clip", lambda *_, **__: next(norms))
    with pytest.raises(FailedPrecondition, match="gradient became NaN or infinite at step 4"):
        run(job.context())
    assert [line["step"] for line in job.lines("checkpoint")] == [2]
    assert not job.lines("output")


def test_a_loss_that_is_no_number_ends_the_run_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = training_job(tmp_path)
    monkeypatch.setattr(loop, "learning_rate", lambda *_: 1e30)
    with pytest.raises(FailedPrecondition) as caught:
        run(job.context())
    assert "Lower learning_rate" in caught.value.message
    assert not job.lines("checkpoint")
