"""`model download` and `dataset download`, as they are typed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from appliance.api.data.v1 import download_pb2
from appliance.api.projects.v1 import project_pb2
from appliance.client import downloads
from appliance.core.errors import Denied, FailedPrecondition
from tests.fakes.command_line import Run
from tests.fakes.control_api import FakeApi

VERSION = "projects/demo/models/base/versions/3"
Part = download_pb2.DownloadPart


def parts(name: str, files: dict[str, bytes]) -> list[Part]:
    listed = [
        download_pb2.DownloadedFile(file=file, size_bytes=len(data)) for file, data in files.items()
    ]
    found = [
        Part(listing=download_pb2.DownloadListing(name=name, manifest_digest="d1", files=listed))
    ]
    for file, data in files.items():
        end = download_pb2.DownloadedFile(
            file=file, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
        found += [Part(data=data), Part(end=end)]
    return found


def test_a_model_is_downloaded(command: Run, logged_in: FakeApi, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": bytes(100)}
    logged_in.answers["DownloadService.DownloadModelVersion"] = parts(VERSION, files)
    target = tmp_path / "base"
    done = command("model", "download", "base/3", str(target), "-o", "json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == {
        "name": VERSION,
        "folder": str(target),
        "files": 2,
        "size_bytes": 102,
        "manifest_digest": "d1",
    }
    assert {path.name: path.read_bytes() for path in target.iterdir()} == files
    refused = command("model", "download", "base/3", str(target))
    assert refused.code == 1
    assert "--force, which replaces files of the same names" in refused.err
    assert command("model", "download", "base/3", str(target), "--force").code == 0


def test_text_is_downloaded_as_json_lines(command: Run, logged_in: FakeApi, tmp_path: Path) -> None:
    line = b'{"id": "a", "text": "t", "source": ""}\n'
    name = "projects/demo/datasets/docs/versions/1"
    logged_in.answers["DownloadService.DownloadDatasetVersion"] = parts(
        name, {"part-00000.jsonl": line}
    )
    assert command("dataset", "download", "docs/1", str(tmp_path / "docs")).code == 0
    assert (tmp_path / "docs/part-00000.jsonl").read_bytes() == line


def test_who_is_interrupted_is_told_how_to_go_on(
    command: Run, logged_in: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads.Download.run, "__kwdefaults__", {"patience": 0.0, "pause": None})
    files = {"config.json": b"{}", "model.safetensors": bytes(100)}
    whole = parts(VERSION, files)
    logged_in.answers["DownloadService.DownloadModelVersion"] = whole[:3]
    target = tmp_path / "base"
    cut = command("model", "download", "base/3", str(target))
    assert cut.code == 7
    assert f"what came is kept in {tmp_path}/.base.download: the same command goes on" in cut.err
    assert not target.exists()
    logged_in.answers["DownloadService.DownloadModelVersion"] = [whole[0], *whole[3:]]
    assert command("model", "download", "base/3", str(target)).code == 0
    assert logged_in.calls[-1].request.file == "model.safetensors"
    assert {path.name: path.read_bytes() for path in target.iterdir()} == files


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Denied("it needs models.download"), 5),
        (FailedPrecondition("projects/demo does not allow downloads"), 1),
    ],
)
def test_what_is_refused_leaves_nothing(
    command: Run, logged_in: FakeApi, tmp_path: Path, error: Any, code: int
) -> None:
    logged_in.answers["DownloadService.DownloadModelVersion"] = error
    refused = command("model", "download", "base/3", str(tmp_path / "base"))
    assert refused.code == code
    assert error.message in refused.err
    assert "the same command" not in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


def test_a_project_says_whether_it_may_be_downloaded(command: Run, logged_in: FakeApi) -> None:
    logged_in.answers["ProjectService.UpdateProject"] = project_pb2.Project(
        name="projects/demo", allow_downloads=True
    )
    done = command("project", "update", "demo", "--allow-downloads")
    assert done.code == 0
    assert "allowed" in done.out
    (call,) = logged_in.named("ProjectService.UpdateProject")
    assert call.request.project.name == "projects/demo"
    assert call.request.project.allow_downloads
    assert call.request.update_mask.paths == ["allow_downloads"]
    command("project", "update", "demo", "--no-allow-downloads")
    request = logged_in.calls[-1].request
    assert request.update_mask.paths == ["allow_downloads"]
    assert not request.project.allow_downloads
    nothing = command("project", "update", "demo")
    assert nothing.code == 2
