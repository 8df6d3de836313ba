"""What is found of known personal data, and what is taken for some."""

from __future__ import annotations

from bench.redaction import MIN_PRECISION, MIN_RECALL, figures
from tests.fakes.personal_data import labelled


def test_personal_data_of_every_form_is_found_and_little_else() -> None:
    found = figures(labelled(each=8, seed=3))
    assert {kind: row for kind, row in found.items() if row["recall"] < MIN_RECALL} == {}
    assert {kind: row for kind, row in found.items() if row["precision"] < MIN_PRECISION} == {}
