"""What every kind says of itself fits its message."""

from __future__ import annotations

import pytest

from appliance.api.jobs.v1 import job_pb2
from appliance.core.artifact_kinds import ARTIFACT_KINDS
from appliance.core.names import PATTERNS
from appliance.core.problems import Problems
from appliance.core.values import value_of
from appliance.kinds import KINDS, kind_of
from appliance.kinds.kind import CHECKPOINT, Input


@pytest.mark.parametrize("name", KINDS)
def test_what_a_kind_reads_and_makes_is_what_its_fields_name(name: str) -> None:
    kind = kind_of(name)
    options = {field.name: value_of(field) for field in kind.spec.DESCRIPTOR.fields}
    names = {field: value.names for field, value in options.items() if value and value.names}
    said = {each.field for each in kind.reads} | {each.field for each in kind.makes}
    assert said == names.keys()
    assert set(names.values()) <= PATTERNS.keys()
    for read in kind.reads:
        for artifact in read.kinds:
            if artifact == CHECKPOINT:
                assert names[read.field] == CHECKPOINT
            else:
                assert (
                    names[read.field].removesuffix("Version") == ARTIFACT_KINDS[artifact].resource
                )
    for made in kind.makes:
        assert names[made.field] == ARTIFACT_KINDS[made.kind].resource
    assert len({made.slot for made in kind.makes}) == len(kind.makes)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_that_keeps_checkpoints_says_how_many_are_kept(name: str) -> None:
    kind = kind_of(name)
    has_rule = {"keep_last", "keep_every"} <= {field.name for field in kind.spec.DESCRIPTOR.fields}
    assert (kind.checkpoint_bytes is not None) is has_rule


def test_what_holds_something_else_is_said_and_not_looked_at() -> None:
    """Facts of another artifact kind are others: a check that reads them would fail."""
    kind, problems = kind_of("evaluate"), Problems()
    inputs = {
        kind.path("model"): Input("adapter", {}, 1),
        kind.path("dataset"): Input("text", {}, 1),
    }
    kind.note_problems(kind.spec(), inputs, problems)
    assert problems.fields == {
        "job.evaluate.model": "holds adapter; name a version of model",
        "job.evaluate.dataset": "holds text; name a version of tokens",
    }


@pytest.mark.parametrize("report", ["", "projects/demo/reports/quality"])
def test_a_report_needs_an_agent_that_knows_of_it(report: str) -> None:
    facts = {"parameters": 1, "vocabulary_size": 8, "context_length": 8}
    spec = job_pb2.EvaluateSpec(output_report=report)
    demand = kind_of("evaluate").demand(spec, {"job.evaluate.model": Input("model", facts, 1)})
    assert demand.new_agent is bool(report)
