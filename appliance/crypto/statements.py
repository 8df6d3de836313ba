"""Signed statements about a version: what it was made of, how, and where.

An in-toto statement (https://in-toto.io/Statement/v1) in a DSSE envelope
(https://github.com/secure-systems-lab/dsse), signed with Ed25519. Rules kept here: what is signed
is the exact bytes that are kept, with their type, so that a statement cannot be read as something
else; `verify` returns what was signed or raises.

The attack: a version that claims inputs that it was not made of. Called by the control plane, which
signs at registration and verifies when a version is opened.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import rfc8785

from appliance.core.errors import Tampered
from appliance.crypto.signing import SigningKey, VerifyKey

STATEMENT = "https://in-toto.io/Statement/v1"
REGISTRATION = "urn:appliance:registration:1"
"""The predicate: kind of what made it, its inputs with their digests, digest of the spec, nodes."""
_PAYLOAD = "application/vnd.in-toto+json"
_ENVELOPE = frozenset({"payload", "payloadType", "signatures"})


def sign(signer: SigningKey, name: str, digest: str, predicate: Mapping[str, Any]) -> str:
    """A signed statement, as JSON.

    Args:
        signer: of this appliance.
        name: of the version.
        digest: SHA-256 of its manifest, hexadecimal.
        predicate: what is said of it; JSON.
    """
    payload = rfc8785.dumps(
        {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": digest}}],
            "predicateType": REGISTRATION,
            "predicate": dict(predicate),
        }
    )
    signature = signer.sign(_authenticated(payload))
    return json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": _PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        }
    )


def verify(key: VerifyKey, text: str, name: str, digest: str) -> dict[str, Any]:
    """What a statement says of the version with this name and digest.

    Raises Tampered when it is none, of another key, or about something else.
    """
    try:
        envelope = json.loads(text)
        (signature,) = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        key.verify(_authenticated(payload), base64.b64decode(signature["sig"], validate=True))
        statement = json.loads(payload)
        (subject,) = statement["subject"]
        kinds = frozenset(envelope), envelope["payloadType"], statement["_type"]
        about = subject["name"], subject["digest"]["sha256"], statement["predicateType"]
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise Tampered("this is not a statement of this appliance") from error
    if kinds != (_ENVELOPE, _PAYLOAD, STATEMENT):
        raise Tampered("this is not a statement of this appliance")
    if about != (name, digest, REGISTRATION):
        raise Tampered("this statement is about another version")
    found: dict[str, Any] = statement
    return found


def _authenticated(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding."""
    kind = _PAYLOAD.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
