"""Sealed ways in and out of a job, reports, and the row of checkpoints."""

import base64
import shutil
from pathlib import Path

import pytest

from appliance.core.errors import InvalidInput, LeaseLost, NotFound, Stale, Tampered
from appliance.crypto.artifacts import ArtifactWriter, manifest_digest
from appliance.jobs.runtime.orders import JobOrders
from appliance.jobs.runtime.reporter import MAX_LINE
from tests.fakes.job_context import FakeJob

MODEL = "projects/p/models/m/versions/1"


@pytest.fixture
def job(tmp_path: Path) -> FakeJob:
    job = FakeJob(tmp_path, "quantize", {"model": MODEL, "scheme": "SCHEME_W8A8_INT8"}, epoch=3)
    job.add_input(MODEL, "model", {"config.json": {"layers": 2}})
    job.add_output("model", "projects/p/models/small/versions/1")
    job.add_output("checkpoints")
    return job


def save(job: FakeJob, *steps: int) -> None:
    for step in steps:
        job.context().checkpoints().save(step, lambda writer: writer.write_json("a.json", step))  # noqa: B023  # called at once


def folder(job: FakeJob, epoch: int) -> Path:
    series = job.folder / "objects" / job.orders["outputs"]["checkpoints"]["folder"]
    return series / f"e{epoch}"


def steps(job: FakeJob, epoch: int | None = None) -> list[str]:
    return sorted(path.name for path in folder(job, epoch or job.orders["epoch"]).iterdir())


def test_reads_an_input_and_reports_an_output(job: FakeJob) -> None:
    context = job.context()
    assert context.spec.model == MODEL
    assert context.input(MODEL).read_json("config.json") == {"layers": 2}
    writer = context.output("model")
    writer.write_json("config.json", {"layers": 1})
    writer.finish({"format": "int8"})
    assert job.output("model").read_json("config.json") == {"layers": 1}
    assert job.lines("output")[0]["facts"] == {"format": "int8"}


def test_an_input_that_was_not_ordered_is_refused(job: FakeJob) -> None:
    with pytest.raises(InvalidInput):
        job.context().input("projects/p/models/other/versions/1")
    with pytest.raises(InvalidInput):
        job.context().output("dataset")


@pytest.mark.attack
def test_a_rolled_back_input_is_refused(job: FakeJob) -> None:
    job.orders["inputs"][MODEL]["digest"] = "0" * 64
    with pytest.raises(Stale):
        job.context().input(MODEL)


@pytest.mark.attack
@pytest.mark.parametrize("folder", ["../other", "p/../../etc", "p//x", "/etc", "."])
def test_a_folder_outside_the_store_is_refused(job: FakeJob, folder: str) -> None:
    job.orders["inputs"][MODEL]["folder"] = folder
    with pytest.raises(InvalidInput):
        job.context().input(MODEL)


def test_only_rank_0_speaks_and_any_rank_may_report_an_error(job: FakeJob) -> None:
    job.orders |= {"world_size": 2, "local_ranks": 2, "devices": [0, 1]}
    other = job.context(rank=1)
    other.report.progress(1, 2, loss=3.0)
    other.report.error("INVALID_INPUT", "wrong")
    job.context().report.progress(1, 2, "training", loss=float("nan"), rate=2.0)
    assert job.lines() == [
        {"type": "error", "reason": "INVALID_INPUT", "message": "wrong"},
        {
            "type": "progress",
            "step": 1,
            "total": 2,
            "message": "training (loss not finite)",
            "metrics": {"rate": 2.0},
        },
    ]


def test_a_report_longer_than_a_pipe_takes_whole_is_refused(job: FakeJob) -> None:
    with pytest.raises(InvalidInput):
        job.context().report.event("x", text="a" * MAX_LINE)
    assert job.lines() == []


def test_of_what_nobody_has_heard_of_the_last_four_are_kept(job: FakeJob) -> None:
    assert job.context().checkpoints().latest() is None
    save(job, 1, 2, 3, 4)
    # What the control plane has put on record, and so signed, is not the rank's to delete.
    (folder(job, 3) / "step-00000001" / "manifest.sig").write_bytes(b"s" * 64)
    save(job, 5, 6, 7, 8)
    assert steps(job) == [f"step-0000000{step}" for step in (1, 5, 6, 7, 8)]
    assert latest(job) == (8, 8)
    assert [line["step"] for line in job.lines("checkpoint")] == list(range(1, 9))


def test_a_checkpoint_without_manifest_is_not_there_and_is_removed(job: FakeJob) -> None:
    save(job, 1, 2)
    (folder(job, 3) / "step-00000002" / "manifest.json").unlink()
    assert latest(job) == (1, 1)
    assert steps(job) == ["step-00000001"]


