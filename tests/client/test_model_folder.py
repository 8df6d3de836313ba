"""What a folder is said to hold before anything of it is sent."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from appliance.client import model_folder
from appliance.core.errors import InvalidInput
from tests.fakes import tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model, with what real ones have beside it."""
    for name, data in tiny_model.files().items():
        (tmp_path / name).write_bytes(data)
    for name in ("tokenizer.model", "USE_POLICY.md", "eval_results.json", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".gitignore").write_bytes(b"x")
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "consolidated.00.pth").write_bytes(b"x")
    return tmp_path


def change(folder: Path, **members: Any) -> None:
    (folder / "config.json").write_text(json.dumps(tiny_model.CONFIG | members))


def problems(folder: Path) -> dict[str, str]:
    with pytest.raises(InvalidInput) as raised:
        model_folder.examine(folder)
    return raised.value.fields


def test_a_real_folder_needs_no_tidying(folder: Path) -> None:
    found = model_folder.examine(folder)
    assert dict(found.files) == {name: len(data) for name, data in tiny_model.files().items()}
    assert found.files[-1][0] == "model.safetensors"
    assert found.left_out == {
        ".gitignore": "hidden",
        ".cache/": "a folder",
        "original/": "a folder",
        "USE_POLICY.md": "nobody here reads it",
        "eval_results.json": "nobody here reads it",
        "pytorch_model.bin": "weights in another format",
        "tokenizer.model": "nobody here reads it",
    }
    assert (found.config.family.name, found.parameters) == ("Llama", tiny_model.PARAMETERS)


def test_everything_that_cannot_be_used_is_said_at_once(folder: Path) -> None:
    change(folder, vocab_size=0, auto_map={"AutoModel": "x.Y"})
    (folder / "modeling_x.py").write_text("")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle of something")
    (folder / "tokenizer.json").unlink()
    assert list(problems(folder)) == [
        "'modeling_x.py'",
        "tokenizer.json",
        "chat_template.jinja",
        "config.json.auto_map",
        "model.safetensors",
        "config.json.vocab_size",
    ]


@pytest.mark.parametrize(
    ("file", "data", "expected"),
    [
        ("model.safetensors", b"", "ends inside its header"),
        ("model.safetensors", tiny_model.safetensors({"a": (2,)}), "'model.embed_tokens.weight'"),
        ("model.safetensors", tiny_model.files()["model.safetensors"] + b"x", "copy it again"),
        ("added_tokens.json", b'{"<s>": 64}', "has the token id 64"),
        ("config.json", b"[]", "is not a JSON object"),
        ("config.json", b"x" * (2 << 20), "2,097,152 bytes; 0 to 1,048,576 are taken"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "which file holds which tensor"),
    ],
)
def test_what_the_control_plane_would_find_out_later(
    folder: Path, file: str, data: bytes, expected: str
) -> None:
    (folder / file).write_bytes(data)
    ((name, why),) = problems(folder).items()
    assert (name, expected in why) == (file, True)


def test_weights_that_hold_code_alone_are_refused_with_what_to_do(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert list(problems(folder)) == ["'pytorch_model.bin'"]
    with pytest.raises(InvalidInput, match=r"can hold code.*save_pretrained"):
        model_folder.examine(folder)


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "merges.txt").symlink_to("/proc/self/mem")
    assert "cannot be read" in problems(folder)["merges.txt"]


def test_a_file_whose_name_is_no_text_can_be_printed(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff.md")).write_bytes(b"x")
    left = model_folder.examine(folder).left_out
    assert "\ufffd.md" in left
    assert "".join(left).encode()
    (folder / os.fsdecode(b"\xff.py")).write_bytes(b"x")
    assert "".join(problems(folder)).encode()


def test_a_folder_without_configuration_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"config\.json"):
        model_folder.examine(tmp_path)
