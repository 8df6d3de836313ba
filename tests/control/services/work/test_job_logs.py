"""The last output of ranks: who may read it, which start it is of, and where it lies."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, func, select, update

from appliance.api.agent.v1 import agent_service_pb2 as agent
from appliance.api.jobs.v1 import job_log_pb2, job_pb2, job_service_pb2
from appliance.control.auth.rules import RoleLink
from appliance.control.services.access.bindings import Bindings
from appliance.control.services.common.caller import Caller
from appliance.control.services.fleet.leases import NODE_LOST_SECONDS
from appliance.control.services.work.job_logs import LAST_BYTES, MAX_JOBS, MAX_NODES
from appliance.control.store import tables
from appliance.core.errors import Tampered
from appliance.core.identity import Principal, PrincipalKind
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, PROJECT, FakeAgent, Lab

Job = job_pb2.Job
TEXT = "Ms Miller lives at 12 Elm Street"
MODEL = {"model": tiny_model.files()}
DAY = 86_400


def logs(lab: Lab, name: str = "t1") -> job_log_pb2.JobLogs:
    request = job_service_pb2.GetJobLogsRequest(name=f"projects/{PROJECT}/jobs/{name}")
    return lab.jobs.logs(ALICE, request)


def texts(lab: Lab, name: str = "t1") -> dict[str, str]:
    return {each.node: each.text for each in logs(lab, name).nodes}


async def started(
    lab: Lab, node: FakeAgent, name: str = "t1", dataset: str = ""
) -> agent.WorkEpoch:
    """A train job on a node that is free; its work."""
    lab.train(name, dataset)
    lab.look()
    await node.take()
    return node.started[-1].work


async def together(lab: Lab, count: int) -> list[FakeAgent]:
    """A train job with a rank on each of so many nodes."""
    nodes = [await lab.connected(f"n{number:02}", devices=1) for number in range(count)]
    lab.train("t1", batch_size=16, mesh=job_pb2.Mesh(data=count))
    lab.look()
    for node in nodes:
        await node.take()
    return nodes


async def test_a_job_that_failed_has_the_last_output_of_its_node(lab: Lab) -> None:
    node = await lab.connected("n1")
    work = await started(lab, node)
    assert not lab.job().has_logs
    node.fail(work, "INTERNAL", "rank 0 crashed with KeyError", f"Traceback\n{TEXT}\n")
    assert (lab.job().state, lab.job().has_logs) == (Job.STATE_FAILED, True)
    assert lab.job().state_reason == "rank 0 crashed with KeyError"
    found = logs(lab)
    (entry,) = found.nodes
    assert (found.name, found.epoch, found.reason) == ("projects/demo/jobs/t1", 1, "")
    assert (entry.node, entry.text, entry.cut) == ("nodes/n1", f"Traceback\n{TEXT}\n", False)
    assert entry.receive_time.ToDatetime(tzinfo=lab.time.wall().tzinfo) == lab.time.wall()


async def test_who_may_not_read_it_is_not_told_that_it_is_there(lab: Lab) -> None:
    node = await lab.connected("n1")
    node.fail(await started(lab, node), "INTERNAL", log=TEXT)
    base = lab.base
    bindings = Bindings(base.database, base.changes, base.policies, base.events, base.clock)
    for role, expected in (("viewer", False), ("developer", True), ("owner", True)):
        with lab.database.write() as transaction:
            transaction.run(
                tables.user.insert().values(
                    id=role, password_hash="none", create_time=lab.time.wall()
                )
            )
            bindings.bind(transaction, RoleLink(f"user:{role}", role, PROJECT), "users/alice")
        caller = Caller(principal=Principal(PrincipalKind.USER, role))
        request = job_service_pb2.ListJobsRequest(parent=f"projects/{PROJECT}")
        shown = [*lab.jobs.list(caller, request).jobs, lab.jobs.get(caller, lab.job().name)]
        assert [job.has_logs for job in shown] == [expected, expected], role


@pytest.mark.attack
async def test_the_state_on_disk_holds_no_word_of_it(lab: Lab) -> None:
    node = await lab.connected("n1")
    node.fail(await started(lab, node), "INTERNAL", "rank 0 crashed", f"{TEXT}\n" * 200)
    assert TEXT in texts(lab)["nodes/n1"]
    files = [path for path in lab.folder.rglob("*") if path.is_file()]
    assert lab.folder / "state.db" in files
    assert [path for path in files if b"Miller" in path.read_bytes()] == []


@pytest.mark.attack
@pytest.mark.parametrize("column", ["job", "epoch", "node"])
async def test_a_row_that_was_moved_does_not_open(lab: Lab, column: str) -> None:
    node = await lab.connected("n1")
    work = await started(lab, node)
    node.fail(work, "INTERNAL", log=TEXT)
    other = await started(lab, node, "t2", lab.tokens("other"))
    values = {"job": other.work, "epoch": 2, "node": "n2"}
    row = tables.job_log
    with lab.database.write() as transaction:
        transaction.run(update(row).values({column: values[column]}))
    with pytest.raises(Tampered):
        logs(lab, "t2" if column == "job" else "t1")


async def test_a_node_that_ends_later_is_heard_once_and_only_about_its_own_part(lab: Lab) -> None:
    one, two = await together(lab, 2)
    work = one.started[0].work
    one.fail(work, "RANK_LOST", "rank 0 lost its connection to another rank", "connection closed")
    # The job waits to be started again, and the output of the other node is still to come.
    assert lab.job().state == Job.STATE_QUEUED
    assert [each.HasField("receive_time") for each in logs(lab).nodes] == [True, False]
    assert texts(lab) == {"nodes/n00": "connection closed", "nodes/n01": ""}
    two.running.clear()
    two.heartbeat()
    lab.restart()
    for said in ("the cause", "something else"):
        two.fail(work, "INTERNAL", "rank 1 crashed", said)
    one.fail(work, "INTERNAL", "rank 0 crashed", "once more")
    assert texts(lab) == {"nodes/n00": "connection closed", "nodes/n01": "the cause"}


@pytest.mark.attack
async def test_a_node_writes_nothing_about_work_it_was_not_given(lab: Lab) -> None:
    one, stranger = await lab.connected("n1"), await lab.connected("n2", devices=1)
    lab.train("t1", mesh=job_pb2.Mesh(data=2))
    lab.look()
    await one.take()
    work = one.started[0].work
    stranger.fail(work, "INTERNAL", log="forged")
    one.fail(work, "INTERNAL", log="true")
    stranger.fail(work, "INTERNAL", log="forged")
    stranger.fail(agent.WorkEpoch(work=work.work, epoch=2), "INTERNAL", log="forged")
    stranger.fail(agent.WorkEpoch(work="0" * 32, epoch=1), "INTERNAL", log="forged")
    assert texts(lab) == {"nodes/n1": "true"}


async def test_a_newer_start_replaces_it_and_success_removes_it(lab: Lab) -> None:
    node = await lab.connected("n1")
    work = await started(lab, node)
    node.fail(work, "RANK_LOST", "killed", "the first time")
    assert (logs(lab).epoch, texts(lab)) == (1, {"nodes/n1": "the first time"})
    lab.wait(60, node)
    lab.look()
    await node.take()
    # What is kept stays until the next start has ended.
    assert (lab.job().epoch, logs(lab).epoch, lab.job().has_logs) == (2, 1, True)
    second = node.started[-1].work
    node.fail(work, "RANK_LOST", "killed", "an old word that was repeated")
    node.fail(second, "RANK_LOST", "killed", "the second time")
    assert (logs(lab).epoch, texts(lab)) == (2, {"nodes/n1": "the second time"})
    lab.wait(300, node)
    lab.look()
    await node.take()
    node.succeed(node.started[-1].work, MODEL)
    assert (lab.job().state, lab.job().has_logs) == (Job.STATE_SUCCEEDED, False)
    assert logs(lab).reason.startswith("the job has succeeded: output is kept of starts that")
    assert lab.rows(tables.job_log) == []


async def test_a_node_that_is_never_heard_of_again_has_an_entry_without_output(lab: Lab) -> None:
    await started(lab, await lab.connected("n1"))
    lab.wait(NODE_LOST_SECONDS, *[await lab.connected(name) for name in ("n2", "n3")])
    lab.look()
    (entry,) = logs(lab).nodes
    assert (entry.node, entry.text, entry.HasField("receive_time")) == ("nodes/n1", "", False)
    assert lab.job().has_logs


async def test_what_a_cancelled_job_wrote_is_kept_too(lab: Lab) -> None:
    node = await lab.connected("n1")
    work = await started(lab, node)
    request = job_service_pb2.CancelJobRequest(name=lab.job().name)
    assert lab.jobs.cancel(ALICE, request).has_logs
    await node.take()
    node.fail(work, "LEASE_LOST", "the node was told to stop this work", "waiting for rank 3")
    assert lab.job().state == Job.STATE_CANCELLED
    assert texts(lab) == {"nodes/n1": "waiting for rank 3"}


@pytest.mark.attack
async def test_a_node_cannot_send_more_than_is_kept(lab: Lab) -> None:
    node = await lab.connected("n1")
    work = await started(lab, node)
    node.fail(work, "INTERNAL", log="first\n" + "é" * 50_000 + "\nlast é\n")
    (entry,) = logs(lab).nodes
    assert entry.cut
    assert len(entry.text.encode()) in (LAST_BYTES - 1, LAST_BYTES)
    assert entry.text.endswith("\nlast é\n")
    (row,) = lab.rows(tables.job_log)
    assert len(row.sealed_text) < LAST_BYTES + 200


async def test_the_node_that_failed_and_the_first_others_are_kept(lab: Lab) -> None:
    nodes = await together(lab, 16)
    nodes[11].fail(nodes[11].started[0].work, "INTERNAL", log="the cause")
    names = [each.node for each in logs(lab).nodes]
    assert names == [*(f"nodes/n{number:02}" for number in range(MAX_NODES - 1)), "nodes/n11"]
    nodes[15].fail(nodes[15].started[0].work, "INTERNAL", log="no room")
    assert [each.text for each in logs(lab).nodes] == [""] * 7 + ["the cause"]


async def test_more_rows_than_there_is_room_for_make_no_more(lab: Lab) -> None:
    nodes = await together(lab, 16)
    work = nodes[11].started[0].work
    row = {"job": work.work, "epoch": 1, "rank_base": 0, "create_time": lab.time.wall()}
    with lab.database.write() as transaction:
        for number in range(MAX_NODES + 1):
            transaction.run(tables.job_log.insert().values(row | {"node": f"x{number}"}))
    nodes[11].fail(work, "INTERNAL", "rank 11 crashed", "no room")
    assert lab.job().state_reason == "rank 11 crashed"
    assert len(lab.rows(tables.job_log)) == MAX_NODES + 1


@pytest.mark.attack
async def test_output_that_cannot_be_sealed_hides_no_reason(lab: Lab) -> None:
    node = await lab.connected("n1")
    work = await started(lab, node)
    with lab.database.write() as transaction:
        transaction.run(update(tables.project_key).values(wrapped_key=b"changed"))
    node.fail(work, "INTERNAL", "rank 0 crashed with KeyError", TEXT)
    assert (lab.job().state, lab.job().state_reason) == (
        Job.STATE_FAILED,
        "rank 0 crashed with KeyError",
    )


async def test_it_is_kept_for_thirty_days(lab: Lab) -> None:
    node = await lab.connected("n1")
    node.fail(await started(lab, node), "INTERNAL", log="old")
    lab.look()
    lab.forward(29.9 * DAY)
    lab.look()
    assert texts(lab) == {"nodes/n1": "old"}
    lab.forward(0.2 * DAY)
    lab.look()
    assert not lab.job().has_logs
    assert logs(lab).reason.startswith("nothing is kept any more: output is kept for 30 days")
    # What was dated by a clock that was ahead goes when the clock is right.
    lab.forward(400 * DAY)
    await node.connect()
    node.fail(await started(lab, node, "t2", lab.tokens("second")), "INTERNAL", log="ahead")
    lab.forward(-400 * DAY)
    lab.look()
    assert lab.rows(tables.job_log) == []


async def test_of_each_project_the_newest_hundred_jobs_are_kept(lab: Lab) -> None:
    node = await lab.connected("n1")
    work = await started(lab, node)
    job, log = tables.job, tables.job_log
    with lab.database.write() as transaction:
        row = transaction.first(select(job).where(job.c.uid == work.work))
        assert row is not None
        for number in range(MAX_JOBS + 1):
            uid = f"{number:032x}"
            transaction.run(job.insert().values({**row._mapping, "uid": uid, "id": f"j{number}"}))
            transaction.run(
                log.insert().values(
                    job=uid, node="n1", epoch=1, rank_base=0, create_time=lab.time.wall()
                )
            )
        transaction.run(delete(log).where(log.c.job == f"{MAX_JOBS:032x}"))
    lab.forward(1)
    node.heartbeat()
    node.fail(work, "INTERNAL", log="the newest")
    assert texts(lab) == {"nodes/n1": "the newest"}
    with lab.database.read() as state:
        assert state.value(select(func.count()).select_from(log)) == MAX_JOBS


async def test_nothing_is_said_to_be_missing_without_a_reason(lab: Lab) -> None:
    node = await lab.connected("n2")
    node.disconnect()
    lab.train("t1")
    assert logs(lab).reason == "no node has started the job: its state says why"
    await node.connect()
    lab.look()
    await node.take()
    assert logs(lab).reason.startswith("the job is at work: output is kept when a start ends")
    # Its ranks end well, and what they made is refused.
    node.report(job_ended=agent.JobEnded(work=node.started[0].work, succeeded=True))
    assert lab.job().state == Job.STATE_FAILED
    assert logs(lab).reason.startswith("its ranks ended well: the state of the job says what")
    assert not lab.job().has_logs
