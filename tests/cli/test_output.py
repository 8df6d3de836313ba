"""What others wrote reaches a terminal as text, in every form."""

from __future__ import annotations

import json

import pytest
import yaml

from appliance.cli import failures, output
from appliance.core.errors import InvalidInput

HOSTILE = "a\x9b2J\u202eb\u2028\x1b]0;c\x07\u00e4\U0001f600\nd"


@pytest.mark.attack
@pytest.mark.parametrize("form", ["json", "yaml", "table"])
@pytest.mark.parametrize("kept", ["\u00e4\U0001f600", HOSTILE])
def test_nothing_that_acts_on_a_terminal_is_printed(
    form: str, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output.show({"title": kept}, form)
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isprintable()
    if form != "table":
        read = json.loads(printed) if form == "json" else yaml.safe_load(printed)
        assert read == {"title": kept}


@pytest.mark.attack
def test_a_refusal_that_quotes_something_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    failures.explain(InvalidInput("no", fields={"a\x9b": HOSTILE}))
    assert capsys.readouterr().err.replace("\n", "").isprintable()
