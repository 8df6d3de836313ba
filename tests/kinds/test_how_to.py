"""`docs/how-to/add-a-job-kind.md` works: its kind is built from its blocks, and runs end to end.

Everything happens in a copy of the repository's code, in processes of their own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.pages import ROOT

PAGE = (ROOT / "docs/how-to/add-a-job-kind.md").read_text()
_BLOCK = re.compile(r"```(\w+)[^\n]*\n(.*?)```", re.DOTALL)
_PROTO = "proto/appliance/api/jobs/v1/job.proto"
_KINDS = "appliance/kinds/__init__.py"


def blocks(language: str) -> list[str]:
    """The blocks of a language on the page, in order."""
    return [text for found, text in _BLOCK.findall(PAGE) if found == language]


def files() -> dict[str, str]:
    """The files that the page creates."""
    found = re.findall(r"Create `([\w/.]+)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    return dict(found)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's code with the kind of the page added, as the page says."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("appliance", "proto"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    member, message = blocks("proto")
    proto = copy / _PROTO
    text = proto.read_text()
    spec = text.index("  oneof spec {")
    end = text.index("\n  }\n", spec)
    proto.write_text(f"{text[:end]}\n{member.rstrip()}{text[end:]}\n{message}")
    kinds = copy / _KINDS
    text = kinds.read_text()
    end = text.index("\n}\n", text.index("KINDS: "))
    (line,) = [block for block in blocks("python") if block.startswith("    ")]
    kinds.write_text(f"{text[:end]}\n{line.rstrip()}{text[end:]}")
    for name, content in files().items():
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(content)
    protos = [str(path.relative_to(copy)) for path in sorted((copy / "proto").rglob("*.proto"))]
    outputs = ("--python_out=.", "--pyi_out=.", "--grpc_python_out=.")
    run(copy, "-m", "grpc_tools.protoc", "-Iproto", *outputs, *protos)
    return copy


def run(copy: Path, *arguments: str) -> str:
    """Run Python in the copy; what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_says_what_to_touch_and_how_much() -> None:
    member, message = blocks("proto")
    counted = {
        _PROTO: len((member + message).splitlines()),
        _KINDS: 1,
        "appliance/kinds/subset.py": len(files()["appliance/kinds/subset.py"].splitlines()),
        "appliance/jobs/subset/": sum(
            len(text.splitlines()) for name, text in files().items() if "/jobs/" in name
        ),
    }
    rows = dict(re.findall(r"^\| `([\w/.]+)` \| .* \| (\d+) \|$", PAGE, re.MULTILINE))
    assert {name: int(lines) for name, lines in rows.items()} == counted


def test_the_code_on_the_page_is_formatted_as_ours() -> None:
    for text in files().values():
        for arguments in (("format", "--check", "-"), ("check", "-")):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *arguments, "--stdin-filename=appliance/kinds/y.py"],
                input=text,
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_the_kind_of_the_page_runs_to_its_registered_output(copy: Path, tmp_path: Path) -> None:
    commands = [shlex.split(line)[1:] for line in blocks("sh")[0].splitlines()]
    (document,) = blocks("yaml")
    file = tmp_path / "subset.yaml"
    file.write_text(f"{document}  documents: 3\n")
    commands.append(["job", "create", "again", "-f", str(file), "--wait"])
    told = {"copy": str(copy), "folder": str(tmp_path / "site"), "commands": commands}
    (tmp_path / "site").mkdir()
    printed = run(copy, "-m", "tests.fakes.subset_site", json.dumps(told))
    found = json.loads(printed.splitlines()[-1])
    plan, made, again = found["said"]
    assert "ranks: 1" in plan
    assert "it would start" in plan
    assert "SUCCEEDED" in made
    assert "few/1" in made.split()
    assert "SUCCEEDED" in again
    assert found["facts"] == {
        "few": {"kind": "text", "documents": 2, "tokens": 0},
        "again": {"kind": "text", "documents": 3, "tokens": 0},
    }
    assert found["slots"] == ["subset", "subset"]
    assert found["asked"][0] == {
        "job.spec": "subset",
        "job.subset.dataset": "projects/demo/datasets/raw/versions/1",
        "job.subset.output_dataset": "projects/demo/datasets/few",
    }
