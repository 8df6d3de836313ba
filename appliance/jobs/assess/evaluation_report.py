"""The report of an evaluate job: its numbers, and the perplexity along the text.

Numbers alone: no word of the held-out text is in it. Pure. Called by `evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from appliance.core.thinning import MAX_POINTS, thin
from appliance.jobs.runtime.pictures import curve
from appliance.jobs.runtime.reports import number, table

SLOT = "report"
PICTURE = "perplexity.png"
TABLE_ROWS = 64
_UNITS = {
    "perplexity": "",
    "nll_per_token": "nats per token",
    "bits_per_byte": "bits per byte",
    "tokens": "tokens predicted",
}


class Course:
    """The perplexity after each window, thinned: memory does not grow with the text."""

    def __init__(self) -> None:
        self._points: dict[int, float] = {}

    def add(self, tokens: int, perplexity: float) -> None:
        """After so many tokens it was this; what is infinite cannot be shown."""
        if math.isfinite(perplexity):
            self._points[tokens] = perplexity
        if len(self._points) > 2 * MAX_POINTS:
            self._points = self._kept(MAX_POINTS)

    def points(self, most: int = MAX_POINTS) -> list[tuple[int, float]]:
        """So many of them at most, from the first to the last."""
        return sorted(self._kept(most).items())

    def _kept(self, most: int) -> dict[int, float]:
        return {tokens: self._points[tokens] for tokens in thin(self._points, most)}


def report_of(
    spec: Any,  # noqa: ANN401 - an EvaluateSpec
    window: int,
    result: Mapping[str, float],
    course: Course,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Content and pictures of the report.

    Args:
        spec: of the job.
        window: that was measured with, in tokens.
        result: numbers by name, those of the job's result.
        course: the perplexity so far, by tokens; one point or more.
    """
    points = course.points()
    (first, _), (last, _) = points[0], points[-1]
    least, most = min(y for _, y in points), max(y for _, y in points)
    caption = f"Perplexity from {least:.6g} to {most:.6g} (upwards) after {first} to {last} tokens"
    rows: list[list[float | str]] = [[x, y] for x, y in course.points(TABLE_ROWS)]
    measured = {
        "heading": "Result",
        "numbers": [number(name, value, _UNITS.get(name, "")) for name, value in result.items()],
    }
    how = {
        "heading": "How it was measured",
        "text": f"Model: {spec.model}\nHeld-out text of: {spec.dataset}\n"
        "In windows that do not overlap, each token but the first of a window was predicted from "
        "those before it. Compare numbers of equal windows alone.",
        "numbers": [number("window", window, "tokens")],
    }
    along = {
        "heading": "Along the text",
        "tables": [table("Perplexity of the text so far", ["tokens", "perplexity"], rows)],
        "pictures": [{"file": PICTURE, "caption": caption}],
    }
    content = {"title": f"Perplexity of {spec.model}", "sections": [measured, how, along]}
    return content, {PICTURE: curve(points)}
