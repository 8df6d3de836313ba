"""Jobs that are changed and deleted, and what happened to them."""

from __future__ import annotations

import math

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import delete

from appliance.api.jobs.v1 import job_event_pb2, job_pb2
from appliance.api.jobs.v1 import job_service_pb2 as rpc
from appliance.control.services.fleet.leases import NODE_LOST_SECONDS
from appliance.control.services.work import job_events
from appliance.control.services.work.job_events import FIRST, MAX_EVENTS, Said
from appliance.control.store import tables
from appliance.core.errors import Conflict, FailedPrecondition, InvalidInput, NotFound
from appliance.core.names import Name
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, PROJECT, Lab, train_request

Job, Event = job_pb2.Job, job_event_pb2.JobEvent
JOB = f"projects/{PROJECT}/jobs/t1"
MODEL = {"model": tiny_model.files()}
ON_LOST = FieldMask(paths=["on_lost"])


def events(lab: Lab, **page: object) -> list[job_event_pb2.JobEvent]:
    request = rpc.ListJobEventsRequest(name=JOB, page_size=1000)
    request.MergeFrom(rpc.ListJobEventsRequest(**page))  # type: ignore[arg-type]  # its fields
    return list(lab.jobs.events(ALICE, request).events)


def kinds(lab: Lab) -> list[str]:
    return [Event.Kind.Name(each.kind).removeprefix("KIND_") for each in events(lab)]


async def queued(lab: Lab) -> None:
    """The job waits: its only node is gone."""
    node = await lab.connected("n1")
    lab.train("t1")
    node.disconnect()


def cancel(lab: Lab) -> None:
    lab.jobs.cancel(ALICE, rpc.CancelJobRequest(name=JOB))


def remove(lab: Lab, **more: str) -> job_pb2.Job:
    return lab.edits.delete(ALICE, rpc.DeleteJobRequest(name=JOB, **more))  # type: ignore[arg-type]


async def test_the_history_of_a_job_from_its_beginning_to_its_end(lab: Lab) -> None:
    node, work = await lab.started()
    node.progress(work, 1)
    node.save_checkpoint(work, 5)
    node.fail(work, "LEASE_LOST", "the node went away")
    lab.look()
    await node.take()
    second = node.started[-1].work
    node.progress(second, 6)
    node.succeed(second, MODEL)
    assert kinds(lab) == [
        "CREATED",
        "STARTED",
        "RUNNING",
        "STOPPED",
        "STARTED",
        "RUNNING",
        "REGISTERING",
        "SUCCEEDED",
    ]
    found = events(lab)
    assert (found[0].actor, found[0].epoch, found[0].number) == ("users/alice", 0, 1)
    first, again = found[1], found[4]
    (share,) = first.shares
    assert (share.node, share.first_rank, share.ranks, list(share.devices)) == (
        "nodes/n1",
        0,
        1,
        [0],
    )
    assert (first.epoch, first.checkpoint_step, first.message) == (1, 0, "begins anew")
    assert (again.epoch, again.checkpoint_step, again.message) == (2, 5, "goes on from step 5")
    assert found[3].message == "starts again: the node went away"
    assert list(found[7].outputs) == list(lab.job().outputs) != []
    assert [each.number for each in events(lab, page_size=3)] == [1, 2, 3]


async def test_the_history_says_who_paused_resumed_and_cancelled(lab: Lab) -> None:
    await queued(lab)
    lab.look()
    lab.look()
    lab.jobs.pause(ALICE, rpc.PauseJobRequest(name=JOB))
    lab.jobs.resume(ALICE, rpc.ResumeJobRequest(name=JOB))
    cancel(lab)
    assert kinds(lab) == ["CREATED", "WAITING", "PAUSED", "RESUMED", "CANCELLED"]
    waiting, *others = events(lab)[1:]
    assert (waiting.actor, waiting.message[:18]) == ("", "waiting for 1 rank")
    assert {each.actor for each in others} == {"users/alice"}


async def test_that_a_job_has_begun_is_no_sentence_that_stays(lab: Lab) -> None:
    node, work = await lab.started()
    node.report(job_progress={"work": work, "event": "started"})
    assert (lab.job().state, lab.job().state_reason) == (Job.STATE_RUNNING, "")
    again = "the ranks were started again at step 3, because a rank was killed by SIGKILL"
    node.report(job_progress={"work": work, "event": again, "restarts": 1})
    assert lab.job().state_reason == again
    assert kinds(lab)[-1] == "RANKS_RESTARTED"
    assert events(lab)[-1].message == again


