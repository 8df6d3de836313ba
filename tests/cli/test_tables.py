"""The tables of options in the documentation are those of the proto and of the command."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.api.jobs.v1 import job_pb2
from appliance.cli import endpoint
from appliance.cli.fields import Field, default_text, fields_of
from appliance.core.values import bounds_of

DOCS = Path(__file__).parents[2] / "docs"
TABLES = {
    "preparing-data.md": ("jobs.v1.job.PrepareSpec", fields_of(job_pb2.PrepareSpec.DESCRIPTOR)),
    "training.md": ("jobs.v1.job.TrainSpec", fields_of(job_pb2.TrainSpec.DESCRIPTOR)),
    "evaluating.md": ("jobs.v1.job.EvaluateSpec", fields_of(job_pb2.EvaluateSpec.DESCRIPTOR)),
    "serving-control.md": (endpoint.MESSAGE, endpoint.SHAPE),
}


def table(message: str, fields: Sequence[Field]) -> str:
    """What is no name of a resource, one row each."""
    rows = ["| option | what it is | if not given | may be |", "| --- | --- | --- | --- |"]
    for field in fields:
        if not isinstance(field.kind, str):
            default = field.otherwise or default_text(message, field.path)
            otherwise = "must be given" if field.required else default or "no"
            may = bounds(message, field)
            rows.append(f"| `{field.flag}` | {field.help} | {otherwise} | {may} |")
    return "\n".join(rows) + "\n"


def bounds(message: str, field: Field) -> str:
    """What a field may be, in a cell."""
    if field.kind is bool:
        return "yes or no"
    module, _, name = message.rpartition(".")
    descriptor = getattr(importlib.import_module(f"appliance.api.{module}_pb2"), name).DESCRIPTOR
    *parts, leaf = field.path.split(".")
    for part in parts:
        descriptor = descriptor.fields_by_name[part].message_type
    return bounds_of(descriptor.fields_by_name[leaf]) or "any whole number"


@pytest.mark.parametrize("page", list(TABLES))
def test_the_table_of_a_page_is_what_proto_and_command_say(page: str) -> None:
    assert table(*TABLES[page]) in (DOCS / page).read_text()
