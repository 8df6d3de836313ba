"""What holds data is deleted when nothing uses it, and its name is free for something else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import update

from appliance.api.data.v1 import dataset_pb2, tombstone_pb2, upload_pb2
from appliance.api.data.v1 import dataset_service_pb2 as datasets
from appliance.api.data.v1 import download_service_pb2 as downloads
from appliance.api.data.v1 import tokenizer_service_pb2 as tokenizers
from appliance.api.data.v1 import tombstone_service_pb2 as tombstone_calls
from appliance.api.data.v1 import upload_service_pb2 as uploads
from appliance.api.jobs.v1 import job_pb2
from appliance.api.jobs.v1 import job_service_pb2 as jobs
from appliance.api.models.v1 import model_pb2
from appliance.api.models.v1 import model_service_pb2 as models
from appliance.api.projects.v1 import project_service_pb2 as projects
from appliance.control.services.data.downloads import LOOK_SECONDS
from appliance.control.services.data.tokenizers import Tokenizers
from appliance.control.services.data.tombstones import Tombstones
from appliance.control.services.data.uses import SHOWN
from appliance.control.store import tables
from appliance.core.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    Tampered,
)
from appliance.core.jobs import JobState
from appliance.crypto import statements
from tests.control.deletions.test_erasing import events
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, PROJECT, Lab, prepared_files

DATASET = "projects/demo/datasets/raw"
MODEL = "projects/demo/models/base"
UUID = "123e4567-e89b-42d3-a456-426614174000"
OTHER_UUID = "123e4567-e89b-42d3-a456-426614174001"


def drop(lab: Lab, name: str, **more: Any) -> tombstone_pb2.Deletion:
    """Delete a dataset, a model, or a version of one."""
    service: Any = lab.datasets if "/datasets/" in name else lab.models
    calls: Any = datasets if "/datasets/" in name else models
    noun = "Dataset" if "/datasets/" in name else "Model"
    delete = service.delete
    if "/versions/" in name:
        noun, delete = f"{noun}Version", service.delete_version
    made: tombstone_pb2.Deletion = delete(
        ALICE, getattr(calls, f"Delete{noun}Request")(name=name, **more)
    )
    return made


def tombstones(lab: Lab) -> Tombstones:
    return Tombstones(lab.database, lab.base.keyring.manifest_sign.verify_key)


def why_not(lab: Lab, name: str, **more: Any) -> str:
    before = lab.rows(tables.artifact_version)
    with pytest.raises(FailedPrecondition) as raised:
        drop(lab, name, **more)
    assert lab.rows(tables.artifact_version) == before
    return raised.value.message


# --- what goes, and what stays ------------------------------------------------------------------


def test_a_dataset_goes_with_its_versions_and_its_name_begins_anew(lab: Lab) -> None:
    first, second = lab.text(), lab.text()
    rows = [lab.version_row(name) for name in (first, second)]
    gone = drop(lab, DATASET)
    assert (gone.versions, gone.size_bytes) == (2, sum(row.size_bytes for row in rows))
    assert gone.tombstones == [f"projects/demo/tombstones/{row.uid}" for row in reversed(rows)]
    for table in (tables.artifact, tables.artifact_version, tables.version_key):
        assert lab.rows(table) == []
    with pytest.raises(NotFound):
        drop(lab, DATASET)
    assert lab.text() == f"{DATASET}/versions/1"
    assert lab.version_row(first).uid not in {row.uid for row in rows}
    deleted = events(lab, "artifact.deleted")
    assert [each["details"]["made"]["versions"] for each in deleted] == [
        {row.uid: row.manifest_digest for row in rows}
    ]


def test_no_number_of_a_dataset_is_given_twice_while_it_is_there(lab: Lab) -> None:
    lab.text()
    second = lab.text()
    assert drop(lab, second).versions == 1
    assert lab.datasets.get(ALICE, DATASET).latest_version == f"{DATASET}/versions/1"
    assert lab.text() == f"{DATASET}/versions/3"
    # Also when none is left.
    drop(lab, f"{DATASET}/versions/1")
    drop(lab, f"{DATASET}/versions/3")
    assert lab.datasets.get(ALICE, DATASET).latest_version == ""
    assert lab.text() == f"{DATASET}/versions/4"


def test_what_would_go_is_said_without_a_change(lab: Lab) -> None:
    lab.text()
    would = drop(lab, DATASET, validate_only=True)
    assert would.versions == 1
    assert len(lab.rows(tables.artifact_version)) == 1
    assert lab.rows(tables.tombstone) == lab.rows(tables.storage_task) == []
    assert events(lab, "artifact.deleted") == []
    assert would.etag == lab.datasets.get(ALICE, DATASET).etag
    # What came after the question stays.
    lab.text()
    with pytest.raises(Conflict, match="has changed since you read it"):
        drop(lab, DATASET, etag=would.etag)
    assert drop(lab, DATASET, etag=lab.datasets.get(ALICE, DATASET).etag).versions == 2


def test_the_uid_of_a_version_is_its_etag(lab: Lab) -> None:
    name = lab.text()
    with pytest.raises(Conflict):
        drop(lab, name, etag="another")
    assert drop(lab, name, etag=lab.version_row(name).uid).versions == 1


@pytest.mark.attack
def test_a_name_of_something_else_is_not_deleted_with_this_right(lab: Lab) -> None:
    model = lab.model()
    for request in (
        datasets.DeleteDatasetRequest(name=MODEL),
        datasets.DeleteDatasetVersionRequest(name=model),
    ):
        delete = lab.datasets.delete if request.name == MODEL else lab.datasets.delete_version
        with pytest.raises(InvalidInput):
            delete(ALICE, request)  # type: ignore[arg-type]  # each with its own
    assert len(lab.rows(tables.artifact_version)) == 1


def test_descriptions_change_with_mask_and_etag(lab: Lab) -> None:
    lab.text()
    found = lab.datasets.get(ALICE, DATASET)
    mask = FieldMask(paths=["description"])
    changed = lab.datasets.update(
        ALICE,
        datasets.UpdateDatasetRequest(
            dataset=dataset_pb2.Dataset(name=DATASET, description="new", etag=found.etag),
            update_mask=mask,
        ),
    )
    assert (changed.description, changed.etag != found.etag) == ("new", True)
    assert lab.datasets.get(ALICE, DATASET) == changed
    with pytest.raises(Conflict):
        lab.datasets.update(
            ALICE,
            datasets.UpdateDatasetRequest(
                dataset=dataset_pb2.Dataset(name=DATASET, etag=found.etag), update_mask=mask
            ),
        )
    lab.model()
    model = model_pb2.Model(name=MODEL, description="x" * 1001)
    with pytest.raises(InvalidInput, match=r"model\.description is longer"):
        lab.models.update(ALICE, models.UpdateModelRequest(model=model, update_mask=mask))
    model.description = ""
    made = lab.models.update(ALICE, models.UpdateModelRequest(model=model, update_mask=mask))
    assert made.description == ""


# --- what is in use -----------------------------------------------------------------------------


def test_what_an_endpoint_serves_stays_and_the_endpoint_is_named(lab: Lab) -> None:
    model = lab.model()
    lab.model()
    for number in range(SHOWN + 2):
        with lab.database.write() as transaction:
            transaction.run(
                tables.endpoint.insert().values(
                    uid=f"e{number}",
                    project=PROJECT,
                    id=f"chat-{number}",
                    model_version=lab.version_row(model).uid,
                    replicas=1,
                    tensor_parallel=1,
                    max_sequence_length=8,
                    cache_bytes=8,
                    state="STOPPING",
                    creator="users/alice",
                    create_time=lab.time.wall(),
                )
            )
    for name in (model, MODEL):
        said = why_not(lab, name)
        assert "endpoints/chat-0 serves projects/demo/models/base/versions/1" in said
        assert "`appliance endpoint delete chat-0`" in said
        assert "and 2 more endpoints" in said
    # An endpoint that changes has replicas of another version too.
    second, replica = lab.version_row(f"{MODEL}/versions/2"), tables.replica
    with lab.database.write() as transaction:
        values = {"endpoint": "e0", "id": "r0", "state": "DRAINING", "model_version": second.uid}
        transaction.run(replica.insert().values(**values))
    assert f"endpoints/chat-0 serves {MODEL}/versions/2" in why_not(lab, f"{MODEL}/versions/2")
    with lab.database.write() as transaction:
        transaction.run(replica.delete())
    assert drop(lab, f"{MODEL}/versions/2").versions == 1


@pytest.mark.parametrize(
    "state", [JobState.QUEUED, JobState.RUNNING, JobState.PAUSING, JobState.PAUSED]
)
async def test_what_a_job_reads_stays_until_it_has_ended(lab: Lab, state: JobState) -> None:
    await lab.connected("n1")
    name = lab.tokens("raw")
    lab.train(dataset=name)
    job = tables.job
    with lab.database.write() as transaction:
        transaction.run(update(job).values(state=state))
    for wanted in (name, DATASET):
        said = why_not(lab, wanted)
        assert f"projects/demo/jobs/t1 is {state} and reads {name}" in said
        assert "`appliance job cancel t1`" in said
    with lab.database.write() as transaction:
        transaction.run(update(job).values(state=JobState.CANCELLED))
    assert drop(lab, DATASET).versions == 1


async def test_what_a_job_makes_a_version_of_stays(lab: Lab) -> None:
    await lab.connected("n1")
    lab.model("m-t1")
    lab.train()
    said = why_not(lab, "projects/demo/models/m-t1")
    assert "jobs/t1 is QUEUED and makes a version of projects/demo/models/m-t1" in said
    # A version of it is no part of that.
    assert drop(lab, "projects/demo/models/m-t1/versions/1").versions == 1


def test_an_open_upload_is_named_with_who_began_it(lab: Lab) -> None:
    lab.text()
    upload = lab.uploads.create(
        ALICE,
        uploads.CreateUploadRequest(
            parent="projects/demo", upload=upload_pb2.Upload(artifact=DATASET)
        ),
    )
    said = why_not(lab, DATASET)
    assert f"{upload.name} of users/alice is open" in said
    lab.uploads.abort(ALICE, uploads.AbortUploadRequest(name=upload.name))
    assert drop(lab, DATASET).versions == 1


def test_an_upload_that_became_a_version_does_not_name_another_one_later(lab: Lab) -> None:
    name = lab.text()
    row = {
        "uid": "f" * 32,
        "project": PROJECT,
        "kind": "dataset",
        "artifact": "raw",
        "principal": "user:alice",
        "creator": "users/alice",
        "state": "COMMITTED",
        "version": lab.version_row(name).uid,
        "version_name": name,
        "create_time": lab.time.wall(),
        "expire_time": lab.time.wall(),
    }
    with lab.database.write() as transaction:
        transaction.run(tables.upload.insert().values(**row))
    drop(lab, name)
    assert lab.rows(tables.upload) == []


def test_an_upload_in_one_stream_is_said_too(lab: Lab) -> None:
    lab.text()
    intake = lab.datasets.begin_upload(ALICE, datasets.UploadDatasetVersionRequest(parent=DATASET))
    assert f"users/alice sends a version of {DATASET} now" in why_not(lab, DATASET)
    intake.abort()
    assert drop(lab, DATASET).versions == 1


def test_a_tokenizer_stays_while_there_are_tokens_of_it(lab: Lab) -> None:
    tokenizer = lab.version("tokenizer", "words", {"tokenizer.json": b"{}"}, {})
    tokens = lab.tokens(tokenizer=tokenizer)
    service = Tokenizers(lab.database, lab.work.deletions)
    request = tokenizers.DeleteTokenizerRequest(name=tokenizer)
    with pytest.raises(FailedPrecondition, match=f"{tokens} has tokens of it"):
        service.delete(ALICE, request)
    drop(lab, tokens)
    assert service.delete(ALICE, request).versions == 1
    # Its name is free at once.
    assert lab.version("tokenizer", "words", {"tokenizer.json": b"{}"}, {}) == tokenizer


@pytest.mark.attack
async def test_users_that_the_caller_may_not_list_are_counted_and_not_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.connected("n1")
    name = lab.tokens("raw")
    lab.train("secret-job", dataset=name)
    policy = lab.base.policies.current()
    allowed = policy.allowed

    def without_jobs(who: Any, where: str, permission: str) -> bool:
        return permission != "jobs.list" and allowed(who, where, permission)

    monkeypatch.setattr(policy, "allowed", without_jobs)
    said = why_not(lab, name)
    assert "jobs: 1 that you may not list" in said
    assert "secret-job" not in said


# --- a name that is used again is another thing -------------------------------------------------


async def test_an_old_job_never_reads_what_has_the_name_now(lab: Lab) -> None:
    name = lab.tokens("raw")
    node, work = await lab.started(dataset=name)
    uid = lab.version_row(name).uid
    assert node.keys(work).inputs[0].object == uid
    node.fail(work, "FAILED_PRECONDITION")
    assert lab.job().state == job_pb2.Job.STATE_FAILED
    drop(lab, DATASET)
    assert lab.tokens("raw") == name
    request = jobs.ResumeJobRequest(name="projects/demo/jobs/t1")
    with pytest.raises(FailedPrecondition, match=f"reads {name}, which was deleted"):
        lab.jobs.resume(ALICE, request)
    # Also when it gets as far as to ask for keys.
    with lab.database.write() as transaction:
        transaction.run(update(tables.job).values(state=JobState.RUNNING))
    lab.work.leases.grant(work.work, work.epoch, [], None)
    with pytest.raises((NotFound, Exception)) as raised:
        lab.release._job(work)
    assert isinstance(raised.value, NotFound)


async def test_a_queued_job_whose_input_is_gone_fails_and_says_which(lab: Lab) -> None:
    await lab.connected("n1")
    name = lab.tokens("raw")
    lab.train(dataset=name)
    with lab.database.write() as transaction:
        lab.work.artifacts.erase(transaction, [lab.version_row(name).uid])
    lab.tokens("raw")
    lab.look()
    job = lab.job()
    assert job.state == job_pb2.Job.STATE_FAILED
    assert f"{name}, which it reads, was deleted" in job.state_reason


def test_a_repeated_call_does_not_answer_for_what_was_deleted(lab: Lab) -> None:
    def create(identifier: str, request_id: str) -> dataset_pb2.Dataset:
        return lab.datasets.create(
            ALICE,
            datasets.CreateDatasetRequest(
                parent="projects/demo", dataset_id=identifier, request_id=request_id
            ),
        )

    first, other = create("raw", UUID), create("raw2", OTHER_UUID)
    assert create("raw", UUID) == first
    lab.forward(1)
    delete = "123e4567-e89b-42d3-a456-426614174002"
    gone = drop(lab, DATASET, request_id=delete)
    made = create("raw", UUID)
    assert made.create_time != first.create_time
    # A repeated deletion is the first one, and the answers of others stay.
    assert drop(lab, DATASET, request_id=delete) == gone
    assert lab.datasets.get(ALICE, DATASET) == made
    assert create("raw2", OTHER_UUID) == other


def test_a_download_under_way_ends(lab: Lab) -> None:
    lab.allow_downloads()
    name = lab.version("model", "base", {"a.bin": bytes(3 << 20)}, {})
    caller = dataclasses.replace(ALICE, notes={})
    parts = lab.downloads.model(caller, downloads.DownloadModelVersionRequest(name=name))
    next(parts)
    drop(lab, name)
    lab.model()
    lab.time.seconds += LOOK_SECONDS
    with pytest.raises(NotFound, match="was deleted while it was downloaded"):
        list(parts)


# --- tombstones ---------------------------------------------------------------------------------


async def test_the_lineage_of_a_model_resolves_through_tombstones(lab: Lab) -> None:
    raw = lab.text()
    uid = lab.version_row(raw).uid
    node = await lab.connected("n1")
    node.say_lacks({"prepare": ""})
    await node.connect()
    spec = job_pb2.PrepareSpec(
        datasets=[raw],
        output_dataset="projects/demo/datasets/clean",
        output_tokenizer="projects/demo/tokenizers/words",
    )
    lab.jobs.create(
        ALICE,
        jobs.CreateJobRequest(parent="projects/demo", job_id="p1", job=job_pb2.Job(prepare=spec)),
    )
    lab.look()
    await node.take()
    node.succeed(node.started[0].work, prepared_files())
    made = lab.datasets.get_version(ALICE, "projects/demo/datasets/clean/versions/1")
    assert (list(made.inputs), list(made.input_uids)) == ([raw], [uid])
    drop(lab, DATASET)
    lab.text()
    found = tombstones(lab).get(ALICE, f"projects/demo/tombstones/{uid}")
    assert (found.deleted, found.uid, found.deleter) == (raw, uid, "users/alice")
    # What was signed of the version that is there names the same one.
    row = lab.version_row(made.name)
    key = lab.base.keyring.manifest_sign.verify_key
    stated = statements.verify(key, row.statement, made.name, row.manifest_digest)["predicate"]
    assert stated["inputs"] == [
        {"name": raw, "uid": uid, "digest": {"sha256": found.manifest_digest}}
    ]
    # And that one leaves a tombstone with its own lineage.
    drop(lab, made.name)
    gone = tombstones(lab).get(ALICE, f"projects/demo/tombstones/{made.uid}")
    assert (list(gone.input_uids), gone.job) == ([uid], "projects/demo/jobs/p1")
    assert gone.statement == row.statement


def test_tombstones_come_in_pages_newest_first(lab: Lab) -> None:
    uids = []
    for number in range(5):
        name = lab.text(f"d{number}")
        uids.append(lab.version_row(name).uid)
        drop(lab, name)
        lab.forward(number % 2)
    found: list[tombstone_pb2.Tombstone] = []
    token = ""
    while True:
        page = tombstones(lab).list(
            ALICE,
            tombstone_calls.ListTombstonesRequest(
                parent="projects/demo", page_size=2, page_token=token
            ),
        )
        found += page.tombstones
        token = page.next_page_token
        if not token:
            break
    assert sorted(each.uid for each in found) == sorted(uids)
    times = [each.delete_time.ToDatetime() for each in found]
    assert times == sorted(times, reverse=True)
    assert not any(each.statement for each in found)


@pytest.mark.attack
def test_a_statement_of_another_version_is_no_tombstone(lab: Lab) -> None:
    name, other = lab.text(), lab.text("other")
    statement = lab.version_row(other).statement
    uid = lab.version_row(name).uid
    drop(lab, name)
    with lab.database.write() as transaction:
        transaction.run(update(tables.tombstone).values(statement=statement))
    with pytest.raises(Tampered):
        tombstones(lab).get(ALICE, f"projects/demo/tombstones/{uid}")


# --- projects -----------------------------------------------------------------------------------


def project_gone(lab: Lab, **more: Any) -> Any:
    return lab.projects.delete(ALICE, projects.DeleteProjectRequest(name="projects/demo", **more))


async def test_a_project_with_something_in_it_stays_and_names_it(lab: Lab) -> None:
    await lab.connected("n1")
    for name in ("a1", "a2", "a3", "a4", "a5"):
        lab.tokens(name)
    lab.model()
    lab.train(dataset="projects/demo/datasets/a1/versions/1")
    with lab.database.write() as transaction:
        transaction.run(
            tables.service_account.insert().values(
                id="demo--app", project=PROJECT, create_time=lab.time.wall()
            )
        )
    with pytest.raises(FailedPrecondition) as raised:
        project_gone(lab)
    said = raised.value.message
    assert "datasets/a1, datasets/a2, datasets/a3 and 2 more datasets" in said
    assert "models/base; jobs/t1; serviceAccounts/demo--app" in said


def test_an_empty_project_goes_and_its_name_is_free(lab: Lab) -> None:
    drop(lab, lab.text())
    drop(lab, DATASET)
    drop(lab, lab.version("model", "base", tiny_model.files(), {}))
    drop(lab, MODEL)
    assert len(lab.rows(tables.tombstone)) == 2
    assert project_gone(lab).tombstones == 2
    for table in (tables.project, tables.project_key, tables.tombstone, tables.upload):
        assert lab.rows(table) == []
    assert not any(row.domain == PROJECT for row in lab.rows(tables.binding))
    lab.work.storage.do_all()
    lab.work.erasures.do_all()
    lab.project()
    assert lab.text() == f"{DATASET}/versions/1"


@pytest.mark.attack
def test_a_project_that_has_the_name_now_does_not_have_the_etag(lab: Lab) -> None:
    lab.projects.create(ALICE, projects.CreateProjectRequest(project_id="next"))
    first = lab.projects.get(ALICE, "projects/next")
    gone = projects.DeleteProjectRequest(name="projects/next", etag=first.etag)
    lab.projects.delete(ALICE, gone)
    lab.forward(1)
    lab.projects.create(ALICE, projects.CreateProjectRequest(project_id="next"))
    with pytest.raises(Conflict):
        lab.projects.delete(ALICE, gone)


def test_bindings_go_with_their_project(lab: Lab) -> None:
    with lab.database.write() as transaction:
        transaction.run(
            tables.binding.insert().values(
                id="b1",
                subject="user:bob",
                role="developer",
                domain=PROJECT,
                creator="users/alice",
                create_time=lab.time.wall(),
            )
        )
        lab.base.policies.changed(transaction)
    assert project_gone(lab, validate_only=True).bindings == 1
    assert len(lab.rows(tables.project)) == 1
    assert project_gone(lab).bindings == 1
    assert "user:bob" not in {row.subject for row in lab.rows(tables.binding)}
    assert lab.base.policies.cross_check()


def test_another_state_of_a_project_is_not_deleted(lab: Lab) -> None:
    with pytest.raises(Conflict):
        project_gone(lab, etag="another")
    with pytest.raises(NotFound):
        lab.projects.delete(ALICE, projects.DeleteProjectRequest(name="projects/none"))
    with pytest.raises(AlreadyExists):
        lab.projects.create(ALICE, projects.CreateProjectRequest(project_id=PROJECT))
