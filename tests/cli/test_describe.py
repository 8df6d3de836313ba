"""One resource with what is related to it, and tables that fit a terminal."""

from __future__ import annotations

import json
import re
from typing import Any

import click
import pytest

from appliance.api.data.v1 import dataset_pb2, dataset_service_pb2
from appliance.api.jobs.v1 import (
    checkpoint_pb2,
    checkpoint_service_pb2,
    job_pb2,
    job_service_pb2,
)
from appliance.cli import describing, tables
from appliance.cli.main import NOUNS, appliance
from appliance.cli.output import MORE, field, flowing, wide
from appliance.cli.tables import Table, fitted
from appliance.client.methods import find
from appliance.core.errors import Denied
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

JOB = "projects/demo/jobs/one"


@pytest.fixture
def job(logged_in: FakeApi) -> job_pb2.Job:
    """A job with 21 checkpoints."""
    made = job_pb2.Job(
        name=JOB,
        state="STATE_RUNNING",
        nodes=["nodes/a", "nodes/b"],
        train=job_pb2.TrainSpec(learning_rate=0.5),
        on_lost=job_pb2.OnLost(replace_after_seconds=300),
    )
    made.create_time.FromJsonString("2026-11-28T10:00:00Z")
    found = [
        checkpoint_pb2.Checkpoint(name=f"{JOB}/checkpoints/e1-step-{step}", step=step, state=1)
        for step in range(21)
    ]
    logged_in.answers |= {
        "JobService.GetJob": made,
        "CheckpointService.ListCheckpoints": checkpoint_service_pb2.ListCheckpointsResponse(
            checkpoints=found
        ),
        "JobService.ListJobEvents": job_service_pb2.ListJobEventsResponse(),
    }
    return made


@pytest.mark.usefixtures("job")
def test_get_is_aligned_and_in_words(command: Run) -> None:
    lines = command("job", "get", "one").out.splitlines()
    assert lines[0].split() == ["Name:", JOB]
    said = {" ".join(line.split()) for line in lines}
    assert {"State: RUNNING", "Nodes: nodes/a, nodes/b", "Learning rate: 0.5"} <= said
    assert "Replace after: 5m" in said
    (created,) = (line for line in said if line.startswith("Create time:"))
    assert re.fullmatch(r"Create time: 2026-11-28 10:00:00 UTC \((in )?\w+( ago)?\)", created)
    assert "Checkpoints:" not in said
    values = [re.match(r"[A-Z][^:]*: +", line) for line in lines]
    assert len({each.end() for each in values if each}) == 1


@pytest.mark.usefixtures("job")
def test_describe_goes_on_with_what_is_related(command: Run, logged_in: FakeApi) -> None:
    shown = command("job", "describe", "one").out
    assert shown.startswith(command("job", "get", "one").out)
    fields, checkpoints = shown.split("\nCheckpoints:\n")
    assert "Name:" in fields
    lines = checkpoints.splitlines()
    assert lines[0].split()[:2] == ["CHECKPOINT", "STATE"]
    assert (len(lines), lines[-1]) == (1 + describing.MOST + 1, f"... the first {describing.MOST}")
    found = json.loads(command("job", "describe", "one", "-o", "json").out)
    assert found["name"] == JOB
    assert found["checkpoints"][0]["step"] == 0
    # What one may not list is left out.
    logged_in.answers["CheckpointService.ListCheckpoints"] = Denied("no")
    said = command("job", "describe", "one")
    assert (said.code, "Checkpoints:" in said.out) == (0, False)


def test_a_version_has_no_versions(command: Run, logged_in: FakeApi) -> None:
    name = "projects/demo/datasets/docs"
    logged_in.answers |= {
        "DatasetService.GetDataset": dataset_pb2.Dataset(name=name),
        "DatasetService.GetDatasetVersion": dataset_pb2.DatasetVersion(name=f"{name}/versions/1"),
        "DatasetService.ListDatasetVersions": dataset_service_pb2.ListDatasetVersionsResponse(
            versions=[dataset_pb2.DatasetVersion(name=f"{name}/versions/1", tokens=5)]
        ),
    }
    shown = command("dataset", "describe", "docs").out.split("\nVersions:\n")[1]
    assert shown.splitlines()[1].split()[0] == "docs/1"
    assert "Versions:" not in command("dataset", "describe", "docs/1").out


