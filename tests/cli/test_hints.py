"""Every sentence that tells somebody to type `appliance ...` names a command that there is.

Found by reading the code: all strings of the package, those of the policies and of the protos. A
part that is filled in at run time counts as a word.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from appliance.cli.main import NOUNS
from tests.fakes.command_line import check_appliance
from tests.fakes.pages import ROOT

FILLED = "X"
_TYPED = re.compile(rf"`(appliance [^`]*|(?:{'|'.join(NOUNS)}) [a-z][^`]*)`")
NOT_TYPED = {"appliance certificate recovery 1": "what a proof of a key is signed for"}
_OTHERS = ("policies/*.yaml", "proto/**/*.proto", "deploy/**/*.service", "ansible/**/*.yml")


def texts(path: Path) -> Iterator[str]:
    """Each string of a file of Python, with `X` for what is filled in; docstrings too."""
    tree = ast.parse(path.read_text())
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else FILLED
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            yield str(node.value)


def found() -> list[tuple[str, str]]:
    """File, and each command that it tells somebody to type."""
    hints = set()
    for path in sorted((ROOT / "appliance").rglob("*.py")):
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            where = path.relative_to(ROOT).as_posix()
            hints |= {(where, hint) for text in texts(path) for hint in _TYPED.findall(text)}
    for pattern in _OTHERS:
        for path in sorted(ROOT.glob(pattern)):
            where = path.relative_to(ROOT).as_posix()
            hints |= {(where, hint) for hint in _TYPED.findall(path.read_text())}
    return sorted(hints)


HINTS = [each for each in found() if each[1] not in NOT_TYPED]


def test_hints_are_found() -> None:
    assert len(HINTS) > 40
    assert ("appliance/cli/failures.py", "appliance whoami") in HINTS


@pytest.mark.parametrize(("where", "hint"), HINTS)
def test_a_hint_can_be_typed(where: str, hint: str) -> None:
    words = shlex.split(" ".join(hint.split()).removeprefix("appliance "))
    check_appliance([word for word in words if word not in {"...", "…"}])


@pytest.mark.parametrize(
    "wrong", ["appliance node token", "appliance job lgos one", "appliance job logs one --folow"]
)
def test_a_hint_that_cannot_be_typed_is_noticed(wrong: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        check_appliance(wrong.split()[1:])
