"""Commands that pages name exist, and links lead somewhere.

That the sessions in the pages run is shown by `tests/journeys/test_pages.py`.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from appliance.core.addresses import MEETING_PORT
from appliance.core.site import PORTS
from bench.measure import LIMITS
from tests.fakes.command_line import check_appliance
from tests.fakes.pages import PAGES, ROOT, Block, anchors, blocks, links, words_in_code

NOT_RUN = {
    "install -m 0600 -o appliance-agent join.token /var/lib/appliance-agent/join.token": (
        "needs another server"
    ),
    "appliance endpoint update chat --model m/4 --wait": "needs two versions of a model",
    "appliance job subset few --dataset raw/1 --output-dataset few --documents 2 --dry-run": (
        "tests/kinds/test_how_to.py types it, where there is this kind"
    ),
}
"""First line of a block that no test runs here, and why. It may only shrink without a reason."""
_TARGETS = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
_TYPED = re.compile(r"(?:^|[(;&] ?)((?:appliance|make|python -m) [^)&;|<]*)")


def typed(text: str) -> list[str]:
    """Commands in a line or in words in code; `a && b` has two."""
    return [found.strip() for found in _TYPED.findall(text)]


def of_copy(block: Block) -> bool:
    """Whether another test types a block, in a copy that has what it is about."""
    return block.not_run.startswith("tests/")


COMMANDS = sorted(
    {
        (page.relative_to(ROOT).as_posix(), command)
        for page in PAGES
        for text in (
            *words_in_code(page),
            *(line for block in blocks(page) if not of_copy(block) for line in block.commands),
        )
        for command in typed(text)
    }
)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_in_the_pages_exists(page: str, command: str) -> None:
    words = [word for word in shlex.split(command) if word not in {"…", "...", "|"}]
    match words:
        case ["appliance", *rest]:
            check_appliance(rest)
        case ["make", *rest]:
            targets = set(_TARGETS.findall((ROOT / "Makefile").read_text()))
            named = {word for word in rest if "=" not in word}
            only = next((word[5:] for word in rest if word.startswith("ONLY=")), "")
            assert named <= targets
            assert set(filter(None, only.split(","))) <= LIMITS.keys()
        case ["python", "-m", module, *rest]:
            assert importlib.util.find_spec(module) is not None
            if module == "bench":
                assert set(rest) <= LIMITS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_commands_are_marked_as_such(page: Path) -> None:
    """A line that is typed stands in a block that a test runs, or says why it cannot."""
    for block in blocks(page):
        if block.language not in {"sh", "console"}:
            unmarked = [line for line in block.lines if re.match(r"\$ |appliance |make ", line)]
            assert unmarked == []
        elif block.not_run:
            assert NOT_RUN.get(block.commands[0]) == block.not_run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_the_metrics_that_a_page_names_are_there() -> None:
    """Counters are shown with `_total`."""
    code = "\n".join(path.read_text() for path in (ROOT / "appliance").rglob("*.py"))
    known = set(re.findall(r'"(appliance_[a-z_]+)"', code))
    for page in PAGES:
        named = {word for word in words_in_code(page) if re.fullmatch(r"appliance_[a-z_]+", word)}
        assert {name.removesuffix("_total") for name in named} <= known


def test_the_ports_of_the_page_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text[text.index("## Ports") : text.index("## Sizing")]
    written = {int(port) for port in re.findall(r"\b(\d{4,5})\b", table)}
    assert written == {*PORTS.values(), MEETING_PORT}
