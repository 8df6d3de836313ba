"""Calls about one upload at the same time: each part is written once, and a commit ends it all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance.api.data.v1 import dataset_service_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.services.data import upload_folder, upload_ids, upload_parts
from appliance.control.services.data.storage_tasks import TaskKind
from appliance.core.errors import (
    PROGRESS,
    AlreadyExists,
    ApplianceError,
    Exhausted,
    FailedPrecondition,
    InvalidInput,
    Unavailable,
)
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, Lab
from tests.fakes.parts import DATASET, MODEL, batch, begin, commit, digest, pieces_of, send

ONE, TWO = batch(("a", "x")), batch(("b", "y"))
PART = 1000


@pytest.fixture(autouse=True)
def dataset(lab: Lab) -> None:
    request = dataset_service_pb2.CreateDatasetRequest(parent="projects/demo", dataset_id="raw")
    lab.datasets.create(ALICE, request)


def meanwhile(patch: pytest.MonkeyPatch, owner: Any, name: str, other: Callable[[], Any]) -> None:
    """Let another call come in just before the first call of a method."""
    real, first = getattr(owner, name), [True]

    def slow(*arguments: Any) -> Any:
        if first:
            first.clear()
            other()
        return real(*arguments)

    patch.setattr(owner, name, slow)


def test_a_part_that_came_while_it_is_looked_for_is_not_written_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its connection broke while it was made durable, and the client repeats it."""
    for module in ("upload_layout", "upload_parts", "upload_rows"):
        monkeypatch.setattr(f"appliance.control.services.data.{module}.PART_BYTES", PART)
    files = tiny_model.files()
    upload = begin(lab, MODEL, [(file, len(data)) for file, data in files.items()])
    parts = pieces_of(files, PART)
    last = len(parts) - 1
    for number, part in enumerate(parts[:last]):
        send(lab, upload.name, number, part)
    meanwhile(
        monkeypatch,
        upload_parts.UploadParts,
        "begin",
        lambda: send(lab, upload.name, last, parts[last]),
    )
    assert send(lab, upload.name, last, parts[last]).sha256 == digest(parts[last])
    commit(lab, upload.name, parts)
    lab.work.storage.do_all()
    assert lab.uploads.get(ALICE, upload.name).version == f"{MODEL}/versions/1"


def test_the_ids_of_a_part_that_came_meanwhile_are_its_own(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(lab)
    meanwhile(
        monkeypatch, upload_parts.UploadParts, "begin", lambda: send(lab, upload.name, 0, ONE)
    )
    assert send(lab, upload.name, 0, ONE).sha256 == digest(ONE)


def test_a_part_that_is_being_written_holds_up_the_commit_and_leaves_the_version_whole(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)
    raised: list[ApplianceError] = []

    def end() -> None:
        try:
            commit(lab, upload.name, [ONE])
        except ApplianceError as error:
            raised.append(error)
        lab.work.storage.do_all()

    meanwhile(monkeypatch, upload_folder.UploadFolder, "writer", end)
    with pytest.raises(InvalidInput, match="holds no document"):
        send(lab, upload.name, 1, b"")
    (error,) = raised
    assert isinstance(error, Unavailable)
    assert (error.retry_after, "part 1 is being written" in error.message) == (0.5, True)
    opens_with_one_part(lab, upload.name)


def test_no_part_begins_while_an_upload_is_committed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)
    raised: list[ApplianceError] = []

    def late() -> None:
        first = rpc.UploadPartRequest(name=upload.name, number=1, sha256=digest(TWO), data=TWO)
        try:
            lab.uploads.begin_part(ALICE, first)
        except ApplianceError as error:
            raised.append(error)

    meanwhile(monkeypatch, lab.work.tasks, "add", late)
    opens_with_one_part(lab, upload.name)
    assert [type(error) for error in raised] == [Unavailable]
    with pytest.raises(FailedPrecondition, match="takes no more parts"):
        send(lab, upload.name, 1, TWO)