def nouns() -> list[click.Group]:
    context = click.Context(appliance)
    found = [appliance.get_command(context, noun) for noun in NOUNS]
    return [each for each in found if isinstance(each, click.Group)]


def test_whatever_has_get_has_describe_and_says_what_it_calls(command: Run) -> None:
    with_get = [group for group in nouns() if "get" in group.commands]
    assert len(with_get) > 10
    for group in with_get:
        assert "describe" in group.commands, group.name
    shown = command("job", "describe", "--show-permission").out
    assert "CheckpointService/ListCheckpoints" in shown


def filled(descriptor: Any, depth: int = 0) -> dict[str, Any]:
    """A resource with something long in every field."""
    found: dict[str, Any] = {}
    for each in descriptor.fields:
        value: Any = "projects/production/things/a-rather-long-name-of-something/versions/12"
        if each.name.endswith("_time") or each.name == "time":
            value = "2026-11-28T10:00:00Z"
        elif each.message_type is not None:
            is_map = each.message_type.GetOptions().map_entry
            value = {} if is_map or depth > 2 else filled(each.message_type, depth + 1)
        elif each.enum_type is not None:
            value = max((one.name for one in each.enum_type.values), key=len)
        elif each.cpp_type == each.CPPTYPE_BOOL:
            value = True
        elif each.cpp_type != each.CPPTYPE_STRING:
            value = 1234567
        if each.name == "id":
            value = "0a1b2c3d"
        found[each.name] = [value] * 2 if each.is_repeated and value != {} else value
    return found


@pytest.mark.parametrize("noun", [group.name for group in nouns()])
def test_tables_fit_80_columns_of_a_terminal_and_are_whole_in_a_pipe(
    noun: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = next(each for each in nouns() if each.name == noun)
    module = __import__(group.commands[min(group.commands)].callback.__module__, fromlist=["x"])  # type: ignore[union-attr]
    columns = getattr(module, "COLUMNS", None)
    methods = getattr(group.commands.get("list"), "methods", ())
    if not columns or not methods:
        pytest.skip("it shows no table of resources")
    listed = methods[0]
    service, _, short = listed.partition(".")
    file = find(listed).request.DESCRIPTOR.file
    answer = file.services_by_name[service].methods_by_name[short].output_type
    row = filled(next(each.message_type for each in answer.fields if each.is_repeated))
    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    monkeypatch.setattr(tables, "terminal_width", lambda: 80)
    lines = list(Table(columns, wide=False).lines([row]))
    assert max(map(len, lines)) <= 80
    assert columns[0][1](row) in lines[1]
    assert len(re.split(" {2,}", lines[0])) >= 4
    monkeypatch.setattr(tables, "on_terminal", lambda: False)
    for all_columns in (False, True):
        whole = list(Table(columns, wide=all_columns).lines([row]))
        assert MORE not in whole[1]


def test_the_longest_cells_are_shortened_first_then_the_last_columns_go() -> None:
    assert fitted([10, 60, 30], 80, [10, 10, 10]) == [10, 36, 30]
    assert fitted([10, 60, 50], 80, [10, 10, 10]) == [10, 33, 33]
    assert fitted([10, 12, 12, 12], 40, [10, 10, 10, 10]) == [10, 12, 12, 0]
    assert fitted([90, 10], 80, [10, 10]) == [90, 0]
    assert fitted([10, 10], 80, [10, 10]) == [10, 10]


def test_sentences_flow_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [("NAME", field("name")), flowing("WHY", field("why"))]
    rows = [{"name": "a", "why": "it goes on from the checkpoint"}, {"name": "b", "why": ""}]
    whole = list(Table(columns, wide=False).lines(rows))
    assert whole == ["NAME  WHY", "a     it goes on from the checkpoint", "b"]
    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    monkeypatch.setattr(tables, "terminal_width", lambda: 20)
    lines = list(Table(columns, wide=False).lines(rows))
    assert lines == ["NAME  WHY", "a     it goes on", "      from the", "      checkpoint", "b"]


def test_wide_has_all_columns() -> None:
    columns = [("NAME", field("name")), wide("MORE", field("more"))]
    row = {"name": "a", "more": "b"}
    assert list(Table(columns, wide=False).lines([row])) == ["NAME", "a"]
    assert list(Table(columns, wide=True).lines([row])) == ["NAME  MORE", "a     b"]
