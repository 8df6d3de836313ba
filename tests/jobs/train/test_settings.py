"""Defaults, and one sentence for each degree or size that cannot work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from appliance.api.jobs.v1.job_pb2 import TrainSpec
from appliance.core.errors import InvalidInput
from appliance.jobs.train.job import run
from appliance.jobs.train.settings import Degrees, Settings
from tests.fakes.training import SPEC, training_job


def settings(**changes: Any) -> Settings:
    spec = {key: value for key, value in SPEC.items() if key not in changes}
    return Settings.from_spec(ParseDict(spec | changes, TrainSpec()))


def test_what_is_left_out_has_the_documented_default() -> None:
    bare = Settings.from_spec(TrainSpec(steps=3))
    assert bare.degrees == Degrees(1, 1, 1)
    assert (bare.schedule, bare.microbatches, bare.learning_rate) == ("1F1B", 1, 0.001)
    assert (bare.gradient_clip, bare.checkpoint_interval) == (1.0, 50)
    assert settings(mesh={"pipeline": 2}).microbatches == 4


def test_a_zero_that_was_asked_for_is_a_zero() -> None:
    asked = TrainSpec(steps=3, learning_rate=0.0, gradient_clip=0.0, microbatches=0)
    found = Settings.from_spec(asked)
    assert (found.learning_rate, found.gradient_clip, found.microbatches) == (0.0, 0.0, 0)


def test_a_mesh_that_fits_is_accepted() -> None:
    settings(mesh={"data": 2, "tensor": 2, "pipeline": 2}).check(8)


WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    (
        {"mesh": {"tensor": 2, "pipeline": 2}},
        3,
        "mesh",
        (
            "The mesh data 1 x tensor 2 x pipeline 2 needs 4 ranks, but the job has 3;"
            " make the product of the degrees the number of ranks."
        ),
    ),
    (
        {"mesh": {"tensor": 4}},
        4,
        "mesh.tensor",
        (
            "The tensor degree 4 does not divide key and value heads (2);"
            " choose a degree that divides them."
        ),
    ),
    (
        {"mesh": {"tensor": 3}},
        3,
        "mesh.tensor",
        (
            "The tensor degree 3 does not divide attention heads (4), key and value heads (2);"
            " choose a degree that divides them."
        ),
    ),
    (
        {"mesh": {"pipeline": 3}, "batch_size": 12},
        3,
        "mesh.pipeline",
        (
            "The pipeline degree 3 with schedule 1F1B makes 3 stages, which do not divide 4 layers;"
            " choose a degree or a number of layers that divides."
        ),
    ),
    (
        {"mesh": {"pipeline": 4}, "pipeline_schedule": "ZBVZeroBubble"},
        4,
        "mesh.pipeline",
        (
            "The pipeline degree 4 with schedule ZBVZeroBubble makes 8 stages, which do not divide"
            " 4 layers; choose a degree or a number of layers that divides."
        ),
    ),
    (
        {"mesh": {"data": 3}},
        3,
        "mesh.data",
        (
            "The data degree 3 does not divide batch_size 8;"
            " choose a multiple of the degree as batch_size."
        ),
    ),
    (
        {"mesh": {"data": 2}, "microbatches": 3},
        2,
        "microbatches",
        (
            "3 microbatches do not divide the 4 sequences of a data rank;"
            " make batch_size a multiple of 6."
        ),
    ),
    (
        {"mesh": {"pipeline": 2}, "microbatches": 1},
        2,
        "microbatches",
        "1 microbatches cannot fill 2 pipeline ranks; choose at least 2, better 4.",
    ),
    (
        {"mesh": {"pipeline": 2}, "microbatches": 1, "pipeline_schedule": "Interleaved1F1B"},
        2,
        "microbatches",
        (
            "1 microbatches are no multiple of the pipeline degree 2, which Interleaved1F1B needs;"
            " choose a multiple, such as 4."
        ),
    ),
    (
        {"pipeline_schedule": "1F1P"},
        1,
        "pipeline_schedule",
        (
            "There is no pipeline schedule 1F1P;"
            " choose one of 1F1B, GPipe, Interleaved1F1B, ZBVZeroBubble."
        ),
    ),
    (
        {"sequence_length": 64},
        1,
        "sequence_length",
        "sequence_length 64 is longer than context_length 32; shorten one or lengthen the other.",
    ),
    ({"batch_size": 0}, 1, "batch_size", "batch_size is 0; it must be at least 1."),
    ({"mesh": {"data": -1}}, 1, "mesh.data", "mesh.data is -1; it must be at least 1."),
    (
        {"warmup_steps": 99},
        1,
        "warmup_steps",
        "warmup_steps is 99; it must lie between 0 and steps.",
    ),
    (
        {"learning_rate": -1.0},
        1,
        "learning_rate",
        "learning_rate is -1.0; it must be above 0.",
    ),
    (
        {"learning_rate": "NaN"},
        1,
        "learning_rate",
        "learning_rate is nan; it must be above 0.",
    ),
    (
        {"weight_decay": -0.5},
        1,
        "weight_decay",
        "weight_decay is -0.5; it must not be negative.",
    ),
    (
        {"architecture": SPEC["architecture"] | {"key_value_heads": 3}},
        1,
        "architecture.key_value_heads",
        "3 key and value heads do not divide 4 attention heads; choose a divisor.",
    ),
    (
        {"architecture": SPEC["architecture"] | {"hidden_size": 36}},
        1,
        "architecture.attention_heads",
        "hidden_size 36 is no multiple of twice the 4 attention heads; choose sizes that divide.",
    ),
]


@pytest.mark.parametrize(("changes", "ranks", "field", "sentence"), WRONG)
def test_what_cannot_work_is_one_sentence(
    changes: dict[str, Any], ranks: int, field: str, sentence: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        settings(**changes).check(ranks)
    assert caught.value.message == sentence
    assert caught.value.fields == {field: sentence}


def test_several_wrong_fields_are_all_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(settings(), batch_size=0, microbatches=-2).check(1)
    assert set(caught.value.fields) == {"batch_size", "microbatches"}


def test_a_tensor_degree_must_divide_the_vocabulary() -> None:
    three = replace(settings(), degrees=Degrees(1, 3, 1))
    three.check_vocabulary(192)
    with pytest.raises(InvalidInput) as caught:
        three.check_vocabulary(64)
    assert caught.value.message == (
        "The tensor degree 3 does not divide the 64 entries of the vocabulary;"
        " choose a power of two."
    )


def test_a_job_with_a_wrong_mesh_makes_nothing(tmp_path: Path) -> None:
    job = training_job(tmp_path, tensor=2)
    job.orders["world_size"] = job.orders["local_ranks"] = 1
    job.orders["devices"] = [0]
    with pytest.raises(InvalidInput):
        run(job.context())
    assert job.lines() == []
