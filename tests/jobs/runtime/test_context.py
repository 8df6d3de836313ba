"""Sealed ways in and out of a job, reports, and the row of checkpoints."""

import base64
import shutil
from pathlib import Path

import pytest

from appliance.core.errors import InvalidInput, LeaseLost, NotFound, Stale, Tampered
from appliance.jobs.runtime.orders import Orders
from appliance.jobs.runtime.reporter import LONGEST_LINE
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


def steps(job: FakeJob) -> list[str]:
    folder = job.folder / "objects" / job.orders["outputs"]["checkpoints"]["folder"]
    return sorted(path.name for path in folder.iterdir())


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
        job.context().report.event("x", text="a" * LONGEST_LINE)
    assert job.lines() == []


def test_the_last_two_checkpoints_are_kept(job: FakeJob) -> None:
    assert job.context().checkpoints().latest() is None
    save(job, 1, 2, 3)
    assert steps(job) == ["step-00000002", "step-00000003"]
    latest = job.context().checkpoints().latest()
    assert latest is not None
    assert latest[0] == 3
    assert latest[1].read_json("a.json") == 3
    assert [line["step"] for line in job.lines("checkpoint")] == [1, 2, 3]


def test_a_checkpoint_without_manifest_is_not_there_and_is_removed(job: FakeJob) -> None:
    save(job, 1, 2)
    folder = job.folder / "objects" / job.orders["outputs"]["checkpoints"]["folder"]
    (folder / "step-00000002" / "manifest.json").unlink()
    latest = job.context().checkpoints().latest()
    assert latest is not None
    assert latest[0] == 1
    assert steps(job) == ["step-00000001"]


def test_a_failed_save_leaves_the_checkpoint_before(job: FakeJob) -> None:
    save(job, 1)

    def fails(writer: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        job.context().checkpoints().save(2, fails)
    latest = job.context().checkpoints().latest()
    assert latest is not None
    assert latest[0] == 1


@pytest.mark.attack
def test_a_changed_checkpoint_is_an_error(job: FakeJob) -> None:
    save(job, 1, 2)
    folder = job.folder / "objects" / job.orders["outputs"]["checkpoints"]["folder"]
    manifest = folder / "step-00000002" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"step":2', b'"step":9'))
    with pytest.raises(Tampered):
        job.context().checkpoints().latest()


@pytest.mark.attack
def test_checkpoints_rolled_back_below_the_record_are_refused(job: FakeJob) -> None:
    save(job, 1, 2)
    folder = job.folder / "objects" / job.orders["outputs"]["checkpoints"]["folder"]
    shutil.rmtree(folder / "step-00000002")
    job.orders["resume"] = {"step": 2, "digest": job.lines("checkpoint")[1]["digest"]}
    with pytest.raises(Stale):
        job.context().checkpoints().latest()


@pytest.mark.attack
def test_another_checkpoint_under_the_recorded_step_is_refused(job: FakeJob) -> None:
    save(job, 1, 2)
    old = job.lines("checkpoint")[1]["digest"]
    save(job, 2)
    job.orders["resume"] = {"step": 2, "digest": old}
    with pytest.raises(Stale):
        job.context().checkpoints().latest()


@pytest.mark.attack
def test_an_older_epoch_cannot_save_beside_a_newer(job: FakeJob) -> None:
    save(job, 4)
    job.orders["epoch"] = 2
    with pytest.raises(LeaseLost):
        save(job, 5)
    assert steps(job) == ["step-00000004"]


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
    orders = Orders.parse(job.document())
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
        Orders.parse(job.document())
    with pytest.raises(InvalidInput):
        Orders.parse(b"{}")