async def test_of_a_long_history_the_first_and_the_newest_are_kept(lab: Lab) -> None:
    await queued(lab)
    uid = lab.job().uid
    with lab.database.write() as transaction:
        for number in range(2, MAX_EVENTS + 101):
            said = Said(f"event {number}")
            job_events.note(transaction, uid, job_events.STOPPED, 1, lab.time.wall(), said)
    numbers = [each.number for each in events(lab)]
    newest = MAX_EVENTS + 100
    assert numbers == [*range(1, FIRST + 1), *range(newest - MAX_EVENTS + FIRST + 1, newest + 1)]


async def test_how_long_a_running_job_waits_for_a_node_is_changed_at_once(lab: Lab) -> None:
    await lab.started()
    uid = lab.job().uid
    assert lab.work.leases.lost_seconds(uid) == NODE_LOST_SECONDS
    asked = Job(name=JOB, on_lost=job_pb2.OnLost(wait=True), etag=lab.job().etag)
    made = lab.edits.update(ALICE, rpc.UpdateJobRequest(job=asked, update_mask=ON_LOST))
    assert made.on_lost.wait
    assert math.isinf(lab.work.leases.lost_seconds(uid))
    assert events(lab)[-1].message == "it waits for silent nodes"
    with pytest.raises(Conflict, match="changed since you read it"):
        lab.edits.update(ALICE, rpc.UpdateJobRequest(job=asked, update_mask=ON_LOST))
    back = rpc.UpdateJobRequest(job=Job(name=JOB), update_mask=ON_LOST)
    assert not lab.edits.update(ALICE, back).HasField("on_lost")
    assert lab.work.leases.lost_seconds(uid) == NODE_LOST_SECONDS


async def test_that_a_job_comes_further_is_no_change_of_it(lab: Lab) -> None:
    node, work = await lab.started()
    asked = Job(name=JOB, on_lost=job_pb2.OnLost(wait=True), etag=lab.job().etag)
    node.progress(work, 1)
    node.progress(work, 2)
    made = lab.edits.update(ALICE, rpc.UpdateJobRequest(job=asked, update_mask=ON_LOST))
    assert made.on_lost.wait
    node.succeed(work, MODEL)
    with pytest.raises(Conflict):
        remove(lab, etag=made.etag)


async def test_what_cannot_be_changed_is_refused(lab: Lab) -> None:
    await queued(lab)
    for job, mask in (
        (Job(name=JOB), FieldMask(paths=["train"])),
        (Job(name=JOB), FieldMask()),
        (Job(name=JOB, on_lost=job_pb2.OnLost(replace_after_seconds=1)), ON_LOST),
    ):
        with pytest.raises(InvalidInput):
            lab.edits.update(ALICE, rpc.UpdateJobRequest(job=job, update_mask=mask))
    cancel(lab)
    with pytest.raises(FailedPrecondition, match=f"appliance job resume {JOB}"):
        lab.edits.update(ALICE, rpc.UpdateJobRequest(job=Job(name=JOB), update_mask=ON_LOST))


async def test_a_job_that_has_not_ended_is_not_deleted(lab: Lab) -> None:
    await lab.started()
    with pytest.raises(FailedPrecondition, match=f"appliance job cancel {JOB}"):
        remove(lab)
    assert lab.job().state == Job.STATE_STARTING


async def test_what_belongs_to_a_job_goes_with_it_and_what_it_made_stays(lab: Lab) -> None:
    node, work = await lab.started()
    node.progress(work, 1, loss=2.0)
    node.save_checkpoint(work, 5)
    node.succeed(work, MODEL)
    uid, etag = lab.job().uid, lab.job().etag
    (model,) = lab.job().outputs
    (series,) = [row for row in lab.rows(tables.artifact_version) if row.kind == "checkpoints"]
    assert (lab.objects / series.folder).is_dir()
    with pytest.raises(Conflict):
        remove(lab, etag="0")
    assert remove(lab, etag=etag).name == JOB
    with pytest.raises(NotFound):
        lab.job()
    for table in (tables.job, tables.job_event, tables.job_metric, tables.checkpoint):
        assert lab.rows(table) == []
    assert [row.kind for row in lab.rows(tables.artifact_version)] == ["dataset", "model"]
    lab.work.storage.do_all()
    assert not (lab.objects / series.folder).exists()

    # Another job of that name did not make the model.
    assert lab.train("t1", lab.tokens("other")).uid != uid
    shown = lab.models.get_version(ALICE, model)
    assert (shown.job, shown.job_uid) == (JOB, uid)


