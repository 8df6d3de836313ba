"""Models that come in part by part: refused early, checked whole, sealed as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.control.services.data import upload_layout
from appliance.control.store import tables
from appliance.core.errors import FailedPrecondition, InvalidInput, StoreFull
from appliance.crypto.artifacts import ArtifactWriter
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, PROJECT, Lab
from tests.fakes.parts import MODEL, begin, commit, pieces_of, send

PART = 1000
NAN = tiny_model.files()["model.safetensors"][:-2] + b"\xc0\x7f"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("upload_layout", "upload_parts", "upload_rows"):
        monkeypatch.setattr(f"appliance.control.services.data.{module}.PART_BYTES", PART)


def sizes(files: dict[str, bytes]) -> list[tuple[str, int]]:
    return [(file, len(data)) for file, data in files.items()]


def bring(lab: Lab, files: dict[str, bytes]) -> tuple[str, list[bytes]]:
    """All parts of a model; the upload's name and the parts."""
    upload = begin(lab, MODEL, sizes(files))
    parts = pieces_of(files, PART)
    for number, part in reversed(list(enumerate(parts))):
        send(lab, upload.name, number, part, pieces=3)
    return upload.name, parts


def left(lab: Lab) -> list[Path]:
    lab.work.storage.do_all()
    project = lab.objects / PROJECT
    return sorted(project.iterdir()) if project.exists() else []


def test_a_model_comes_in_sealed_with_its_facts(lab: Lab) -> None:
    more = [("README.md", 5), ("tokenizer.model", 9), ("pytorch_model.bin", 9)]
    upload = begin(lab, MODEL, [*sizes(tiny_model.files()), *more])
    assert {each.file: each.size_bytes for each in upload.files} == dict(sizes(tiny_model.files()))
    assert upload.part_bytes == PART
    name, parts = bring(lab, tiny_model.files())
    commit(lab, name, parts)
    lab.work.storage.do_all()
    done = lab.uploads.get(ALICE, name)
    version = lab.models.get_version(ALICE, done.version)
    assert (version.parameters, version.creator) == (tiny_model.PARAMETERS, "users/alice")
    reader = lab.work.artifacts.open(lab.version_row(done.version))
    assert {file: reader.read_bytes(file) for file in reader.files()} == tiny_model.files()
    assert [path.name for path in left(lab)] == [version.uid]


@pytest.mark.attack
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"modeling_evil.py": 9, "x.tar": 9}, r"modeling_evil.py' is refused: .py .* 'x.tar' is"),
        ({"../config.json": 9}, "is refused"),
        ({"config.json": 2 << 20}, "config.json has 2,097,152 bytes"),
        ({"tokenizer.json": -1}, "tokenizer.json has -1 bytes"),
        ({"model.safetensors": None}, "model.safetensors is missing"),
        ({"model.safetensors": 1 << 40}, "more than a model may have"),
    ],
)
def test_what_is_refused_by_its_name_or_size_is_refused_before_a_byte(
    lab: Lab, change: dict[str, int | None], text: str
) -> None:
    files = dict(sizes(tiny_model.files())) | change
    with pytest.raises(InvalidInput, match=text):
        begin(lab, MODEL, [(file, size) for file, size in files.items() if size is not None])
    twice = [*sizes(tiny_model.files()), ("config.json", 2)]
    with pytest.raises(InvalidInput, match=r"config\.json comes twice"):
        begin(lab, MODEL, twice)
    assert lab.rows(tables.upload) + lab.rows(tables.artifact_version) == []


@pytest.mark.attack
def test_a_part_has_the_bytes_that_were_agreed(lab: Lab) -> None:
    files = tiny_model.files()
    parts = pieces_of(files, PART)
    upload = begin(lab, MODEL, sizes(files))
    with pytest.raises(InvalidInput, match="number must be 0 to"):
        send(lab, upload.name, len(parts), b"x")
    with pytest.raises(InvalidInput, match="has more than the"):
        send(lab, upload.name, len(parts) - 1, parts[-1] + b"x")
    with pytest.raises(InvalidInput, match="has fewer than the"):
        send(lab, upload.name, 0, parts[0][:-1])
    send(lab, upload.name, 0, parts[0])
    with pytest.raises(FailedPrecondition, match=f"part 1 of {len(parts)} is missing"):
        commit(lab, upload.name, parts)
    with pytest.raises(FailedPrecondition, match="is missing"):
        commit(lab, upload.name, parts[:1])


@pytest.mark.attack
def test_a_bad_configuration_is_refused_with_its_part(lab: Lab) -> None:
    bad = b'{"auto_map": {}}'
    files = {"config.json": bad} | {
        file: data for file, data in tiny_model.files().items() if file != "config.json"
    }
    upload = begin(lab, MODEL, sizes(files))
    with pytest.raises(InvalidInput, match="code to run"):
        send(lab, upload.name, 0, bad)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model.safetensors": b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c"}, "not a safetensors file"),
        ({"model.safetensors": NAN}, "has a number in 'model.norm.weight' that is none"),
        ({"added_tokens.json": b'{"<s>": 64}'}, "has the token id 64"),
    ],
)
def test_content_that_is_no_model_ends_the_upload_and_leaves_nothing(
    lab: Lab, change: dict[str, bytes], text: str
) -> None:
    name, parts = bring(lab, tiny_model.files() | change)
    commit(lab, name, parts)
    lab.work.storage.do_all()
    failed = lab.uploads.get(ALICE, name)
    assert (failed.state, text in failed.message) == (failed.STATE_FAILED, True)
    assert (left(lab), lab.rows(tables.artifact_version), lab.rows(tables.artifact)) == (
        [],
        [],
        [],
    )


def test_a_full_store_and_a_kill_in_the_middle_of_a_commit_only_cost_time(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, parts = bring(lab, tiny_model.files())
    commit(lab, name, parts)
    finish = ArtifactWriter.finish

    def full(self: ArtifactWriter) -> bytes:
        finish(self)
        raise StoreFull("no space is left for manifest.json in the object store: free some")

    monkeypatch.setattr(ArtifactWriter, "finish", full)
    lab.work.storage.do_all()
    waiting = lab.uploads.get(ALICE, name)
    assert waiting.state == waiting.STATE_COMMITTING
    assert waiting.message.startswith("no space is left for manifest.json")
    monkeypatch.setattr(ArtifactWriter, "finish", finish)
    lab.restart()
    assert lab.uploads.get(ALICE, name).version == f"{MODEL}/versions/1"


def test_a_full_store_refuses_a_part_and_keeps_the_others(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_model.files()
    upload, parts = begin(lab, MODEL, sizes(files)), pieces_of(files, PART)
    send(lab, upload.name, 0, parts[0])
    create = ArtifactWriter.create

    def full(self: ArtifactWriter, file: str) -> object:
        raise StoreFull(f"no space is left for {file} in the object store: free some")

    monkeypatch.setattr(ArtifactWriter, "create", full)
    with pytest.raises(StoreFull):
        send(lab, upload.name, 1, parts[1])
    monkeypatch.setattr(ArtifactWriter, "create", create)
    for number, part in enumerate(parts):
        send(lab, upload.name, number, part)
    commit(lab, upload.name, parts)
    assert upload_layout.PART_BYTES == PART
