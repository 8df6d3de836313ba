"""Real text that every CPython ships: its language reference and the docstrings of its library.

`write` makes one text file per topic of `pydoc_data.topics` and per documented class, function or
module of the standard library, so that a demo needs no download and no invented sentences.
"""

import ast
import importlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def write(folder: Path) -> tuple[int, int]:
    """Write the corpus below `folder`; return (documents, bytes)."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = size = 0
    for name, text in _documents():
        data = text.encode()
        (folder / f"{name}.txt").write_bytes(data)
        documents += 1
        size += len(data)
    return documents, size


def a_sentence(folder: Path) -> str:
    """Return a sentence of the corpus, to search for where no plaintext may be."""
    text = (folder / "topic-assignment.txt").read_text()
    return next(line for line in text.splitlines() if len(line) > 60)


def _documents() -> Iterator[tuple[str, str]]:
    topics = importlib.import_module("pydoc_data.topics").topics
    for name, text in sorted(topics.items()):
        yield f"topic-{name}", text
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(parts):
            continue
        text = _docstrings(path, ".".join(parts))
        if text:
            yield f"module-{'.'.join(parts)}", text


def _docstrings(path: Path, module: str) -> str:
    """Docstrings of a module in the order they stand in it; empty when there are none."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    pieces = []
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            name = module if isinstance(node, ast.Module) else f"{module}.{node.name}"
            pieces.append(f"{name}\n\n{text}\n")
    return "\n".join(pieces)
