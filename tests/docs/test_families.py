"""The table of families in the page is the table in the code."""

from __future__ import annotations

from appliance.core.config_members import BOUNDS
from appliance.core.families import FAMILIES, FamilyUse
from tests.fakes.pages import ROOT


def test_the_page_shows_what_works_with_each_family() -> None:
    page = (ROOT / "docs/models.md").read_text()
    uses = " | ".join(FamilyUse)
    lines = [f"| family | `architectures` | {uses} |", "| --- " * (len(FamilyUse) + 2) + "|"]
    for row in FAMILIES:
        classes = ", ".join(f"`{name}`" for name in row.classes)
        works = " | ".join("yes" if use in row.works else "no" for use in FamilyUse)
        lines.append(f"| {row.name} | {classes} | {works} |")
    assert "\n".join(lines) in page, "\n" + "\n".join(lines)


def test_the_page_says_the_bounds_of_sizes() -> None:
    page = " ".join((ROOT / "docs/models.md").read_text().split())
    widths, layers, heads, words, context = (
        f"{BOUNDS[member][1]:,}"
        for member in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
        )
    )
    assert layers == heads
    assert (
        f"widths to {widths}, layers and heads to {layers}, a vocabulary of {words}, "
        f"a context of {context} tokens"
    ) in page
