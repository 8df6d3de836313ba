"""Models on their way in: whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from appliance.api.models.v1 import model_pb2, model_service_pb2
from appliance.control.store import tables
from appliance.core.errors import AlreadyExists, InvalidInput, NotFound, Tampered
from appliance.core.model_config import check_config
from tests.fakes import tiny_model
from tests.fakes.lab import ALICE, PROJECT, Lab

Message = model_service_pb2.ImportModelVersionRequest
NAME = "projects/demo/models/base"
NAN = tiny_model.files()["model.safetensors"][:-2] + b"\xc0\x7f"
UUID = "123e4567-e89b-42d3-a456-426614174000"


@pytest.fixture(autouse=True)
def model(lab: Lab) -> None:
    request = model_service_pb2.CreateModelRequest(parent="projects/demo", model_id="base")
    lab.models.create(ALICE, request)


def pieces(files: dict[str, bytes], size: int = 1000) -> Iterable[Message]:
    for file, data in files.items():
        for start in range(0, max(len(data), 1), size):
            yield Message(file=file, data=data[start : start + size])


def bring(
    lab: Lab, messages: Iterable[Message], request_id: str = "", parent: str = NAME
) -> model_pb2.ModelVersion:
    intake = lab.models.begin_import(ALICE, Message(parent=parent, request_id=request_id))
    try:
        for message in messages:
            intake.add(message)
        intake.close()
        return intake.finish()
    finally:
        intake.abort()


def nothing_left(lab: Lab) -> bool:
    lab.work.storage.do_all()
    folder = lab.objects / PROJECT
    return lab.rows(tables.artifact_version) == [] and (
        not folder.exists() or list(folder.iterdir()) == []
    )


def test_a_model_comes_in_sealed_with_its_facts(lab: Lab) -> None:
    files = tiny_model.files() | {"README.md": b"for people"}
    version = bring(lab, pieces(files))
    assert (version.name, version.architecture, version.parameters) == (
        f"{NAME}/versions/1",
        "LlamaForCausalLM",
        tiny_model.PARAMETERS,
    )
    assert (version.format, version.context_length, version.creator) == (
        "bfloat16",
        128,
        "users/alice",
    )
    assert version.size_bytes == sum(map(len, tiny_model.files().values()))
    row = lab.rows(tables.artifact_version)[0]
    reader = lab.work.artifacts.open(row)
    assert {file: reader.read_bytes(file) for file in reader.files()} == tiny_model.files()
    assert lab.models.get(ALICE, NAME).latest_version == version.name
    stored = b"".join(path.read_bytes() for path in lab.objects.rglob("*") if path.is_file())
    assert b"hidden_size" not in stored


def test_a_model_in_several_weight_files_with_an_index(lab: Lab) -> None:
    tensors = list(check_config(tiny_model.CONFIG).shapes.items())
    files = {name: data for name, data in tiny_model.files().items() if "safetensors" not in name}
    weight_map = {}
    for number, part in enumerate((tensors[:5], tensors[5:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        files[file] = tiny_model.safetensors(dict(part))
        weight_map |= {name: file for name, _ in part}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    assert bring(lab, pieces(files)).parameters == tiny_model.PARAMETERS
    del files["model.safetensors.index.json"]
    with pytest.raises(InvalidInput, match="missing beside several weight files"):
        bring(lab, pieces(files))


@pytest.mark.attack
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"modeling_evil.py": b"import os"}, ".py files can hold code"),
        ({"pytorch_model.bin": b"\x80\x04"}, ".bin files can hold code"),
        ({"config.json": b'{"auto_map": {}}'}, "code to run"),
        ({"model.safetensors": b"\x80\x04\x95\x1a\0\0\0\0\0\0\0\x8c"}, "not a safetensors file"),
        ({"tokenizer.json": None}, "tokenizer.json is missing"),
        ({"model.safetensors": None}, "model.safetensors is missing"),
        ({"generation_config.json": b"[" * (2 << 20)}, "larger than"),
        ({"model.safetensors": NAN}, "has a number in 'model.norm.weight' that is none"),
        ({"added_tokens.json": b'{"<s>": 64}'}, "has the token id 64"),
    ],
)
def test_a_bad_file_refuses_the_import_and_leaves_nothing(
    lab: Lab, change: dict[str, bytes | None], text: str
) -> None:
    wanted = tiny_model.files() | change
    files = {name: data for name, data in wanted.items() if data is not None}
    with pytest.raises(InvalidInput, match=text):
        bring(lab, pieces(files, 1 << 20))
    assert nothing_left(lab)


def test_a_cut_import_leaves_nothing(lab: Lab) -> None:
    intake = lab.models.begin_import(ALICE, Message(parent=NAME))
    for message in list(pieces(tiny_model.files()))[:-2]:
        intake.add(message)
    intake.abort()
    assert nothing_left(lab)
    intake = lab.models.begin_import(ALICE, Message(parent=NAME))
    for message in list(pieces(tiny_model.files()))[:-2]:
        intake.add(message)
    # The process is killed here; the next start cleans up.
    lab.restart()
    assert nothing_left(lab)
    assert intake._files._sealed is not None
    intake._files._sealed.abort()


def test_files_out_of_order_twice_or_without_a_name_are_refused(lab: Lab) -> None:
    config = Message(file="config.json", data=tiny_model.files()["config.json"])
    vocabulary = Message(file="vocab.json", data=b"{}")
    for messages, text in (
        ([config, vocabulary, config], "comes in two places"),
        ([Message(data=b"x")], "no name"),
        ([Message(parent=NAME)], "only the first message"),
    ):
        with pytest.raises(InvalidInput, match=text):
            bring(lab, messages)
    with pytest.raises(NotFound):
        lab.models.begin_import(ALICE, Message(parent="projects/none/models/base"))
    with pytest.raises(InvalidInput, match="files follow"):
        lab.models.begin_import(ALICE, Message(parent=NAME, file="config.json"))


def test_a_model_comes_to_be_with_its_first_version_or_not_at_all(lab: Lab) -> None:
    def models() -> set[str]:
        return {row.id for row in lab.rows(tables.artifact)}

    new = "projects/demo/models/new"
    with pytest.raises(InvalidInput, match="can hold code"):
        bring(lab, [Message(file="pytorch_model.bin", data=b"x")], parent=new)
    assert models() == {"base"}
    bring(lab, pieces(tiny_model.files()), parent=new)
    with pytest.raises(InvalidInput, match="can hold code"):
        bring(lab, [Message(file="pytorch_model.bin", data=b"x")], parent=new)
    assert models() == {"base", "new"}


def test_a_repeat_gets_the_first_answer_and_another_content_an_error(lab: Lab) -> None:
    first = bring(lab, pieces(tiny_model.files()), UUID)
    assert bring(lab, pieces(tiny_model.files()), UUID) == first
    assert len(lab.rows(tables.artifact_version)) == 1
    other = tiny_model.files() | {"merges.txt": b"a b"}
    with pytest.raises(InvalidInput, match="different request"):
        bring(lab, pieces(other), UUID)
    lab.work.storage.do_all()
    assert [path.name for path in (lab.objects / PROJECT).iterdir()] == [first.uid]


@pytest.mark.attack
def test_a_version_without_our_signature_is_not_read(lab: Lab) -> None:
    version = bring(lab, pieces(tiny_model.files()))
    row = lab.rows(tables.artifact_version)[0]
    signature = lab.objects / PROJECT / version.uid / "manifest.sig"
    good = signature.read_bytes()
    for bad in (b"", bytes(64), good[:-1], None):
        if bad is None:
            signature.unlink()
        else:
            signature.write_bytes(bad)
        with pytest.raises(Tampered, match="not signed by this appliance"):
            lab.work.artifacts.open(row)
    signature.write_bytes(good)
    lab.work.artifacts.open(row)


def test_models_are_listed_by_pages_and_versions_newest_first(lab: Lab) -> None:
    for name in ("b2", "a1"):
        lab.models.create(
            ALICE, model_service_pb2.CreateModelRequest(parent="projects/demo", model_id=name)
        )
    request = model_service_pb2.ListModelsRequest(parent="projects/demo", page_size=2)
    page = lab.models.list(ALICE, request)
    request.page_token = page.next_page_token
    rest = lab.models.list(ALICE, request)
    names = [model.name.rpartition("/")[2] for model in (*page.models, *rest.models)]
    assert (names, rest.next_page_token) == (["a1", "b2", "base"], "")
    for _ in range(2):
        bring(lab, pieces(tiny_model.files()))
    versions = lab.models.list_versions(
        ALICE, model_service_pb2.ListModelVersionsRequest(parent=NAME)
    ).versions
    assert [version.name for version in versions] == [f"{NAME}/versions/2", f"{NAME}/versions/1"]
    with pytest.raises(AlreadyExists):
        lab.models.create(
            ALICE, model_service_pb2.CreateModelRequest(parent="projects/demo", model_id="base")
        )
