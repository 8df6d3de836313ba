"""A kind of job is named where it lives and nowhere else, so that adding one touches no other file.

Homes: its message in `job.proto`, `kinds/KIND*.py`, the list in `kinds/__init__.py`, the folder of
its function below `jobs/`, generated code. Tests, docs, and those who submit particular jobs as a
person does (the demo, the lab's journey, benches) may name kinds as they like.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.api.jobs.v1 import job_pb2
from appliance.kinds import KINDS, functions, kind_of

ROOT = Path(__file__).parents[2]
SPECS = frozenset(kind_of(kind).spec.DESCRIPTOR.name for kind in KINDS)
USERS = ("tests", "docs", "bench", "deploy/demo", "ansible/lab")
SUFFIXES = {".py", ".proto", ".yaml", ".yml", ".toml", ".csv", ".conf", ".j2", ".service", ".sh"}
# Another word of the same letters, with what it means there.
OTHER_WORDS = {
    ("appliance/control/audit/log.py", "prepare"): "make a record ready to be written",
    ("appliance/control/audit/record.py", "prepare"): "the same",
    ("appliance/control/__main__.py", "prepare"): "the option that starts others with this process",
    ("appliance/control/bootstrap/starting.py", "prepare"): "what that option does",
    ("appliance/cli/supervisor.py", "prepare"): "what a child does before it becomes a program",
    ("appliance/gateway/questions.py", "prepare"): "make a question ready for a version",
    ("appliance/gateway/pipeline.py", "prepare"): "the same",
    ("appliance/core/families.py", "evaluate"): "what can be done with models of a family",
    ("appliance/core/families.py", "quantize"): "the same",
    ("appliance/core/families.py", "train"): "the same",
}
_PATH = re.compile(rf"\bjob\.({'|'.join(KINDS)})\b|\b({'|'.join(KINDS)}) jobs?\b")


def homes() -> Iterator[str]:
    """Where kinds may be named."""
    yield "proto/appliance/api/jobs/v1/job.proto"
    yield "appliance/kinds/__init__.py"
    yield "appliance/api/"
    for kind, run in functions().items():
        yield f"appliance/kinds/{kind}"
        yield "/".join(run.split(".")[:3]) + "/"


def files() -> list[Path]:
    """What is of the appliance itself."""
    skipped = (*homes(), *(f"{user}/" for user in USERS), "build/", ".")
    found = []
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in SUFFIXES and path.is_file() and not name.startswith(skipped):
            found.append(path)
    return found


def named_in_python(text: str) -> set[str]:
    """Kinds and their messages that code names: as identifiers, as texts, as parts of paths."""
    tree = ast.parse(text)
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            word = getattr(node, field, None)
            if isinstance(word, str) and word.rpartition(".")[2] in {*KINDS, *SPECS}:
                found.add(word.rpartition(".")[2])
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found |= named_in_text(node.value)
    return found


def named_in_text(text: str) -> set[str]:
    """Kinds that a text names: alone, in a path, or before the word job."""
    found = {text} & set(KINDS) | {spec for spec in SPECS if spec in text}
    return found | {word for match in _PATH.finditer(text) for word in match.groups() if word}


def named(path: Path) -> set[str]:
    """Kinds that a file names."""
    text = path.read_text()
    if path.suffix == ".py":
        return named_in_python(text)
    # What a comment says is for a person.
    code = re.sub(r"//.*|#.*", "", text)
    found = {word for word in re.findall(r"[\w.-]+", code) if word in {*KINDS, *SPECS}}
    return found | {each for word in re.findall(r'"([^"]*)"', code) for each in named_in_text(word)}


def test_no_other_file_names_a_kind() -> None:
    paths = files()
    assert len(paths) > 400
    wrong = {
        path.relative_to(ROOT).as_posix(): kinds
        for path in paths
        if (
            kinds := {
                word
                for word in named(path)
                if (path.relative_to(ROOT).as_posix(), word) not in OTHER_WORDS
            }
        )
    }
    assert wrong == {}


@pytest.mark.parametrize(("file", "word"), list(OTHER_WORDS))
def test_no_exception_is_left_over(file: str, word: str) -> None:
    assert word in named(ROOT / file)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("job.train.steps = 3", {"train"}),
        ("from appliance.jobs import prepare", {"prepare"}),
        ("SPECS = ('evaluate',)", {"evaluate"}),
        ("x = {'kind': 'quantize'}", {"quantize"}),
        ("f(train=1)", {"train"}),
        ("path = 'job.train.dataset'", {"train"}),
        ("say('only a train job has a mesh')", {"train"}),
        ("job_pb2.TrainSpec()", {"TrainSpec"}),
        ('def f():\n    """Made by prepare jobs."""\n', set()),
        ("say('train your own model')", set()),
    ],
)
def test_what_counts_as_naming_one(code: str, found: set[str]) -> None:
    assert named_in_python(code) == found


def test_every_kind_is_one_of_the_proto_and_has_a_module_of_its_name() -> None:
    members = job_pb2.Job.DESCRIPTOR.oneofs_by_name["spec"].fields
    assert list(KINDS) == [field.name for field in members]
    for name in KINDS:
        assert kind_of(name).name == name
        assert (
            job_pb2.Job.DESCRIPTOR.fields_by_name[name].message_type
            == kind_of(name).spec.DESCRIPTOR
        )
    with pytest.raises(KeyError):
        kind_of("replica")
