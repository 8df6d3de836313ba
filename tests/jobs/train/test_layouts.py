"""Every layout learns what one plain process learns, and every layout reads every checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.jobs.train.job import run
from tests.fakes.job_context import FakeJob
from tests.fakes.training import (
    END_OF_TEXT,
    STEPS,
    PlainRun,
    continued,
    measured,
    run_ranks,
    train_plainly,
    training_job,
)

MAX_LOSS_DIFFERENCE = 1e-4
MAX_NORM_DIFFERENCE = 1e-3
MAX_WEIGHT_DIFFERENCE = 5e-4
# Weights are exported in bfloat16, which rounds to 8 bits.
ROUNDING = 2**-8


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, PlainRun]:
    folder = tmp_path_factory.mktemp("plain")
    return {tie: train_plainly(training_job(folder / str(tie), tie=tie)) for tie in (False, True)}


def weights_of(job: FakeJob) -> dict[str, torch.Tensor]:
    model, weights = job.output("model"), {}
    for file in model.files():
        if file.endswith(".safetensors"):
            weights |= load(model.read_bytes(file))
    return weights


def assert_agrees(job: FakeJob, plain: PlainRun, first: int = 0) -> None:
    losses, norms = measured(job, "loss"), measured(job, "grad_norm")
    assert len(losses) == STEPS - first
    assert differences(losses, plain.losses[first:]) <= MAX_LOSS_DIFFERENCE
    assert differences(norms, plain.norms[first:]) <= MAX_NORM_DIFFERENCE
    weights = weights_of(job)
    assert weights.keys() == plain.weights.keys()
    for name, weight in plain.weights.items():
        assert weights[name].dtype == torch.bfloat16
        torch.testing.assert_close(
            weights[name].float(), weight, rtol=ROUNDING, atol=MAX_WEIGHT_DIFFERENCE
        )


def differences(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_the_plain_run_learns(plain: dict[bool, PlainRun]) -> None:
    for run_ in plain.values():
        assert run_.losses[-1] < run_.losses[0] - 0.5
        assert max(run_.norms) > 0.5, "clipping must take part"


@pytest.mark.parametrize("tie", [False, True])
def test_one_rank(tmp_path: Path, plain: dict[bool, PlainRun], *, tie: bool) -> None:
    whole = training_job(tmp_path / "whole", tie=tie)
    run(whole.context())
    assert_agrees(whole, plain[tie])
    pieces = training_job(tmp_path / "pieces", tie=tie, microbatches=4)
    run(pieces.context())
    assert_agrees(pieces, plain[tie])


def test_two_ranks(tmp_path: Path, plain: dict[bool, PlainRun]) -> None:
    layouts = {
        "data": {"data": 2, "tie": True, "microbatches": 2},
        "tensor": {"tensor": 2, "tie": True},
        "pipeline": {"pipeline": 2},
    }
    jobs = {name: training_job(tmp_path / name, **layout) for name, layout in layouts.items()}
    run_ranks(list(jobs.values()))
    for name, job in jobs.items():
        assert_agrees(job, plain[layouts[name].get("tie", False)])


FOUR_RANKS = {
    "tensor-pipeline": {"tensor": 2, "pipeline": 2},
    "data-tensor": {"data": 2, "tensor": 2, "tie": True},
    "gpipe": {"data": 2, "pipeline": 2, "pipeline_schedule": "GPipe"},
    "1f1b": {"data": 2, "pipeline": 2, "tie": True, "microbatches": 2},
    "interleaved": {
        "tensor": 2,
        "pipeline": 2,
        "tie": True,
        "pipeline_schedule": "Interleaved1F1B",
    },
    "zero-bubble": {"data": 2, "pipeline": 2, "tie": True, "pipeline_schedule": "ZBVZeroBubble"},
    "zero-bubble-tensor": {"tensor": 2, "pipeline": 2, "pipeline_schedule": "ZBVZeroBubble"},
}


@pytest.mark.timeout(300)
def test_four_ranks_and_their_checkpoints(tmp_path: Path, plain: dict[bool, PlainRun]) -> None:
    jobs = {name: training_job(tmp_path / name, **layout) for name, layout in FOUR_RANKS.items()}
    # Jobs of the same ranks run after one another in one gang: so do those that go on from the
    # checkpoints that an earlier one left, of step 8.
    follow = {
        "1": continued(tmp_path / "a", jobs["data-tensor"], pipeline=2, data=2, tie=True),
        "2": continued(tmp_path / "b", jobs["tensor-pipeline"], data=2, tensor=2),
        "3": continued(
            tmp_path / "c",
            jobs["zero-bubble"],
            tensor=2,
            pipeline=2,
            tie=True,
            pipeline_schedule="Interleaved1F1B",
        ),
    }
    run_ranks([*jobs.values(), *follow.values()])
    for name, job in jobs.items():
        assert_agrees(job, plain[FOUR_RANKS[name].get("tie", False)])
    for name, tie in {"1": True, "2": False, "3": True}.items():
        assert_agrees(follow[name], plain[tie], first=8)
        assert follow[name].lines("result")[0]["value"]["values"]["resumed_at_step"] == 8
    one = continued(tmp_path / "one", jobs["zero-bubble-tensor"])
    run(one.context())
    assert_agrees(one, plain[False], first=8)


@pytest.mark.timeout(300)
def test_eight_ranks(tmp_path: Path, plain: dict[bool, PlainRun]) -> None:
    job = training_job(tmp_path / "cube", data=2, tensor=2, pipeline=2, tie=True)
    run_ranks([job])
    assert_agrees(job, plain[True])
    one = continued(tmp_path / "one", job, tie=True)
    run(one.context())
    assert_agrees(one, plain[True], first=8)


def test_the_model_is_a_hugging_face_folder(tmp_path: Path) -> None:
    job = training_job(tmp_path / "job", tensor=2, pipeline=2)
    run_ranks([job])
    made = job.output("model")
    assert "model.safetensors.index.json" in made.files()
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in made.files():
        (folder / file).write_bytes(made.read_bytes(file))
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert model.dtype == torch.bfloat16
    weights = weights_of(job)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, weights[name]), name
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.encode("w3 w4") == [3, 4]
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == END_OF_TEXT
    ids = model.generate(
        torch.tensor([[7, 14, 21]]), max_new_tokens=4, do_sample=False, pad_token_id=END_OF_TEXT
    )
    assert ids.shape[1] <= 7


def test_a_report_per_step_and_one_result(tmp_path: Path) -> None:
    job = training_job(tmp_path)
    run(job.context())
    lines = job.lines("progress")
    assert [(line["step"], line["total"]) for line in lines] == [
        (step, STEPS) for step in range(1, STEPS + 1)
    ]
    assert all(
        set(line["metrics"]) == {"loss", "tokens_per_second", "grad_norm", "learning_rate"}
        for line in lines
    )
    result = job.lines("result")[0]["value"]["values"]
    assert result["steps"] == STEPS
    assert result["loss_first"] == measured(job, "loss")[0]
    assert result["loss_last"] == measured(job, "loss")[-1]
    assert result["tokens_per_second"] > 0
    assert "resumed_at_step" not in result
    assert [line["step"] for line in job.lines("checkpoint")] == [4, 8]
