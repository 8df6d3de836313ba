"""A commit that cannot succeed says why, and can be ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from appliance.api.data.v1 import upload_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.services.data.storage_tasks import TaskKind
from appliance.control.services.data.upload_parts import MAX_DAYS
from appliance.control.store import objects, tables
from appliance.core.errors import FailedPrecondition, StoreFull
from appliance.core.identity import Principal, PrincipalKind
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
    task = lab.work.tasks.take(TaskKind)
    assert task is not None
    with pytest.raises(FailedPrecondition, match="becomes a version now"):
        lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=upload.name))
    lab.work.tasks.failed(task, "no")
    lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=upload.name))


def test_it_ends_after_a_month(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck(lab, monkeypatch, FULL)
    lab.time.seconds += MAX_DAYS.total_seconds() + DAY - 1
    lab.look()
    assert len(lab.rows(tables.upload)) == 1
    lab.time.seconds += 120
    lab.look()
    assert left(lab) == []


@pytest.mark.attack
def test_an_upload_leaves_room_in_which_it_can_be_aborted(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state and the audit log may lie on the same disk."""
    files = tiny_model.files()
    upload = begin(lab, MODEL, [(file, len(data)) for file, data in files.items()])
    for number, data in enumerate(files.values()):
        send(lab, upload.name, number, data)
    other = begin(lab, MODEL, [(file, len(data)) for file, data in files.items()])
    monkeypatch.setattr(objects.ObjectStore, "free_bytes", lambda _: objects.MIN_FREE - 1)
    with pytest.raises(StoreFull, match="less than 256 MiB left"):
        send(lab, other.name, 0, next(iter(files.values())))
    assert [path for path in lab.objects.rglob("*.partial") if path.is_file()] == []
    # What is sealed again to become a version takes no more either.
    commit(lab, upload.name, list(files.values()))
    lab.work.storage.do_all()
    assert "less than 256 MiB left" in lab.uploads.get(ALICE, upload.name).message
    for each in (upload, other):
        lab.uploads.abort(ALICE, rpc.AbortUploadRequest(name=each.name))
    assert left(lab) == []


def test_what_a_locked_account_has_open_goes(lab: Lab) -> None:
    files = [(file, len(data)) for file, data in tiny_model.files().items()]
    begin(lab, MODEL, files)
    bob = replace(ALICE, principal=Principal(PrincipalKind.USER, "bob"))
    with lab.database.write() as transaction:
        for name in ("alice", "bob"):
            user = {"id": name, "password_hash": "none", "create_time": lab.time.wall()}
            existing = transaction.first(tables.user.select().where(tables.user.c.id == name))
            if existing is None:
                transaction.run(tables.user.insert().values(**user))
        transaction.run(
            tables.upload.update().values(principal=bob.principal.subject, creator="users/bob")
        )
    kept = begin(lab, MODEL, files)
    lab.look()
    assert len(lab.rows(tables.upload)) == 2
    with lab.database.write() as transaction:
        transaction.run(tables.user.update().where(tables.user.c.id == "bob").values(locked=True))
    lab.time.seconds += 61
    lab.look()
    assert [row.uid for row in lab.rows(tables.upload)] == [kept.name.rpartition("/")[2]]
