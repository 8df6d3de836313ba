"""A commit that cannot succeed says why, and can be ended."""

from __future__ import annotations

from datetime import timedelta

import pytest

from appliance.api.data.v1 import upload_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.services.upload_parts import MOST_DAYS
from appliance.control.store import tables
from appliance.core.errors import FailedPrecondition, StoreFull
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, PROJECT, Lab
from tests.fakes.parts import MODEL, begin, commit, send

DAY = timedelta(days=1).total_seconds()
FULL = StoreFull("no space is left for model.safetensors in the object store: free some")


def stuck(lab: Lab, monkeypatch: pytest.MonkeyPatch, error: Exception) -> upload_pb2.Upload:
    """An upload whose commit has failed once, and fails each time."""
    files = tiny_model.files()
    upload = begin(lab, MODEL, [(file, len(data)) for file, data in files.items()])
    for number, data in enumerate(files.values()):
        send(lab, upload.name, number, data)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(lab.work.upload_tasks, "_model", fail)
    commit(lab, upload.name, list(files.values()))
    lab.work.storage.do_all()
    return lab.uploads.get(ALICE, upload.name)


def left(lab: Lab) -> list[object]:
    lab.work.storage.do_all()
    project = lab.objects / PROJECT
    found = list(project.iterdir()) if project.exists() else []
    return [*lab.rows(tables.upload), *lab.rows(tables.artifact_version), *found]


@pytest.mark.parametrize("error", [FULL, KeyError("a bug")])
def test_it_says_why_and_is_aborted_by_its_owner(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    upload = stuck(lab, monkeypatch, error)
    assert upload.state == upload.STATE_COMMITTING
    expected = FULL.message if error is FULL else "an error in the control plane"
    assert upload.message.startswith(expected)
    assert "tried again at" in upload.message
    lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=upload.name))
    assert left(lab) == []
    lab.forward(120)
    assert left(lab) == []


def test_it_is_not_aborted_while_a_thread_makes_the_version(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = stuck(lab, monkeypatch, FULL)
    lab.forward(120)
    task = lab.work.tasks.take()
    assert task is not None
    with pytest.raises(FailedPrecondition, match="becomes a version now"):
        lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=upload.name))
    lab.work.tasks.failed(task, "no")
    lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=upload.name))


def test_it_ends_after_a_month(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck(lab, monkeypatch, FULL)
    lab.time.seconds += MOST_DAYS.total_seconds() + DAY - 1
    lab.look()
    assert len(lab.rows(tables.upload)) == 1
    lab.time.seconds += 120
    lab.look()
    assert left(lab) == []
