"""Signed statements: what was signed is what is read, and nothing else passes."""

import base64
import json
from typing import Any

import pytest

from appliance.core.errors import Tampered
from appliance.crypto import statements
from appliance.crypto.signing import SigningKey

KEY = SigningKey(bytes(range(32)))
DIGEST = "ab" * 32
SAID = {"kind": "train", "inputs": [{"name": "n", "digest": {"sha256": "cd" * 32}}]}


def test_a_statement_says_what_was_signed() -> None:
    text = statements.sign(KEY, "projects/p/models/m/versions/1", DIGEST, SAID)
    found = statements.verify(KEY.verify_key, text, "projects/p/models/m/versions/1", DIGEST)
    assert found == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "projects/p/models/m/versions/1", "digest": {"sha256": DIGEST}}],
        "predicateType": "urn:appliance:registration:1",
        "predicate": SAID,
    }


def test_what_is_signed_is_the_encoding_of_dsse() -> None:
    # The example of the specification, with our type: type and payload, each with its length.
    envelope = json.loads(statements.sign(KEY, "n", DIGEST, {}))
    payload = base64.b64decode(envelope["payload"])
    kind = b"application/vnd.in-toto+json"
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    KEY.verify_key.verify(signed, base64.b64decode(envelope["signatures"][0]["sig"]))


@pytest.mark.attack
@pytest.mark.parametrize(
    "change",
    [
        lambda envelope: envelope | {"payload": _with(envelope, kind="evaluate")},
        lambda envelope: envelope | {"payloadType": "text/plain"},
        lambda envelope: envelope | {"signatures": []},
        lambda envelope: envelope | {"signatures": envelope["signatures"] * 2},
        lambda envelope: envelope | {"signatures": [{"sig": "AAAA"}]},
        lambda envelope: envelope | {"payload": "***"},
        lambda envelope: envelope | {"more": 1},
        lambda _: [],
        lambda _: None,
    ],
)
def test_a_changed_statement_is_refused(change: Any) -> None:
    envelope = json.loads(statements.sign(KEY, "n", DIGEST, SAID))
    with pytest.raises(Tampered):
        statements.verify(KEY.verify_key, json.dumps(change(envelope)), "n", DIGEST)


@pytest.mark.attack
def test_a_statement_of_another_key_or_version_is_refused() -> None:
    text = statements.sign(SigningKey.create(), "n", DIGEST, SAID)
    with pytest.raises(Tampered):
        statements.verify(KEY.verify_key, text, "n", DIGEST)
    with pytest.raises(Tampered, match="about another version"):
        statements.verify(KEY.verify_key, statements.sign(KEY, "n", DIGEST, SAID), "n", "cd" * 32)
    with pytest.raises(Tampered, match="about another version"):
        statements.verify(KEY.verify_key, statements.sign(KEY, "n", DIGEST, SAID), "m", DIGEST)


def _with(envelope: dict[str, Any], kind: str) -> str:
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["kind"] = kind
    return base64.b64encode(json.dumps(statement).encode()).decode()