def test_a_part_that_is_not_recorded_leaves_no_file(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)

    def full(*_: object) -> None:
        raise Exhausted("too much")

    with monkeypatch.context() as patch:
        patch.setattr(upload_parts.UploadParts, "record", full)
        with pytest.raises(Exhausted):
            send(lab, upload.name, 1, TWO)
    assert [path.name for path in lab.objects.rglob("part-*")] == ["part-00000.jsonl"]


def test_a_part_whose_end_could_not_be_looked_up_can_be_sent_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)
    first = rpc.UploadPartRequest(name=upload.name, number=1, sha256=digest(TWO), data=TWO)
    intake = lab.uploads.begin_part(ALICE, first)
    intake.close()

    def away() -> None:
        raise Unavailable("the state cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(lab.database, "read", away)
        with pytest.raises(Unavailable):
            intake.abort()
    send(lab, upload.name, 1, TWO)
    commit(lab, upload.name, [ONE, TWO])


def opens_with_one_part(lab: Lab, name: str) -> None:
    commit(lab, name, [ONE])
    lab.work.storage.do_all()
    done = lab.uploads.get(ALICE, name)
    assert done.version == f"{DATASET}/versions/1"
    assert lab.work.artifacts.open(lab.version_row(done.version)).files() == ["part-00000.jsonl"]


def test_nobody_waits_in_a_thread_while_ids_are_made_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)
    lab.restart()
    late = rpc.UploadPartRequest(name=upload.name, number=1, sha256=digest(TWO), data=TWO)
    sent = lab.uploads.begin_part(ALICE, late)
    raised: list[ApplianceError] = []

    def another() -> None:
        for call in (lambda: send(lab, upload.name, 2, batch(("c", "x"))), sent.close):
            try:
                call()
            except ApplianceError as error:
                raised.append(error)

    with monkeypatch.context() as patch:
        meanwhile(patch, upload_ids, "_compare", another)
        send(lab, upload.name, 3, batch(("d", "x")))
    assert [(type(each), each.retry_after) for each in raised] == [(Unavailable, 2.0)] * 2
    assert [PROGRESS in each.metadata for each in raised] == [True, True]
    sent.abort()
    send(lab, upload.name, 1, TWO)
    # A new upload has nothing to compare, so its first parts are taken at once.
    monkeypatch.setattr(upload_ids, "_compare", None)
    send(lab, begin(lab).name, 0, ONE)


def test_two_commits_are_taken_at_a_time_and_no_third(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread looks right after the first has taken one."""
    for number in range(3):
        upload = begin(lab)
        send(lab, upload.name, 0, batch((str(number), "x")))
        commit(lab, upload.name, [batch((str(number), "x"))])
    tasks, write, first = lab.work.tasks, lab.database.write, [True]
    taken: list[Any] = []

    @contextlib.contextmanager
    def then_others() -> Iterator[Any]:
        with write() as transaction:
            yield transaction
        if first:
            first.clear()
            taken.extend([tasks.take(TaskKind), tasks.take(TaskKind)])

    monkeypatch.setattr(lab.database, "write", then_others)
    taken.append(tasks.take(TaskKind))
    assert sum(task is not None for task in taken) == 2


def test_a_task_that_could_not_be_taken_is_taken_later(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(lab)
    send(lab, upload.name, 0, ONE)
    commit(lab, upload.name, [ONE])
    write = lab.database.write

    @contextlib.contextmanager
    def full() -> Iterator[Any]:
        with write() as transaction:
            yield transaction
            raise Exhausted("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(lab.database, "write", full)
        with pytest.raises(Exhausted):
            lab.work.tasks.take(TaskKind)
    assert lab.work.tasks.take(TaskKind) is not None


@pytest.mark.attack
def test_one_part_is_not_written_by_two_calls_at_a_time(lab: Lab) -> None:
    upload = begin(lab)
    first = rpc.UploadPartRequest(name=upload.name, sha256=digest(ONE), data=ONE)
    slow = lab.uploads.begin_part(ALICE, first)
    with pytest.raises(Unavailable, match="being written by another call"):
        send(lab, upload.name, 0, TWO)
    slow.close()
    slow.finish()
    slow.abort()
    with pytest.raises(AlreadyExists):
        send(lab, upload.name, 0, TWO)
