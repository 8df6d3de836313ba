"""What does `prepare` find of personal data, and what does it take for some?

Sentences with one piece of known data each, and with what only looks like it, as the tests make
them. A find is right when it is all of the data and nothing else. Precision is the
share of finds that are right, recall the share of what is there that is found right; both by kind.
The alternative is to redact every word with a digit or an @: nothing is missed and half of a text
is gone.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

from appliance.jobs.prepare.personal_data import redact
from bench.measure import AT_LEAST, Bar, Outcome, run
from tests.fakes.personal_data import Labelled, labelled

NAME = "redaction"
MIN_PRECISION, MIN_RECALL = 0.98, 0.95
SEEDS = 5


def main() -> int:
    """Run it; 1 when a bar does not hold."""
    return run(NAME, measure)


def measure() -> Outcome:
    """Precision and recall by kind."""
    texts = [each for seed in range(SEEDS) for each in labelled(seed=seed)]
    rows = figures(texts)
    marked = sum(
        any(c.isdigit() or c == "@" for c in word) for t in texts for word in t.text.split()
    )
    crude = rows["all"]["there"] / marked
    print(f"{len(texts)} texts")
    print(f"  {'kind':14}{'there':>8}{'found':>8}{'wrong':>8}{'precision':>11}{'recall':>9}")
    for kind, row in rows.items():
        print(
            f"  {kind:14}{row['there']:>8.0f}{row['found']:>8.0f}{row['wrong']:>8.0f}"
            f"{row['precision']:>11.3f}{row['recall']:>9.3f}"
        )
    print(f"  every word with a digit or an @: precision {crude:.3f}")
    whole = rows["all"]
    bars = [
        Bar("precision", whole["precision"], "share", AT_LEAST, MIN_PRECISION, SEEDS),
        Bar("recall", whole["recall"], "share", AT_LEAST, MIN_RECALL, SEEDS),
    ]
    return Outcome(bars, {"results": rows, "alternative_precision": crude})


def figures(texts: Iterable[Labelled]) -> dict[str, dict[str, float]]:
    """What is there, found and wrong, precision and recall; by kind and of all."""
    there, right, wrong = Counter[str](), Counter[str](), Counter[str]()
    for each in texts:
        redaction = redact(each.text)
        exact = redaction.text == each.expected
        if each.kind:
            there[each.kind] += 1
            right[each.kind] += exact
        for kind, count in redaction.found.items():
            wrong[kind] += count - (exact and kind == each.kind)
    kinds = sorted(there)
    for counts in (there, right, wrong):
        counts["all"] = counts.total()
    return {
        kind: {
            "there": there[kind],
            "found": right[kind],
            "wrong": wrong[kind],
            "precision": right[kind] / max(1, right[kind] + wrong[kind]),
            "recall": right[kind] / there[kind],
        }
        for kind in (*kinds, "all")
    }


if __name__ == "__main__":
    sys.exit(main())
