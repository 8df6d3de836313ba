"""Defaults, and one sentence for each degree or size that cannot work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from appliance.api.common.v1 import value_pb2
from appliance.api.jobs.v1.job_pb2 import TrainSpec
from appliance.core.checkpoints import MAX_STEP
from appliance.core.errors import InvalidInput
from appliance.jobs.train.job import run
from appliance.kinds.train_settings import STAGES_PER_RANK, Degrees, TrainSettings
from tests.fakes.training import SPEC, training_job


def settings(**changes: Any) -> TrainSettings:
    spec = {key: value for key, value in SPEC.items() if key not in changes}
    return TrainSettings.from_spec(ParseDict(spec | changes, TrainSpec()))


def test_what_is_left_out_has_the_documented_default() -> None:
    needed = ("dataset", "output_model", "architecture", "steps", "batch_size", "sequence_length")
    bare = TrainSettings.from_spec(ParseDict({name: SPEC[name] for name in needed}, TrainSpec()))
    assert bare.degrees == Degrees(1, 1, 1)
    assert (bare.schedule, bare.microbatches, bare.learning_rate) == ("1F1B", 1, 0.001)
    assert (bare.gradient_clip, bare.checkpoint_interval) == (1.0, 50)
    assert (bare.warmup_steps, bare.weight_decay, bare.seed) == (0, 0.0, 0)
    assert settings(mesh={"pipeline": 2}).microbatches == 4


def test_a_zero_that_was_asked_for_is_a_zero() -> None:
    with pytest.raises(InvalidInput) as caught:
        settings(learning_rate=0.0, gradient_clip=0.0, microbatches=0)
    assert caught.value.fields == {
        "microbatches": "must be 1 to 65,536",
        "learning_rate": "must be 0.000000001 to 10",
        "gradient_clip": "must be 0.000001 to 1,000,000",
    }
    assert settings(weight_decay=0.0).weight_decay == 0


def test_a_mesh_that_fits_is_accepted() -> None:
    settings(mesh={"data": 2, "tensor": 2, "pipeline": 2}).check(8)


WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    (
        {"mesh": {"tensor": 2, "pipeline": 2}},
        3,
        "mesh",
        (
            "is data 1 x tensor 2 x pipeline 2, which needs 4 ranks, but the job has 3: make the"
            " product of the degrees the number of ranks"
        ),
    ),
    (
        {"mesh": {"tensor": 4}},
        4,
        "mesh.tensor",
        "is 4, which does not divide the key and value heads of 2: use a divisor",
    ),
    (
        {"mesh": {"tensor": 3}},
        3,
        "mesh.tensor",
        "is 3, which does not divide the attention heads of 4: use a divisor",
    ),
    (
        {"mesh": {"pipeline": 3}, "batch_size": 12},
        3,
        "mesh.pipeline",
        "needs 3 stages, which do not share 4 layers evenly: use a divisor",
    ),
    (
        {"mesh": {"pipeline": 4}, "pipeline_schedule": "ZBVZeroBubble"},
        4,
        "mesh.pipeline",
        "needs 8 stages, which do not share 4 layers evenly: use a divisor",
    ),
    (
        {"mesh": {"data": 3}},
        3,
        "batch_size",
        "is 8, which 3 data ranks with 1 microbatches each do not share: use a multiple of 3",
    ),
    (
        {"mesh": {"data": 2}, "microbatches": 3},
        2,
        "batch_size",
        "is 8, which 2 data ranks with 3 microbatches each do not share: use a multiple of 6",
    ),
    (
        {"mesh": {"pipeline": 2}, "microbatches": 1},
        2,
        "microbatches",
        "must be at least the 2 pipeline ranks, or some would only wait",
    ),
    (
        {"mesh": {"pipeline": 2}, "microbatches": 4, "pipeline_schedule": "Nonesuch"},
        2,
        "pipeline_schedule",
        "must be one of 1F1B, GPipe, Interleaved1F1B, ZBVZeroBubble",
    ),
    (
        {
            "mesh": {"pipeline": 2},
            "batch_size": 9,
            "microbatches": 3,
            "pipeline_schedule": "Interleaved1F1B",
        },
        2,
        "microbatches",
        "must be a multiple of the 2 pipeline ranks for this schedule",
    ),
    (
        {"pipeline_schedule": "GPipe"},
        1,
        "pipeline_schedule",
        "has no effect without a pipeline: leave it out, or make mesh.pipeline 2 or more",
    ),
    ({"sequence_length": 64}, 1, "sequence_length", "is longer than the context of 32"),
    ({"warmup_steps": 99}, 1, "warmup_steps", "must be 0 to the 10 steps"),
    (
        {"architecture": SPEC["architecture"] | {"key_value_heads": 3}},
        1,
        "architecture.key_value_heads",
        "is 3, which does not divide the attention heads of 4: use a divisor",
    ),
    (
        {"architecture": SPEC["architecture"] | {"hidden_size": 36}},
        1,
        "architecture.attention_heads",
        "leave heads of odd width; rotary positions need an even one",
    ),
]


@pytest.mark.parametrize(("changes", "ranks", "field", "sentence"), WRONG)
def test_what_cannot_work_is_one_sentence(
    changes: dict[str, Any], ranks: int, field: str, sentence: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        settings(**changes).check(ranks)
    assert caught.value.message == f"{field} {sentence}."
    assert caught.value.fields == {field: sentence}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be 1 to 1,048,576."),
        ({"mesh": {"data": -1}}, "mesh.data must be 1 to 4,096."),
        ({"warmup_steps": -1}, "warmup_steps must be 0 or more."),
        ({"learning_rate": -1.0}, "learning_rate must be 0.000000001 to 10."),
        ({"learning_rate": "NaN"}, "learning_rate must be 0.000000001 to 10."),
        ({"weight_decay": -0.5}, "weight_decay must be 0 to 10."),
        (
            {"pipeline_schedule": "1F1P"},
            "pipeline_schedule must be one of 1F1B, GPipe, Interleaved1F1B, ZBVZeroBubble.",
        ),
        (
            {"batch_size": 0, "microbatches": -2},
            "batch_size must be 1 to 1,048,576; microbatches must be 1 to 65,536.",
        ),
    ],
)
def test_what_the_proto_does_not_allow_is_refused_before_it_is_used(
    changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        settings(**changes)
    assert caught.value.message == sentence


def test_the_trainer_knows_every_schedule_that_the_proto_allows() -> None:
    field = TrainSpec.DESCRIPTOR.fields_by_name["pipeline_schedule"]
    assert list(STAGES_PER_RANK) == list(field.GetOptions().Extensions[value_pb2.value].words)


def test_the_name_of_a_checkpoint_holds_every_step_that_the_proto_allows() -> None:
    field = TrainSpec.DESCRIPTOR.fields_by_name["steps"]
    assert field.GetOptions().Extensions[value_pb2.value].most == MAX_STEP


def test_a_tensor_degree_must_divide_the_vocabulary() -> None:
    three = replace(settings(), degrees=Degrees(1, 3, 1))
    three.check(3, 192)
    with pytest.raises(InvalidInput) as caught:
        three.check(3, 64)
    assert caught.value.message == (
        "mesh.tensor is 3, which does not divide the padded vocabulary of 64: use a divisor."
    )


def test_a_job_with_a_wrong_mesh_makes_nothing(tmp_path: Path) -> None:
    job = training_job(tmp_path, tensor=2)
    job.orders["world_size"] = job.orders["local_ranks"] = 1
    job.orders["devices"] = [0]
    with pytest.raises(InvalidInput):
        run(job.context())
    assert job.lines() == []
