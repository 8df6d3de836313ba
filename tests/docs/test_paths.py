"""Files and modules that pages and docstrings name are there, and the index leads to every page.

A file that moves leaves its old name in prose, where no import fails.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.fakes.pages import PAGES, ROOT, links, words_in_code

DOCS = ROOT / "docs"
FOLDERS = ("appliance", "bench", "deploy", "docs", "policies", "proto", "tests")
EXAMPLES = {"appliance/kinds/KIND.py", "modeling_x.py", "docs/subsets.md", "docs/3"}
"""What stands for a name, and what a walk through the code makes; with it all of `subset`."""
_FILE = re.compile(r"(?:[\w-]+/)*[\w-]+\.py|(?:bench|deploy|docs|policies|proto|tests)/[\w./-]+")
_MODULE = re.compile(r"(appliance|tests|bench|services|rpc|auth|store|door|bootstrap)(\.\w+)+")
_SAID = re.compile(r"[Cc]alled by ([^.;]*(?:\.\w[^.;]*)*)")
_PROSE = re.compile(r"`([^`\s]+)`")


@cache
def files() -> frozenset[str]:
    """Every file, and every folder, by its path in the repository."""
    found = {name for folder in FOLDERS for name in (ROOT / folder).rglob("*")}
    found |= {path for path in (ROOT / "ansible").rglob("*") if path.suffix == ".py"}
    return frozenset(path.relative_to(ROOT).as_posix() for path in found)


@cache
def modules() -> dict[str, Path]:
    """Every module, by its dotted name."""
    paths = [
        path for folder in ("appliance", "bench", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_a_page_names_is_there(page: Path) -> None:
    named = {word.rstrip("/") for word in words_in_code(page) if _FILE.fullmatch(word)}
    named -= {word for word in named if "subset" in word} | EXAMPLES
    missing = [
        word for word in named if not any(f"/{file}".endswith(f"/{word}") for file in files())
    ]
    assert sorted(missing) == []


def prose(path: Path) -> Iterator[str]:
    """The docstrings and comments of a file."""
    text = path.read_text()
    yield from (line.partition("# ")[2] for line in text.splitlines())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def is_there(word: str) -> bool:
    """Whether a dotted name is of a module, or of something that one has."""
    parts = word.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        for module, path in modules().items():
            if f".{module}".endswith(f".{name}"):
                return (
                    end == len(parts)
                    or re.search(rf"\b{parts[end]}\b", path.read_text()) is not None
                )
    return False


def test_every_module_that_prose_names_is_there() -> None:
    texts = {
        **{path: list(prose(path)) for path in modules().values()},
        **{page: [f"`{word}`" for word in words_in_code(page)] for page in PAGES},
    }
    missing = [
        f"{path.relative_to(ROOT)}: {word}"
        for path, parts in texts.items()
        for part in parts
        for word in _PROSE.findall(part)
        if _MODULE.fullmatch(word) and not word.endswith((".toml", ".yaml", ".txt", ".view"))
        if "subset" not in word and not word.startswith(("appliance.api.", "appliance.cli.NOUN"))
        if not is_there(word)
    ]
    assert missing == []


@cache
def importers() -> dict[str, set[str]]:
    """Module -> the modules that import it, or something of it."""
    found: dict[str, set[str]] = {}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for imported in (
                    node.module,
                    *(f"{node.module}.{each.name}" for each in node.names),
                ):
                    found.setdefault(imported, set()).add(name)
    return found


def named(word: str, near: str) -> str | None:
    """The module that a word in the docstring of `near` means: one beside it, or a longer name."""
    beside = f"{near.rpartition('.')[0]}.{word}"
    if beside in modules():
        return beside
    longer = [name for name in modules() if name == word or name.endswith(f".{word}")]
    return longer[0] if "." in word and len(longer) == 1 else None


def test_who_calls_a_module_imports_it() -> None:
    wrong = []
    for name, path in modules().items():
        said = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
        for callers in _SAID.findall(said) if name.startswith("appliance.") else []:
            for word in _PROSE.findall(callers):
                caller = named(word, name)
                of = importers().get(name, set())
                if caller and not any(
                    each == caller or each.startswith(f"{caller}.") for each in of
                ):
                    wrong.append(f"{name} says {word}")
    assert wrong == []


def test_the_index_leads_to_every_page() -> None:
    pages = [*DOCS.glob("*.md"), *(DOCS / "how-to").glob("*.md")]
    wanted = {page.relative_to(DOCS).as_posix() for page in pages} - {"README.md"}
    found = {link.partition("#")[0] for link in links(DOCS / "README.md")}
    assert sorted(wanted - found) == []
