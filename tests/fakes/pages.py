"""The pages of this project as its readers see them: blocks of commands, words in code, links.

A block ```sh holds lines that are typed as they stand. A block ```console holds lines that are
typed, behind `$`, and what is printed. `not-run: WHY` behind the language says why a test cannot
run a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_COMMENT = re.compile(r"\s+#.*$")


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind its fence, and its lines."""

    page: Path
    language: str
    not_run: str
    lines: tuple[str, ...]

    @property
    def commands(self) -> list[str]:
        """What is typed, without comments."""
        typed = [line for line in self.lines if line.strip()]
        if self.language == "console":
            typed = [line.removeprefix("$ ") for line in typed if line.startswith("$ ")]
        return [_COMMENT.sub("", line) for line in typed]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
        language, _, rest = found[1].partition(" ")
        yield Block(page, language, rest.removeprefix("not-run: "), tuple(found[2].splitlines()))


def words_in_code(page: Path) -> Iterator[str]:
    """What stands between backquotes in the text of a page."""
    yield from _CODE.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> Iterator[str]:
    """Where a page leads to inside this project."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from (link for link in _LINK.findall(text) if "://" not in link)


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as they stand in links."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}
