"""Jobs when they are accepted: one sentence for each field that cannot work."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from appliance.api.jobs.v1 import job_pb2, job_service_pb2
from appliance.control.auth.rules import RoleLink
from appliance.control.services.access.bindings import Bindings
from appliance.control.services.common.caller import Caller
from appliance.control.store import tables
from appliance.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidInput,
    LeaseLost,
    NotFound,
)
from appliance.core.identity import Principal, PrincipalKind
from appliance.core.numbers import readable
from appliance.kinds import KINDS
from appliance.kinds.train import memory, parameters
from appliance.kinds.train_settings import DecoderShape, Degrees
from tests.fakes.lab import ALICE, GIB, Lab, train_request

UUID = "123e4567-e89b-42d3-a456-426614174000"
Mesh = job_pb2.Mesh


def fields(lab: Lab, request: job_service_pb2.CreateJobRequest) -> dict[str, str]:
    with pytest.raises(InvalidInput) as raised:
        lab.jobs.create(ALICE, request)
    assert lab.rows(tables.job) == []
    return raised.value.fields


@pytest.mark.parametrize(
    ("on_lost", "field", "text"),
    [
        (job_pb2.OnLost(replace_after_seconds=0), "replace_after_seconds", "15 to 2,592,000"),
        (job_pb2.OnLost(replace_after_seconds=-5), "replace_after_seconds", "15 to 2,592,000"),
        (job_pb2.OnLost(wait=False), "wait", "is true, or left out"),
    ],
)
def test_a_wait_that_cannot_be_is_refused(
    lab: Lab, on_lost: job_pb2.OnLost, field: str, text: str
) -> None:
    request = train_request("t1", lab.tokens(), steps=-1)
    request.job.on_lost.CopyFrom(on_lost)
    found = fields(lab, request)
    # With all others that are wrong.
    assert list(found) == [f"job.on_lost.{field}", "job.train.steps"]
    assert text in found[f"job.on_lost.{field}"]


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"mesh": Mesh(tensor=3)}, "mesh.tensor", "does not divide the attention heads of 4"),
        ({"mesh": Mesh(tensor=4)}, "mesh.tensor", "key and value heads of 2"),
        ({"mesh": Mesh(pipeline=5)}, "mesh.pipeline", "do not share 4 layers evenly"),
        ({"mesh": Mesh(pipeline=3)}, "mesh.pipeline", "do not share 4 layers evenly"),
        ({"mesh": Mesh(pipeline=2), "microbatches": 1}, "microbatches", "at least the 2 pipeline"),
        ({"mesh": Mesh(data=3)}, "batch_size", "3 data ranks with 1 microbatches"),
        ({"mesh": Mesh(pipeline=2), "batch_size": 6}, "batch_size", "a multiple of 4"),
        ({"mesh": Mesh(data=-1)}, "mesh.data", "must be 1 to 4,096"),
        ({"steps": -5}, "steps", "must be 1 to 99,999,999"),
        ({"sequence_length": 129}, "sequence_length", "longer than the context of 128"),
        ({"learning_rate": float("nan")}, "learning_rate", "must be 0.000000001 to 10"),
        ({"learning_rate": 0.0}, "learning_rate", "must be 0.000000001 to 10"),
        ({"gradient_clip": 0.0}, "gradient_clip", "must be 0.000001 to 1,000,000"),
        ({"checkpoint_interval": 0}, "checkpoint_interval", "must be 1 or more"),
        ({"microbatches": 0}, "microbatches", "must be 1 to 65,536"),
        ({"mesh": Mesh(data=0)}, "mesh.data", "must be 1 to 4,096"),
        ({"warmup_steps": 21}, "warmup_steps", "must be 0 to the 20 steps"),
        ({"pipeline_schedule": "Magic"}, "pipeline_schedule", "must be one of 1F1B"),
        ({"pipeline_schedule": "1F1B"}, "pipeline_schedule", "has no effect without a pipeline"),
        ({"steps": 100_000_000}, "steps", "must be 1 to 99,999,999"),
        (
            {"mesh": Mesh(pipeline=4), "pipeline_schedule": "ZBVZeroBubble"},
            "mesh.pipeline",
            "8 stages",
        ),
        (
            {"architecture": job_pb2.Architecture(key_value_heads=3)},
            "architecture.key_value_heads",
            "does not divide",
        ),
        (
            {"architecture": job_pb2.Architecture(hidden_size=66)},
            "architecture.attention_heads",
            "does not divide the width of 66",
        ),
        (
            {"architecture": job_pb2.Architecture(hidden_size=12)},
            "architecture.attention_heads",
            "odd width",
        ),
        ({"output_model": "projects/demo/datasets/x"}, "output_model", "is not projects/"),
        ({"output_model": "projects/other/models/x"}, "output_model", "is in project other"),
    ],
)
async def test_degrees_and_sizes_that_do_not_fit_are_refused_by_field(
    lab: Lab, changes: dict[str, object], field: str, text: str
) -> None:
    await lab.connected("n1")
    found = fields(lab, train_request("t1", lab.tokens(), **changes))
    assert text in found[f"job.train.{field}"]


async def test_a_vocabulary_that_tensor_ranks_cannot_share_is_refused(lab: Lab) -> None:
    await lab.connected("n1")
    sixths = job_pb2.Architecture(
        hidden_size=96, intermediate_size=384, attention_heads=6, key_value_heads=3
    )
    tokens = lab.tokens(vocabulary=511)
    request = train_request("t1", tokens, mesh=Mesh(tensor=3), architecture=sixths)
    assert "padded vocabulary of 512" in fields(lab, request)["job.train.mesh.tensor"]


async def test_the_padding_lets_an_odd_vocabulary_be_shared(lab: Lab) -> None:
    await lab.connected("n1")
    tokens = lab.tokens(vocabulary=511)
    job = lab.jobs.create(ALICE, train_request("t1", tokens, mesh=Mesh(tensor=2)))
    assert job.train.mesh.tensor == 2


async def test_all_wrong_fields_are_said_at_once(lab: Lab) -> None:
    await lab.connected("n1")
    request = train_request("t1", lab.text(), steps=-1, batch_size=-1)
    assert set(fields(lab, request)) == {
        "job.train.dataset",
        "job.train.steps",
        "job.train.batch_size",
    }


@pytest.mark.parametrize(
    ("dataset", "text"),
    [
        (
            "projects/demo/datasets/none/versions/1",
            "does not exist or is not complete: `appliance dataset versions none --project demo`",
        ),
        ("projects/demo/datasets/clean", "is not projects/{project}/datasets"),
        ("projects/other/datasets/clean/versions/1", "a job works inside its own project"),
        ("", "is not projects/"),
    ],
)
async def test_inputs_that_are_not_there_are_refused(lab: Lab, dataset: str, text: str) -> None:
    await lab.connected("n1")
    assert text in fields(lab, train_request("t1", dataset))["job.train.dataset"]


@pytest.mark.attack
async def test_what_the_caller_may_not_do_a_job_of_the_caller_may_not_do(lab: Lab) -> None:
    await lab.connected("n1")
    stranger = Caller(principal=Principal(PrincipalKind.USER, "bob"))
    with lab.database.write() as transaction:
        transaction.run(
            tables.user.insert().values(id="bob", password_hash="x", create_time=lab.time.wall())
        )
    dataset = lab.tokens()
    with pytest.raises(InvalidInput) as raised:
        lab.jobs.create(stranger, train_request("t1", dataset))
    assert raised.value.fields == {
        "job.train.dataset": "may not be read by users/bob",
        "job.train.output_model": "may not be made by users/bob",
    }
    base = lab.base
    with lab.database.write() as transaction:
        Bindings(base.database, base.changes, base.policies, base.events, base.clock).bind(
            transaction, RoleLink("user:bob", "developer", "demo"), "users/alice"
        )
    assert lab.jobs.create(stranger, train_request("t1", dataset)).creator == "users/bob"


async def test_other_kinds_name_what_is_wrong_with_them(lab: Lab) -> None:
    await lab.connected("n1")
    model, tokens, text = lab.model(format="w8a8-int8"), lab.tokens(), lab.text()
    lab.version("tokenizer", "words", {"tokenizer.json": b"{}"}, {})
    make = job_service_pb2.CreateJobRequest
    quantize = job_pb2.QuantizeSpec(model=model, output_model="projects/demo/models/Q")
    evaluate = job_pb2.EvaluateSpec(model=model, dataset=text, window=-1)
    prepare = job_pb2.PrepareSpec(
        datasets=[tokens, tokens],
        output_dataset="projects/demo/datasets/clean",
        output_tokenizer="projects/demo/tokenizers/words",
        vocabulary_size=100,
        validation_fraction=0.6,
    )
    found = [
        fields(lab, make(parent="projects/demo", job_id="j1", job=job))
        for job in (
            job_pb2.Job(quantize=quantize),
            job_pb2.Job(evaluate=evaluate),
            job_pb2.Job(prepare=prepare),
            job_pb2.Job(),
        )
    ]
    assert [set(each) for each in found] == [
        {"job.quantize.scheme", "job.quantize.model", "job.quantize.output_model"},
        {"job.evaluate.dataset", "job.evaluate.window"},
        {
            "job.prepare.datasets",
            "job.prepare.datasets[0]",
            "job.prepare.datasets[1]",
            "job.prepare.output_tokenizer",
            "job.prepare.vocabulary_size",
            "job.prepare.validation_fraction",
        },
        {"job"},
    ]


async def test_too_little_memory_is_one_sentence_with_what_to_do(lab: Lab) -> None:
    with pytest.raises(FailedPrecondition, match="there is no node"):
        lab.train("t0")
    await lab.connected("n1", memory=GIB // 2, devices=8)
    large = job_pb2.Architecture(hidden_size=1024, intermediate_size=4096)
    with pytest.raises(FailedPrecondition) as raised:
        lab.train("t1", architecture=large)
    assert raised.value.message == (
        "it needs about 1.6 GiB per rank; the largest node offers 0.5 GiB: use more pipeline or "
        "tensor ranks, a smaller batch or more microbatches"
    )
    with pytest.raises(FailedPrecondition, match="all nodes together can hold 1"):
        lab.train("t2", mesh=Mesh(data=2))
    assert lab.rows(tables.job) == []


def test_memory_falls_with_every_degree_and_rises_with_the_batch() -> None:
    shape = DecoderShape(
        layers=16,
        hidden_size=2048,
        intermediate_size=8192,
        attention_heads=32,
        key_value_heads=8,
        context_length=131072,
        tie_embeddings=True,
    )
    # Llama-3.2-1B has 1,235,814,400 parameters (its model card).
    assert parameters(shape, 128256) == 1_235_814_400

    def need(**changes: int) -> int:
        given = {"data": 1, "tensor": 1, "pipeline": 1, "sequences": 1, "length": 512} | changes
        sizes = {name: given.pop(name) for name in ("sequences", "length")}
        return memory(shape, 128256, Degrees(**given), **sizes)

    assert need() > need(tensor=2) > need(tensor=2, data=2) > need(tensor=2, data=2, pipeline=2)
    assert need(sequences=4) > need()
    assert (readable(3 * GIB + GIB // 10), readable(5 << 20)) == ("3.1 GiB", "5 MiB")


async def test_a_repeat_gets_the_first_answer_and_validate_only_changes_nothing(lab: Lab) -> None:
    await lab.connected("n1")
    request = train_request("t1", lab.tokens())
    request.validate_only = True
    assert lab.jobs.create(ALICE, request).state == job_pb2.Job.STATE_QUEUED
    assert lab.rows(tables.job) == []
    request.validate_only = False
    request.request_id = UUID
    first = lab.jobs.create(ALICE, request)
    assert lab.jobs.create(ALICE, request) == first
    assert len(lab.rows(tables.job)) == 1
    request.request_id = ""
    with pytest.raises(AlreadyExists):
        lab.jobs.create(ALICE, request)


FILLED = {
    "mesh": Mesh(data=1, tensor=1, pipeline=1),
    "microbatches": 1,
    "learning_rate": 0.001,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "gradient_clip": 1.0,
    "seed": 0,
    "checkpoint_interval": 50,
    "stall_seconds": 60,
    "keep_last": 2,
    "keep_every": 0,
}


def running(request: job_service_pb2.CreateJobRequest, **changes: Any) -> job_pb2.TrainSpec:
    """The spec that a request becomes: what was asked for, and every default."""
    spec = job_pb2.TrainSpec(**(FILLED | changes))
    spec.MergeFrom(request.job.train)
    return spec


async def test_a_job_says_what_runs_in_its_row_to_people_and_to_its_node(lab: Lab) -> None:
    node = await lab.connected("n1")
    request = train_request("t1", lab.tokens(), gradient_clip=0.25, weight_decay=0.0)
    asked = request.SerializeToString()
    made = lab.jobs.create(ALICE, request)
    assert made.train == running(request)
    assert request.SerializeToString() == asked
    kept = json_format.ParseDict(lab.rows(tables.job)[0].spec, job_pb2.TrainSpec())
    assert kept == made.train
    lab.look()
    await node.take()
    assert node.started[0].job.train == made.train


async def test_a_pipeline_has_microbatches_and_a_schedule_of_its_own(lab: Lab) -> None:
    await lab.connected("n1", devices=2)
    request = train_request("t1", lab.tokens(), mesh=Mesh(pipeline=2))
    filled = running(request, microbatches=4, pipeline_schedule="1F1B")
    assert lab.jobs.create(ALICE, request).train == filled


async def test_a_schedule_that_is_empty_was_left_out(lab: Lab) -> None:
    # Clients of 0.1.0 that write JSON write every text, empty or not.
    await lab.connected("n1", devices=2)
    tokens = lab.tokens()
    for name, ranks, schedule in (("t1", 1, ""), ("t2", 2, "1F1B")):
        mesh = Mesh(pipeline=ranks)
        request = train_request(name, tokens, mesh=mesh, pipeline_schedule="")
        made = lab.jobs.create(ALICE, request).train
        assert made.pipeline_schedule == schedule
        assert made.HasField("pipeline_schedule") == bool(schedule)


async def test_what_a_job_shows_can_be_sent_again(lab: Lab) -> None:
    await lab.connected("n1", devices=2)
    tokens = lab.tokens()
    for number, mesh in enumerate((Mesh(), Mesh(pipeline=2))):
        made = lab.jobs.create(ALICE, train_request(f"a{number}", tokens, mesh=mesh))
        again = train_request(f"b{number}", tokens)
        again.job.train.CopyFrom(made.train)
        assert lab.jobs.create(ALICE, again).train == made.train


async def test_a_job_of_an_older_release_is_shown_with_the_defaults_it_runs_with(lab: Lab) -> None:
    await lab.connected("n1")
    request = train_request("t1", lab.tokens(), gradient_clip=0.25)
    made = lab.jobs.create(ALICE, request)
    bare = json_format.MessageToDict(request.job.train)
    with lab.database.write() as transaction:
        transaction.run(tables.job.update().values(spec=bare))
    assert lab.jobs.get(ALICE, made.name).train == running(request)
    listed = lab.jobs.list(ALICE, job_service_pb2.ListJobsRequest(parent="projects/demo"))
    assert [job.train for job in listed.jobs] == [running(request)]
    assert lab.rows(tables.job)[0].spec == bare


async def test_a_zero_that_was_asked_for_is_a_zero_in_the_row_too(lab: Lab) -> None:
    await lab.connected("n1", memory=8 * GIB)
    spec = job_pb2.PrepareSpec(
        datasets=[lab.text()],
        output_dataset="projects/demo/datasets/clean",
        output_tokenizer="projects/demo/tokenizers/words",
        validation_fraction=0.0,
    )
    make = job_service_pb2.CreateJobRequest
    request = make(parent="projects/demo", job_id="p1", job=job_pb2.Job(prepare=spec))
    made = lab.jobs.create(ALICE, request).prepare
    row = lab.rows(tables.job)[0].spec
    assert (made.HasField("validation_fraction"), made.validation_fraction) == (True, 0.0)
    assert (row["validationFraction"], row["vocabularySize"], row["seed"]) == (0.0, 8192, "0")


async def test_a_window_is_the_context_where_that_is_shorter_and_never_longer(lab: Lab) -> None:
    await lab.connected("n1", memory=8 * GIB)
    model, tokens = lab.model(), lab.tokens()

    def evaluate(name: str, **window: int) -> job_service_pb2.CreateJobRequest:
        spec = job_pb2.EvaluateSpec(model=model, dataset=tokens, **window)
        return job_service_pb2.CreateJobRequest(
            parent="projects/demo", job_id=name, job=job_pb2.Job(evaluate=spec)
        )

    refused = fields(lab, evaluate("e0", window=129))
    assert refused == {"job.evaluate.window": "must be 2 to the model's context of 128 tokens"}
    made = lab.jobs.create(ALICE, evaluate("e1")).evaluate
    assert (made.window, made.max_tokens) == (128, 4096)
    assert lab.jobs.create(ALICE, evaluate("e2", window=64)).evaluate.window == 64
    with lab.database.write() as transaction:
        transaction.run(tables.job.update().values(spec={"model": model, "dataset": tokens}))
    assert lab.jobs.get(ALICE, "projects/demo/jobs/e2").evaluate == made


async def test_jobs_are_listed_newest_first_and_metrics_by_step(lab: Lab) -> None:
    node = await lab.connected("n1")
    dataset = lab.tokens()
    for number in range(3):
        lab.forward(1)
        lab.train(f"t{number}", dataset)
    request = job_service_pb2.ListJobsRequest(parent="projects/demo", page_size=2)
    page = lab.jobs.list(ALICE, request)
    request.page_token = page.next_page_token
    rest = lab.jobs.list(ALICE, request)
    assert [job.name[-2:] for job in (*page.jobs, *rest.jobs)] == ["t2", "t1", "t0"]
    lab.look()
    await node.take()
    work = node.started[0].work
    for step, loss in ((1, 5.0), (2, 4.0), (1, 4.5)):
        node.progress(work, step, loss=loss)
    name = "projects/demo/jobs/t0"
    measured = lab.jobs.metrics(ALICE, job_service_pb2.ListJobMetricsRequest(name=name)).metrics
    assert [(m.step, m.epoch, dict(m.values)) for m in measured] == [
        (1, 1, {"loss": 4.5}),
        (2, 1, {"loss": 4.0}),
    ]
    with pytest.raises(NotFound):
        lab.jobs.get(ALICE, "projects/demo/jobs/none")


@pytest.mark.attack
async def test_a_node_gets_keys_only_for_what_is_leased_to_it_now(lab: Lab) -> None:
    one = await lab.connected("n1", devices=1)
    two = await lab.connected("n2", devices=1)
    lab.train("t1")
    lab.train("t2")
    lab.look()
    await one.take()
    await two.take()
    mine, other = one.started[0].work, two.started[0].work
    assert one.keys(mine).outputs
    for work in (other, type(mine)(work=mine.work, epoch=2), type(mine)(work=mine.work, epoch=0)):
        with pytest.raises(LeaseLost):
            one.keys(work)
    for row in lab.rows(tables.artifact_version):
        with pytest.raises(LeaseLost):
            one.keys(type(mine)(work=row.uid, epoch=1))
    one.fail(mine, "INTERNAL")
    with pytest.raises(LeaseLost):
        one.keys(mine)
    lab.work.leases.evict("n2")
    with pytest.raises(LeaseLost):
        two.keys(other)


@pytest.mark.attack
async def test_the_key_of_a_swapped_input_is_not_handed_out(lab: Lab) -> None:
    node = await lab.connected("n1")
    dataset = lab.tokens("a")
    lab.train("t1", dataset)
    lab.look()
    await node.take()
    folder = lab.objects / lab.rows(tables.artifact_version)[0].folder
    (folder / "index.json").unlink()
    with pytest.raises(Exception, match=r"index\.json is missing"):
        node.keys(node.started[0].work)


@pytest.mark.attack
async def test_nonsense_from_an_agent_ends_its_own_work_alone(lab: Lab) -> None:
    one = await lab.connected("n1", devices=1)
    two = await lab.connected("n2", devices=1)
    lab.train("t1")
    lab.train("t2")
    lab.look()
    await one.take()
    await two.take()
    # Both came at the same moment of the lab's clock, so either may have gone to the first node.
    mine, other = sorted(
        ("t1", "t2"), key=lambda name: lab.job(name).uid != one.started[0].work.work
    )
    one.progress(two.started[0].work, 9, loss=0.0)
    await one.take()
    assert lab.job(other).state == job_pb2.Job.STATE_STARTING
    one.progress(one.started[0].work, 1, **{f"m{number}": 1.0 for number in range(101)})
    assert lab.job(mine).state == job_pb2.Job.STATE_FAILED
    assert lab.job(other).state == job_pb2.Job.STATE_STARTING


def test_every_kind_of_job_has_a_message_in_the_proto() -> None:
    members = job_pb2.Job.DESCRIPTOR.oneofs_by_name["spec"].fields
    assert {field.name for field in members} == set(KINDS)
