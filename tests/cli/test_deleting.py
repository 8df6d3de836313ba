"""Commands that delete data: a person types the name, a script says --yes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.api.data.v1 import tombstone_pb2, tombstone_service_pb2
from appliance.api.projects.v1 import project_service_pb2
from appliance.core.errors import FailedPrecondition
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

DOCS = "projects/demo/datasets/docs"
UID = "0f" * 16
GONE = tombstone_pb2.Deletion(
    versions=3, size_bytes=12, tombstones=[f"projects/demo/tombstones/{UID}"], etag="seen"
)


@pytest.mark.parametrize(
    ("line", "rpc", "name"),
    [
        ("dataset delete docs", "DatasetService.DeleteDataset", DOCS),
        ("dataset delete docs/3", "DatasetService.DeleteDatasetVersion", f"{DOCS}/versions/3"),
        ("model delete m", "ModelService.DeleteModel", "projects/demo/models/m"),
        (
            "model delete m/2",
            "ModelService.DeleteModelVersion",
            "projects/demo/models/m/versions/2",
        ),
        ("tokenizer delete t", "TokenizerService.DeleteTokenizer", "projects/demo/tokenizers/t"),
        ("report delete r", "ReportService.DeleteReport", "projects/demo/reports/r"),
    ],
)
def test_a_script_says_yes_and_is_asked_nothing(
    command: Run, logged_in: FakeApi, line: str, rpc: str, name: str
) -> None:
    logged_in.answers[rpc] = GONE
    refused = command(*line.split())
    assert (refused.code, logged_in.calls) == (3, [])
    assert "give --yes" in refused.err
    done = command(*line.split(), "--yes", "--etag", "mine", "-o", "json")
    assert (done.code, json.loads(done.out)["versions"]) == (0, 3)
    (call,) = logged_in.named(rpc)
    assert (call.request.name, call.request.etag, call.request.validate_only) == (
        name,
        "mine",
        False,
    )


@pytest.mark.parametrize("typed", ["docs", DOCS])
def test_a_person_types_the_name_and_deletes_what_was_asked_about(
    command: Run, logged_in: FakeApi, terminal: list[Any], typed: str
) -> None:
    logged_in.answers["DatasetService.DeleteDataset"] = GONE
    terminal.append(typed)
    done = command("dataset", "delete", "docs")
    assert done.code == 0
    assert f"{DOCS} goes with 3 versions (12 B)" in done.err
    asked, deleted = logged_in.named("DatasetService.DeleteDataset")
    assert (asked.request.validate_only, deleted.request.validate_only) == (True, False)
    assert deleted.request.etag == "seen"
    assert asked.request.request_id != deleted.request.request_id


def test_another_name_deletes_nothing(
    command: Run, logged_in: FakeApi, terminal: list[Any]
) -> None:
    logged_in.answers["DatasetService.DeleteDataset"] = GONE
    terminal.append("doc")
    done = command("dataset", "delete", "docs")
    assert (done.code, len(logged_in.calls)) == (3, 1)
    assert "another name was typed" in done.err


def test_what_is_in_use_is_said_before_anybody_is_asked(
    command: Run, logged_in: FakeApi, terminal: list[Any]
) -> None:
    logged_in.answers["DatasetService.DeleteDataset"] = FailedPrecondition("it is in use")
    done = command("dataset", "delete", "docs")
    assert (done.code, terminal) == (1, [])
    assert "it is in use" in done.err


def test_a_project_is_deleted_by_its_name(
    command: Run, logged_in: FakeApi, terminal: list[Any]
) -> None:
    rpc = "ProjectService.DeleteProject"
    logged_in.answers[rpc] = project_service_pb2.DeleteProjectResponse(bindings=2)
    assert command("project", "delete", "demo", "--yes").code == 0
    terminal.append("demo")
    assert command("project", "delete", "demo").code == 0
    called = [call.request for call in logged_in.named(rpc)]
    assert [request.name for request in called] == ["projects/demo"] * 3
    assert [request.validate_only for request in called] == [False, True, False]


def test_tombstones_are_listed_with_what_is_gone(command: Run, logged_in: FakeApi) -> None:
    tombstone = tombstone_pb2.Tombstone(
        name=f"projects/demo/tombstones/{UID}",
        deleted=f"{DOCS}/versions/3",
        deleter="users/alice",
        statement='{"payload": "e30="}',
    )
    logged_in.answers["TombstoneService.GetTombstone"] = tombstone
    tombstone.erase_time.GetCurrentTime()
    page = tombstone_service_pb2.ListTombstonesResponse(tombstones=[tombstone])
    logged_in.answers["TombstoneService.ListTombstones"] = page
    done = command("tombstone", "list")
    assert done.err == ""
    listed = done.out.split()
    assert listed[5:10] == [UID, "dataset", "docs/3", "alice", "key"]
    shown = command("tombstone", "get", UID)
    assert UID in shown.out
    # What was signed is for programs.
    assert ("payload" in shown.out, "-o json" in shown.err) == (False, True)
    assert "payload" in command("tombstone", "get", UID, "-o", "json").out
    call, _ = logged_in.named("TombstoneService.GetTombstone")
    assert call.request.name == tombstone.name
