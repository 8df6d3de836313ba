"""The table of families in the page is the table in the code."""

from __future__ import annotations

from appliance.core.families import FAMILIES, Use
from tests.fakes.pages import ROOT


def test_the_page_shows_what_works_with_each_family() -> None:
    page = (ROOT / "docs/models.md").read_text()
    uses = " | ".join(Use)
    lines = [f"| family | `architectures` | {uses} |", "| --- " * (len(Use) + 2) + "|"]
    for row in FAMILIES:
        classes = ", ".join(f"`{name}`" for name in row.classes)
        works = " | ".join("yes" if use in row.works else "no" for use in Use)
        lines.append(f"| {row.name} | {classes} | {works} |")
    assert "\n".join(lines) in page, "\n" + "\n".join(lines)
