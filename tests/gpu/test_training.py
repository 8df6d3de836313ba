"""The trainer on a real GPU learns what one plain process learns on a CPU, and outlives a kill.

GPUs multiply in bfloat16, so that losses agree to three digits and not to six. Run by `make gpu`;
without a GPU each test is skipped by name.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.fakes.gang import RunningGang
from tests.fakes.job_context import FakeJob
from tests.fakes.training import measured, train_plainly, training_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
]

MAX_LOSS_DIFFERENCE = 0.05


def on_gpu(folder: Path, **changes: object) -> FakeJob:
    """A job of one rank on the first GPU."""
    job = training_job(folder, **changes)
    job.orders["device_kind"] = "cuda"
    return job


def trained(job: FakeJob) -> FakeJob:
    """The job, run as an agent runs it: a leader that forks its rank."""
    gang = RunningGang(job, module="appliance.jobs")
    assert gang.wait(240) == 0, gang.log.read_text()
    return job


@pytest.mark.parametrize("tie", [False, True])
def test_a_gpu_learns_what_a_cpu_learns(tmp_path: Path, *, tie: bool) -> None:
    plain = train_plainly(training_job(tmp_path / "plain", tie=tie))
    job = trained(on_gpu(tmp_path / "gpu", tie=tie))
    losses = measured(job, "loss")
    assert len(losses) == len(plain.losses)
    assert max(abs(a - b) for a, b in zip(losses, plain.losses, strict=True)) < (
        MAX_LOSS_DIFFERENCE
    )


def test_a_killed_rank_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    job = on_gpu(tmp_path, steps=400, checkpoint_interval=8)
    gang = RunningGang(job, module="appliance.jobs")
    try:
        gang.until("progress", step=20)
        rank = next(process for process in gang.family() if process != gang.process.pid)
        os.kill(rank, signal.SIGKILL)
        assert gang.wait(240) == 0, gang.log.read_text()
    finally:
        gang.kill()
    restart = next(line for line in job.lines("event") if line["name"] == "rank_restart")
    assert restart["resumed_at_step"] >= 16
    losses = measured(job, "loss")
    assert losses[-1] < losses[0] - 0.5


def test_the_same_seed_gives_the_same_losses(tmp_path: Path) -> None:
    one, other = (trained(on_gpu(tmp_path / name)) for name in ("one", "other"))
    assert measured(one, "loss") == measured(other, "loss")
