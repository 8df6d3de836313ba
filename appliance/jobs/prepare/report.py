"""What each step did: counts by reason and a few examples, for `report.json` and the result."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3
"""Dropped documents kept per reason, for a person to judge a step by."""
EXCERPT = 200
"""Characters of an example."""


@dataclass
class PrepareStep:
    """One step's account."""

    name: str
    documents_in: int = 0
    documents_out: int = 0
    changed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, str]] = field(default_factory=list)

    def keep(self, *, changed: bool = False) -> None:
        """Count a document that goes on."""
        self.documents_in += 1
        self.documents_out += 1
        self.changed += changed

    def drop(self, reason: str, document_id: str, excerpt: str) -> None:
        """Count a document that ends here; `excerpt` has no personal data any more."""
        self.documents_in += 1
        self.dropped[reason] += 1
        if self.dropped[reason] <= EXAMPLES:
            self.examples.append({"document_id": document_id, "reason": reason, "excerpt": excerpt})

    def as_json(self) -> dict[str, Any]:
        """The step as `PrepareStep` in JSON."""
        return {
            "name": self.name,
            "documents_in": self.documents_in,
            "documents_out": self.documents_out,
            "dropped": dict(self.dropped),
            "changed": self.changed,
            "examples": self.examples,
        }


def dropped_by_reason(steps: list[PrepareStep]) -> dict[str, int]:
    """Counts over all steps."""
    total: Counter[str] = Counter()
    for step in steps:
        total.update(step.dropped)
    return dict(total)