def test_a_failed_save_leaves_the_checkpoint_before(job: FakeJob) -> None:
    save(job, 1)

    def fails(writer: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        job.context().checkpoints().save(2, fails)
    assert latest(job) == (1, 1)


@pytest.mark.attack
def test_a_changed_checkpoint_is_an_error(job: FakeJob) -> None:
    save(job, 1, 2)
    manifest = folder(job, 3) / "step-00000002" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"step":2', b'"step":9'))
    with pytest.raises(Tampered):
        job.context().checkpoints().latest()


def resumed(job: FakeJob, epoch: int, step: int) -> FakeJob:
    """The same job under its next epoch, which is told to go on from this checkpoint."""
    digest = next(line["digest"] for line in job.lines("checkpoint") if line["step"] == step)
    job.orders["resume"] = {"step": step, "digest": digest, "epoch": job.orders["epoch"]}
    job.orders["epoch"] = epoch
    return job


def latest(job: FakeJob) -> tuple[int, object]:
    found = job.context().checkpoints().latest()
    assert found is not None
    return found[0], found[1].read_json("a.json")


def test_a_start_goes_on_from_the_checkpoint_that_it_was_told(job: FakeJob) -> None:
    save(job, 1, 2)
    resumed(job, 4, 1)
    assert latest(job) == (1, 1)
    assert job.context().checkpoints().newest_step() == 1
    # Ranks that start again within the epoch go on from its own newest.
    save(job, 5, 6)
    assert latest(job) == (6, 6)
    assert job.context().checkpoints().newest_step() == 6
    assert steps(job) == ["step-00000005", "step-00000006"]
    assert steps(job, 3) == ["step-00000001", "step-00000002"]


@pytest.mark.attack
def test_what_an_older_epoch_saves_later_changes_nothing_for_the_newer(job: FakeJob) -> None:
    save(job, 4)
    old = job.context().checkpoints()
    resumed(job, 4, 4)
    save(job, 5)
    new = job.context().checkpoints()
    for step in (5, 6, 7):
        old.save(step, lambda writer: writer.write_json("a.json", "old"))
    found = new.latest()
    assert found is not None
    assert (found[0], found[1].read_json("a.json")) == (5, 5)
    assert steps(job) == ["step-00000005"]


def test_a_checkpoint_of_release_0_1_0_is_gone_on_from(job: FakeJob) -> None:
    save(job, 8)
    place = job.orders["outputs"]["checkpoints"]
    series = job.context().checkpoints().series
    writer = ArtifactWriter(
        job.store.fs,
        job.store.path(f"{place['folder']}/step-00000008"),
        series.key,
        series.project,
        f"{place['object']}/step-00000008",
        epoch=3,
    )
    writer.write_json("a.json", "of 0.1.0")
    digest = manifest_digest(writer.finish({"step": 8}))
    job.orders["resume"] = {"step": 8, "digest": digest}
    job.orders["epoch"] = 4
    assert latest(job) == (8, "of 0.1.0")


@pytest.mark.attack
def test_checkpoints_rolled_back_below_the_record_are_refused(job: FakeJob) -> None:
    save(job, 1, 2)
    resumed(job, 4, 2)
    shutil.rmtree(folder(job, 3) / "step-00000002")
    with pytest.raises(Stale):
        job.context().checkpoints().latest()


@pytest.mark.attack
def test_another_checkpoint_under_the_recorded_step_is_refused(job: FakeJob) -> None:
    save(job, 1, 2)
    save(job, 2)
    resumed(job, 4, 2)
    with pytest.raises(Stale):
        job.context().checkpoints().latest()


def test_a_job_told_to_stop_saves_and_finishes_nothing_more(job: FakeJob) -> None:
    writer = job.context().output("model")
    writer.write_json("config.json", {})
    job.stop = True
    with pytest.raises(LeaseLost):
        job.context().fence()
    with pytest.raises(LeaseLost):
        save(job, 1)
    with pytest.raises(LeaseLost):
        writer.finish()
    with pytest.raises(NotFound):
        job.context().input(MODEL).read_bytes("none")


def test_orders_show_no_key(job: FakeJob) -> None:
    key = job.orders["inputs"][MODEL]["key"]
    raw = base64.b64decode(key)
    orders = JobOrders.parse(job.document())
    assert orders.inputs[MODEL].key == raw
    assert key not in repr(orders)
    assert repr(raw) not in repr(orders)
    assert repr(raw) not in repr(job.context())


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "dance"},
        {"spec": {"modle": "x"}},
        {"devices": []},
        {"world_size": 0},
        {"inputs": {"x": {"key": "?"}}},
        {"epoch": "one"},
    ],
)
def test_wrong_orders_are_refused_whole(job: FakeJob, change: dict[str, object]) -> None:
    job.orders |= change
    with pytest.raises(InvalidInput):
        JobOrders.parse(job.document())
    with pytest.raises(InvalidInput):
        JobOrders.parse(b"{}")
