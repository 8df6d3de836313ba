"""Files that pages lead a reader to are there, and the index leads to every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fakes.pages import ROOT, links, words_in_code

DOCS = ROOT / "docs"
GUIDES = [
    *sorted(DOCS.glob("life-of-*.md")),
    *(DOCS / "how-to" / name for name in ("add-an-rpc.md", "add-a-metric.md")),
]
_PATH = re.compile(r"(?:appliance|bench|deploy|docs|policies|proto|tests)(?:/[\w.-]+)+\.[a-z]+")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_file_a_guide_names_is_there(page: Path) -> None:
    named = [word for word in words_in_code(page) if _PATH.fullmatch(word)]
    assert len(named) > 5
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_the_index_leads_to_every_page() -> None:
    pages = [*DOCS.glob("*.md"), *(DOCS / "how-to").glob("*.md")]
    wanted = {page.relative_to(DOCS).as_posix() for page in pages} - {"README.md"}
    found = {link.partition("#")[0] for link in links(DOCS / "README.md")}
    assert sorted(wanted - found) == []
