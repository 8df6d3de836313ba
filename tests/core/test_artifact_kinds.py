"""What versions can hold."""

from appliance.core.artifact_kinds import ARTIFACT_KINDS, ONCE, kind_of
from appliance.core.names import PATTERNS


def test_every_kind_is_a_version_of_a_resource() -> None:
    # A kind whose resource cannot be named yet cannot be made either.
    for kind in ARTIFACT_KINDS.values():
        if kind.resource in PATTERNS:
            assert (f"{kind.resource}Version" in PATTERNS) is not kind.once
    assert "tokenizer" in ONCE


def test_facts_say_what_a_version_holds() -> None:
    assert kind_of("dataset", {"kind": "tokens"}) == "tokens"
    assert kind_of("model", {"format": "bfloat16"}) == "model"
    assert kind_of("tokenizer", {}) == "tokenizer"
