"""Each decision says since when it holds and what else there was; the index names them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fakes.pages import ROOT

FOLDER = ROOT / "docs/decisions"
DECISIONS = sorted(FOLDER.glob("[0-9]*.md"))
_HEAD = re.compile(r"# (\d+)\. (.+)\n\nStatus: (\w+), (\d{4}-\d\d-\d\d)\b")
_ALTERNATIVES = re.compile(r"^(?:## Alternatives|\*\*Alternatives\.\*\*)$", re.MULTILINE)
STATUSES = {"accepted", "superseded"}


def head(page: Path) -> tuple[str, str, str, str]:
    """Number, title, status and date of a decision."""
    found = re.match(r"# (\d+)\. (.+)\n\nStatus: (\w+), (\d{4}-\d\d-\d\d)\b", page.read_text())
    assert found is not None, (
        f"{page.name} does not begin with `# N. TITLE` and `Status: WORD, DATE`"
    )
    number, title, status, date = found.groups()
    return number, title, status, date


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name)
def test_a_decision_has_a_status_and_alternatives(page: Path) -> None:
    number, _, status, _ = head(page)
    assert int(number) == int(page.name[:4])
    assert status in STATUSES
    assert re.search(
        r"^(?:## Alternatives|\*\*Alternatives\.\*\*)$", page.read_text(), re.MULTILINE
    )


def test_no_two_decisions_have_one_number() -> None:
    numbers = [page.name[:4] for page in DECISIONS]
    assert len(numbers) == len(set(numbers))


def test_the_index_names_each_decision_as_it_is() -> None:
    rows = re.findall(
        r"^\| \[(\d+)\]\(([^)]+)\) \| (.+) \| (\w+), ([\d-]+) \|$",
        (FOLDER / "README.md").read_text(),
        re.MULTILINE,
    )
    assert sorted((name, (number, *rest)) for number, name, *rest in rows) == [
        (page.name, head(page)) for page in DECISIONS
    ]
