"""Versions on their way out: only where it is allowed, only what was written, and recorded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.api.data.v1 import dataset_service_pb2, download_pb2
from appliance.api.data.v1 import download_service_pb2 as rpc
from appliance.api.projects.v1 import project_pb2, project_service_pb2
from appliance.control.services.common.caller import Caller
from appliance.control.services.data import downloads
from appliance.control.services.data.downloads import LOOK_SECONDS, PIECE_BYTES
from appliance.control.store import tables
from appliance.core.errors import FailedPrecondition, InvalidInput, NotFound, Tampered
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, PROJECT, Lab

LARGE = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"end"
Part = download_pb2.DownloadPart


def caller() -> Caller:
    return dataclasses.replace(ALICE, notes={})


def get(lab: Lab, name: str, who: Caller | None = None, **begin: Any) -> Iterator[Part]:
    request = rpc.DownloadModelVersionRequest(name=name, **begin)
    service = lab.downloads.model if "/models/" in name else lab.downloads.dataset
    return service(who or caller(), request)


def files_of(parts: Iterator[Part]) -> dict[str, bytes]:
    """What came, by file; each end says what it is the end of."""
    listing = next(parts).listing
    left, data = [each.file for each in listing.files], b""
    found: dict[str, bytes] = {}
    for part in parts:
        if part.HasField("end"):
            found[part.end.file] = data
            assert left[-len(left) :][: len(found)]
            data = b""
        else:
            data += part.data
    return found


def test_a_model_comes_out_as_it_went_in(lab: Lab) -> None:
    name, who = lab.model(), caller()
    lab.allow_downloads()
    parts = list(get(lab, name, who))
    listing = parts[0].listing
    wanted = tiny_model.files()
    assert (listing.name, [each.file for each in listing.files]) == (name, sorted(wanted))
    assert [each.size_bytes for each in listing.files] == [len(wanted[n]) for n in sorted(wanted)]
    assert listing.manifest_digest == lab.version_row(name).manifest_digest
    ends = [part.end for part in parts if part.HasField("end")]
    assert {end.file: end.sha256 for end in ends} == {
        file: hashlib.sha256(data).hexdigest() for file, data in wanted.items()
    }
    assert files_of(iter(parts)) == wanted
    total = sum(map(len, wanted.values()))
    assert who.notes == {"content": listing.manifest_digest, "bytes": str(total)}


def test_pieces_are_small_and_read_when_they_are_asked_for(lab: Lab) -> None:
    lab.allow_downloads()
    name, who = lab.version("model", "large", {"a.bin": LARGE}, {}), caller()
    parts = get(lab, name, who)
    assert next(parts).HasField("listing")
    assert who.notes["bytes"] == "0"
    assert len(next(parts).data) == PIECE_BYTES
    # What was handed out is known at every moment, also when the caller leaves here.
    assert who.notes["bytes"] == str(PIECE_BYTES)
    parts.close()
    assert files_of(get(lab, name)) == {"a.bin": LARGE}


@pytest.mark.parametrize("offset", [0, 1, PIECE_BYTES, len(LARGE)])
def test_a_download_goes_on_from_a_file_and_a_byte(
    lab: Lab, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "SIGN_OF_LIFE_BYTES", PIECE_BYTES)
    lab.allow_downloads()
    files = {"a.bin": b"first", "b.bin": LARGE, "c.bin": b""}
    name = lab.version("model", "large", files, {})
    who = caller()
    parts = list(get(lab, name, who, file="b.bin", offset=offset))
    assert len(parts[0].listing.files) == 3
    assert files_of(iter(parts)) == {"b.bin": LARGE[offset:], "c.bin": b""}
    # The digest is over all of the file, not over what was left of it.
    assert parts[-2].end.sha256 == hashlib.sha256(LARGE).hexdigest() or offset == len(LARGE)
    ends = [part.end for part in parts if part.HasField("end")]
    assert ends[0].sha256 == hashlib.sha256(LARGE).hexdigest()
    assert who.notes["bytes"] == str(len(LARGE) - offset)


@pytest.mark.parametrize(
    ("begin", "why"),
    [
        ({"file": "none.bin"}, "is no file of this version"),
        ({"file": "../config.json"}, "is no file of this version"),
        ({"file": "config.json", "offset": 1 << 40}, "offset is not within"),
        ({"offset": -1}, "offset is not within"),
    ],
)
def test_what_is_not_there_is_no_beginning(lab: Lab, begin: dict[str, Any], why: str) -> None:
    lab.allow_downloads()
    name = lab.model()
    with pytest.raises(InvalidInput, match=why):
        get(lab, name, **begin)


@pytest.mark.attack
def test_a_project_allows_nothing_until_somebody_says_so(lab: Lab) -> None:
    model, text = lab.model(), lab.text()
    for name in (model, text):
        with pytest.raises(FailedPrecondition, match=r"project update demo --allow-downloads"):
            get(lab, name)
    projects = lab.projects
    request = project_service_pb2.UpdateProjectRequest(
        project=project_pb2.Project(name="projects/demo", allow_downloads=True),
        update_mask={"paths": ["allow_downloads"]},
    )
    assert projects.update(ALICE, request).allow_downloads
    assert projects.get(ALICE, "projects/demo").allow_downloads
    assert files_of(get(lab, text)) == {"part-00000.jsonl": b"{}\n"}
    request.project.allow_downloads = False
    assert not projects.update(ALICE, request).allow_downloads
    with pytest.raises(FailedPrecondition):
        get(lab, text)


def test_an_update_says_what_it_changes(lab: Lab) -> None:
    projects = lab.projects
    demo, none = (project_pb2.Project(name=f"projects/{name}") for name in ("demo", "none"))
    with pytest.raises(InvalidInput, match="update_mask names no field"):
        projects.update(ALICE, project_service_pb2.UpdateProjectRequest(project=demo))
    mask = {"paths": ["allow_downloads"]}
    none = project_service_pb2.UpdateProjectRequest(project=none, update_mask=mask)
    with pytest.raises(NotFound):
        projects.update(ALICE, none)


@pytest.mark.attack
def test_a_download_ends_when_the_project_allows_it_no_more(lab: Lab) -> None:
    lab.allow_downloads()
    parts = get(lab, lab.version("model", "large", {"a.bin": LARGE}, {}))
    next(parts)
    next(parts)
    lab.allow_downloads(allow=False)
    lab.time.seconds += LOOK_SECONDS
    with pytest.raises(FailedPrecondition, match="does not allow downloads"):
        next(parts)


@pytest.mark.parametrize("files_too", [False, True])
def test_a_version_that_is_deleted_meanwhile_is_said_to_be(lab: Lab, *, files_too: bool) -> None:
    lab.allow_downloads()
    name = lab.version("model", "large", {"a.bin": LARGE, "b.bin": b"x"}, {})
    row = lab.version_row(name)
    parts = get(lab, name)
    next(parts)
    with lab.database.write() as transaction:
        version = tables.artifact_version
        transaction.run(version.delete().where(version.c.uid == row.uid))
    if files_too:
        shutil.rmtree(lab.objects / PROJECT / row.uid)
    else:
        lab.time.seconds += LOOK_SECONDS
    with pytest.raises(NotFound, match="was deleted while it was downloaded"):
        list(parts)


@pytest.mark.attack
def test_bytes_that_were_changed_do_not_leave(lab: Lab) -> None:
    lab.allow_downloads()
    name = lab.version("model", "large", {"a.bin": LARGE}, {})
    path = lab.objects / PROJECT / lab.version_row(name).uid / "a.bin"
    data = bytearray(path.read_bytes())
    data[2 * PIECE_BYTES] ^= 1
    path.write_bytes(data)
    came = bytearray()
    parts = get(lab, name)
    next(parts)
    with pytest.raises(Tampered):
        came.extend(byte for part in parts for byte in part.data)
    assert LARGE.startswith(came)
    path.write_bytes(data[:-1])
    with pytest.raises(Tampered):
        get(lab, name)


def test_text_comes_out_as_the_lines_that_an_upload_takes(lab: Lab) -> None:
    lab.allow_downloads()
    lab.datasets.create(
        ALICE,
        dataset_service_pb2.CreateDatasetRequest(parent="projects/demo", dataset_id="docs"),
    )
    message = dataset_service_pb2.UploadDatasetVersionRequest
    intake = lab.datasets.begin_upload(ALICE, message(parent="projects/demo/datasets/docs"))
    documents = [
        dataset_service_pb2.Document(id="a", text="zwölf \N{SNOWMAN}\n", source="a.txt"),
        dataset_service_pb2.Document(id="b", text='"quoted"'),
    ]
    intake.add(message(documents=documents))
    intake.close()
    version = intake.finish()
    intake.abort()
    found = files_of(get(lab, version.name))
    lines = [json.loads(line) for line in found["part-00000.jsonl"].splitlines()]
    assert [dataset_service_pb2.Document(**line) for line in lines] == documents
