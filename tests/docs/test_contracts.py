"""Every module has a layer, and every class has a name of its own.

A module in no contract can import what it likes, and nobody notices. Two classes of one name are
taken for each other by readers, by searches and by whoever adds an import.

Kinds of jobs are not listed in contracts, since adding one touches no list but that of the kinds:
folders of `appliance.jobs` are independent by a pattern, modules of `appliance.kinds` by a test.
"""

from __future__ import annotations

import ast
import graphlib
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.fakes.pages import ROOT

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
GENERATED = ROOT / "appliance/api"
BY_PATTERN = ("appliance.jobs.", "appliance.kinds.")


def sources() -> Iterator[Path]:
    for path in sorted((ROOT / "appliance").rglob("*.py")):
        if GENERATED not in path.parents:
            yield path


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layered() -> set[str]:
    """Modules and packages that have a layer inside their process."""
    return {
        f"{container}.{name.strip()}"
        for contract in CONTRACTS
        if contract["type"] == "layers" and contract.get("exhaustive")
        for container in contract["containers"]
        for layer in contract["layers"]
        for name in layer.replace("|", ":").split(":")
    }


def test_every_module_is_in_a_layer() -> None:
    layers = layered()
    without = [
        name
        for path in sources()
        if path.name != "__init__.py"
        for name in [module(path)]
        if not name.startswith(BY_PATTERN)
        if not any(name == layer or name.startswith(f"{layer}.") for layer in layers)
    ]
    assert without == []


def imported(path: Path) -> set[str]:
    """The modules that a module imports, as far as they are of the appliance."""
    nodes = ast.walk(ast.parse(path.read_text()))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def test_a_kind_knows_no_other_kind() -> None:
    folder = ROOT / "appliance/kinds"
    kinds = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    wrong = [
        f"{path.stem} imports {other}"
        for path in sorted(folder.glob("*.py"))
        for other in kinds
        if other != "kind" and not other.startswith(path.stem)
        if any(name.startswith(f"appliance.kinds.{other}.") for name in imported(path))
        or f"appliance.kinds.{other}" in imported(path)
    ]
    assert len(kinds) > 1
    assert wrong == []


def test_nothing_is_imported_in_a_circle() -> None:
    """Also where contracts give no order: inside a room, an area of services, a kind of job."""
    paths = {module(path): path for path in sources()}
    graph = {
        name: {
            each if each in paths else each.rpartition(".")[0]
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ImportFrom) and node.module
            for each in (f"{node.module}.{alias.name}" for alias in node.names)
        }
        for name, path in paths.items()
    }
    assert any(graph.values())
    graphlib.TopologicalSorter(graph).prepare()


def test_a_layer_names_what_there_is() -> None:
    names = {module(path) for path in sources()}
    assert sorted(layered() - names) == []


def test_no_two_classes_have_one_name() -> None:
    found = defaultdict(list)
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: where for name, where in found.items() if len(where) > 1} == {}