@pytest.mark.attack
async def test_a_job_that_has_the_name_now_does_not_have_the_etag(lab: Lab) -> None:
    await queued(lab)
    dataset = lab.job().train.dataset
    cancel(lab)
    first = lab.job()
    remove(lab)
    lab.train("t1", dataset)
    cancel(lab)
    assert lab.job().state == first.state
    with pytest.raises(Conflict):
        remove(lab, etag=first.etag)
    remove(lab, etag=lab.job().etag)


async def test_a_job_whose_checkpoint_another_will_begin_with_stays(lab: Lab) -> None:
    node, work = await lab.started()
    node.save_checkpoint(work, 5)
    node.fail(work, "INTERNAL")
    checkpoint = f"{JOB}/checkpoints/e1-step-5"
    node.disconnect()
    dataset = lab.job().train.dataset
    for name in ("t2", "t3"):
        lab.train(name, dataset, from_checkpoint=checkpoint)
    both = f"projects/{PROJECT}/jobs/t2, projects/{PROJECT}/jobs/t3 will begin"
    with pytest.raises(FailedPrecondition, match=both):
        remove(lab)
    for name in ("t2", "t3"):
        lab.jobs.cancel(ALICE, rpc.CancelJobRequest(name=f"projects/{PROJECT}/jobs/{name}"))
    remove(lab)
    with pytest.raises(NotFound):
        lab.job()


async def test_what_a_node_still_writes_for_a_deleted_job_is_deleted(lab: Lab) -> None:
    node, work = await lab.started()
    node.save_checkpoint(work, 5)
    cancel(lab)
    (series,) = [row for row in lab.rows(tables.artifact_version) if row.kind == "checkpoints"]
    remove(lab)
    lab.work.storage.do_all()
    late = lab.objects / series.folder
    late.mkdir(parents=True)
    (late / "e1-step-6").touch()
    node.fail(work, "LEASE_LOST")
    lab.work.storage.do_all()
    assert not late.exists()


async def test_a_repeated_deletion_returns_the_first_answer(lab: Lab) -> None:
    await queued(lab)
    cancel(lab)
    again = "123e4567-e89b-42d3-a456-426614174000"
    first = remove(lab, request_id=again)
    lab.train("t1", first.train.dataset)
    assert remove(lab, request_id=again) == first
    assert lab.job().state == Job.STATE_QUEUED


@pytest.mark.attack
async def test_a_repeated_call_does_not_answer_for_a_deleted_job(lab: Lab) -> None:
    await queued(lab)
    request = train_request("t1", lab.job().train.dataset)
    cancel(lab)
    remove(lab)
    request.request_id = "123e4567-e89b-42d3-a456-426614174001"
    first = lab.jobs.create(ALICE, request)
    assert lab.jobs.create(ALICE, request) == first
    cancel(lab)
    again = "123e4567-e89b-42d3-a456-426614174002"
    gone = remove(lab, request_id=again)
    second = lab.jobs.create(ALICE, request)
    assert second.uid != first.uid
    # Nor is the deletion done again, also when the second one is gone by then.
    cancel(lab)
    remove(lab)
    third = lab.jobs.create(ALICE, request)
    cancel(lab)
    assert remove(lab, request_id=again) == gone
    assert lab.job().uid == third.uid


async def test_a_job_that_is_older_than_its_history_shows_its_logs_still(lab: Lab) -> None:
    node, _ = await lab.started()
    with lab.database.write() as transaction:
        transaction.run(delete(tables.job_event))
    start = lab.live._start(Name.parse(JOB, "job"), 0)
    assert [(part.node, part.first_rank, part.ranks) for part in start.parts] == [(node.node, 0, 1)]
