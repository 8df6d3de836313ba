"""What each kind of work imports, read from the code, and what is said of a node that lacks it."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.api.jobs.v1 import job_pb2
from appliance.core.needs import MAX_SENTENCE, REPAIR, REPLICA, lacking, unimportable
from appliance.kinds import KINDS, functions, needs

ROOT = Path(__file__).parents[2]
ONLY_FOR_TYPES = {"_typeshed"}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def foreign(*starts: str) -> set[str]:
    """Top-level modules of others that these modules of ours import, in all that they lead to."""
    seen: set[str] = set()
    found: set[str] = set()
    left = list(starts)
    while left:
        module = left.pop()
        path = (ROOT / module.replace(".", "/")).with_suffix(".py")
        if module in seen or not path.exists():
            continue
        seen.add(module)
        for name in imported(path):
            top = name.partition(".")[0]
            if top == "appliance":
                left += [] if name.startswith("appliance.api") else [name]
            elif top not in sys.stdlib_module_names:
                found.add(top)
    return found - ONLY_FOR_TYPES


def test_the_table_is_what_the_code_imports() -> None:
    agent = foreign("appliance.node.main")
    leader = "appliance.jobs.runtime.leader"
    found = {
        kind: foreign(run.partition(":")[0], leader) - agent for kind, run in functions().items()
    }
    worker = [f"appliance.worker.{path.stem}" for path in (ROOT / "appliance/worker").glob("*.py")]
    assert len(worker) > 10
    assert {**found, REPLICA: foreign(*worker) - agent} == needs()


def test_every_kind_of_job_is_in_the_table() -> None:
    spec = job_pb2.Job.DESCRIPTOR.oneofs_by_name["spec"].fields
    assert KINDS.keys() == {field.name for field in spec}
    assert needs().keys() == KINDS.keys() | {REPLICA}


def test_this_python_has_all_of_it() -> None:
    missing = [m for m in set().union(*needs().values()) if importlib.util.find_spec(m) is None]
    assert missing == []


@pytest.mark.parametrize(
    ("missing", "train", "replica"),
    [
        ({}, "", ""),
        ({"numpy": ""}, f"numpy is not installed: {REPAIR}", ""),
        (
            {"torch": "", "transformers": "", "vllm": "OSError"},
            f"torch and transformers are not installed: {REPAIR}",
            f"torch is not installed: {REPAIR}",
        ),
        (
            {"torch": "OSError", "vllm": "ImportError"},
            f"torch cannot be imported (OSError): {REPAIR}",
            f"torch cannot be imported (OSError), vllm cannot be imported (ImportError): {REPAIR}",
        ),
    ],
)
def test_what_is_said(missing: dict[str, str], train: str, replica: str) -> None:
    found = lacking(needs(), missing)
    assert (found["train"], found[REPLICA]) == (train, replica)


def test_a_sentence_has_a_bound() -> None:
    long = dict.fromkeys(set().union(*needs().values()), "x" * 400)
    assert {len(sentence) for sentence in lacking(needs(), long).values()} == {MAX_SENTENCE}


def test_an_import_error_names_the_package() -> None:
    for error, name in (
        (ModuleNotFoundError("x", name="compressed_tensors.linear"), "compressed-tensors"),
        (ImportError("libtorch.so"), "a package"),
        (OSError("libcudart.so: cannot open shared object file"), "a package"),
    ):
        assert unimportable(error).message == f"{name} cannot be imported on the node: {REPAIR}"
