"""The table is the only place that lists architectures."""

from __future__ import annotations

import ast

from appliance.core.families import BY_CLASS, FAMILIES, FamilyUse, reason, refusal
from tests.fakes.pages import ROOT

KNOWN = {"appliance/core/families.py", "appliance/jobs/train/model.py"}
"""The table, and training, which makes Llamas alone."""


def test_no_other_module_names_an_architecture() -> None:
    naming = set()
    for path in (ROOT / "appliance").rglob("*.py"):
        constants = ast.walk(ast.parse(path.read_text()))
        if any(isinstance(node, ast.Constant) and node.value in BY_CLASS for node in constants):
            naming.add(path.relative_to(ROOT).as_posix())
    assert naming == KNOWN


def test_whatever_does_not_work_has_a_reason() -> None:
    for family in FAMILIES:
        for architecture in family.classes:
            works = {use for use in FamilyUse if not refusal(architecture, use)}
            assert works == family.works
        assert all(len(reason(family, use)) > 20 for use in FamilyUse if use not in family.works)
        assert FamilyUse.TEXT not in family.works or family.engine is not None


def test_a_version_of_a_release_that_knew_one_family_is_of_that() -> None:
    assert refusal("", FamilyUse.TEXT) == ""
    assert "not built in" in refusal("Evil", FamilyUse.TEXT)
