"""Defaults and bounds are those of the proto, and a zero that was asked for is a zero."""

from __future__ import annotations

import math

import pytest

from appliance.api.jobs.v1.job_pb2 import EvaluateSpec, Mesh, PrepareSpec, QuantizeSpec, TrainSpec
from appliance.api.serving.v1.endpoint_pb2 import Endpoint
from appliance.core import values
from appliance.kinds.train_settings import microbatches, pipeline_schedule

SPECS = (PrepareSpec, TrainSpec, QuantizeSpec, EvaluateSpec)


@pytest.mark.parametrize(
    ("message", "name", "held"),
    [
        (TrainSpec(), "learning_rate", 0.001),
        (TrainSpec(learning_rate=0.0), "learning_rate", 0.0),
        (TrainSpec(learning_rate=0.5), "learning_rate", 0.5),
        (TrainSpec(), "seed", 0),
        (TrainSpec(seed=-(1 << 63)), "seed", -(1 << 63)),
        (PrepareSpec(validation_fraction=0.0), "validation_fraction", 0.0),
        (PrepareSpec(), "shard_tokens", 1 << 20),
        (Mesh(data=0), "data", 0),
        (Endpoint(), "cache_bytes", 1 << 30),
    ],
)
def test_a_field_is_what_was_asked_for_or_else_what_the_proto_says(
    message: TrainSpec, name: str, held: float
) -> None:
    found = values.given(message, name)
    assert (found, type(found)) == (held, type(held))


def test_a_default_is_never_above_what_the_model_can_and_a_wish_is_kept() -> None:
    assert values.given(EvaluateSpec(), "window", most=1024) == 512
    assert values.given(EvaluateSpec(), "window", most=128) == 128
    assert values.given(EvaluateSpec(window=256), "window", most=128) == 256


def test_a_field_without_a_default_must_be_asked_for_by_its_function() -> None:
    with pytest.raises(KeyError, match=r"TrainSpec\.microbatches has no default"):
        values.given(TrainSpec(), "microbatches")
    assert microbatches(TrainSpec()) == 1
    assert microbatches(TrainSpec(mesh=Mesh(pipeline=3))) == 6
    assert microbatches(TrainSpec(mesh=Mesh(pipeline=3), microbatches=0)) == 0
    assert pipeline_schedule(TrainSpec()) == "1F1B"
    assert pipeline_schedule(TrainSpec(pipeline_schedule="GPipe")) == "GPipe"
    assert pipeline_schedule(TrainSpec(pipeline_schedule="")) == "1F1B"


def test_what_is_filled_in_leaves_alone_what_was_asked_for() -> None:
    spec = TrainSpec(steps=7, weight_decay=0.0, gradient_clip=0.25, mesh=Mesh(tensor=2))
    values.fill(spec)
    assert (spec.mesh.data, spec.mesh.tensor, spec.mesh.pipeline) == (1, 2, 1)
    assert (spec.learning_rate, spec.gradient_clip, spec.seed) == (0.001, 0.25, 0)
    assert not spec.HasField("architecture")
    assert not spec.HasField("microbatches")
    zero = PrepareSpec(validation_fraction=0.0)
    values.fill(zero)
    assert zero.validation_fraction == 0.0
    assert zero.vocabulary_size == 8192


def test_every_wrong_field_has_its_path_and_what_it_may_hold() -> None:
    spec = TrainSpec(
        mesh=Mesh(data=-1),
        steps=-5,
        batch_size=1,
        sequence_length=2,
        microbatches=0,
        learning_rate=math.nan,
        weight_decay=math.inf,
        warmup_steps=-1,
        pipeline_schedule="Magic",
    )
    found = values.wrong(spec, "job.train")
    assert {path: text for path, text in found.items() if ".architecture." not in path} == {
        "job.train.mesh.data": "must be 1 to 4,096",
        "job.train.steps": "must be 1 to 99,999,999",
        "job.train.microbatches": "must be 1 to 65,536",
        "job.train.learning_rate": "must be 0.000000001 to 10",
        "job.train.weight_decay": "must be 0 to 10",
        "job.train.warmup_steps": "must be 0 or more",
        "job.train.pipeline_schedule": "must be one of 1F1B, GPipe, Interleaved1F1B, ZBVZeroBubble",
    }
    assert found["job.train.architecture.layers"] == "must be 1 to 262,144"


def test_a_text_that_is_empty_was_not_set() -> None:
    assert "pipeline_schedule" not in values.wrong(TrainSpec(pipeline_schedule=""))


@pytest.mark.parametrize("spec", SPECS)
def test_every_default_is_within_its_own_bounds(spec: type[TrainSpec]) -> None:
    filled = spec()
    values.fill(filled)
    given = {field.name for field, _ in filled.ListFields()}
    assert not given & set(values.wrong(filled))


SAID = {"generation"}
"""Numbers that the appliance says and nobody asks for."""


@pytest.mark.parametrize("spec", [*SPECS, Mesh, Endpoint])
def test_every_field_with_a_default_knows_whether_it_was_set(spec: type[TrainSpec]) -> None:
    for field in spec.DESCRIPTOR.fields:
        if values.default_of(field) is not None:
            assert field.has_presence, field.name
        # A number whose zero nobody could mean needs no presence, but bounds without it.
        elif field.message_type is None and not field.has_presence and field.name not in SAID:
            bounds = values.bounds_of(field)
            numbers = {field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_DOUBLE}
            assert bounds or field.cpp_type not in numbers, field.name
