"""Manifests: one canonical form, authenticated, of one artifact."""

import json
from typing import Any

import pytest
import rfc8785

from appliance.core.errors import InvalidInput, Tampered
from appliance.crypto.manifest import FileEntry, Manifest, check_file_name, manifest_digest
from appliance.crypto.signing import hmac_sha256

KEY = bytes(range(32))
ENTRY = FileEntry("model.safetensors", 1000, 1150, "ab" * 32)
MANIFEST = Manifest("research", "4f1c", 3, (ENTRY,), {"step": 8})
# The key is HKDF-Expand-SHA-384 of KEY for "appliance artifact manifest 1", made with the standard
# library; the body is written out by hand.
KNOWN_BODY = (
    '{"epoch":3,"extra":{"step":8},"files":[{"file":"model.safetensors","plain_size":1000,'
    '"sealed_size":1150,"tag":"%s"}],"format":"sealed-artifact-1"%s,"object":"4f1c",'
    '"project":"research"}'
)
KNOWN_MAC_KEY = "e6955884d5bd8caa46225e2e0c07d62a906afc985b6b641051336e74760f4a15"


def test_known_answer() -> None:
    unsigned = KNOWN_BODY % (ENTRY.tag, "")
    mac = hmac_sha256(bytes.fromhex(KNOWN_MAC_KEY), unsigned.encode()).hex()
    expected = (KNOWN_BODY % (ENTRY.tag, f',"mac":"{mac}"')).encode()

    assert MANIFEST.encode(KEY) == expected
    assert Manifest.decode(expected, KEY, "research", "4f1c") == MANIFEST


def test_digest_is_sha256() -> None:
    assert manifest_digest(b"abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.attack
def test_every_changed_bit_cut_and_addition_is_refused() -> None:
    raw = MANIFEST.encode(KEY)
    changes = [raw[:length] for length in range(len(raw))] + [raw + b" ", raw + b"\n", raw + raw]
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        changes.append(bytes(changed))
    for change in changes:
        with pytest.raises(Tampered):
            Manifest.decode(change, KEY, "research", "4f1c")


def signed(document: dict[str, Any], key: bytes = KEY) -> bytes:
    mac_key = bytes.fromhex(KNOWN_MAC_KEY) if key == KEY else key
    return rfc8785.dumps({**document, "mac": hmac_sha256(mac_key, rfc8785.dumps(document)).hex()})


@pytest.mark.attack
def test_a_manifest_of_another_place_or_key_is_refused() -> None:
    document = MANIFEST.document()
    assert Manifest.decode(signed(document), KEY, "research", "4f1c") == MANIFEST
    for raw in (
        signed({**document, "project": "sales"}),
        signed({**document, "object": "4f1d"}),
        signed({**document, "format": "sealed-artifact-2"}),
        signed(document, key=bytes(32)),
        MANIFEST.encode(bytes(32)),
    ):
        with pytest.raises(Tampered):
            Manifest.decode(raw, KEY, "research", "4f1c")


@pytest.mark.attack
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"mac":1}',
        b'{"mac":"\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"mac":"","mac":""}',
        b'{"a":NaN}',
        b'{"a":1e400}',
        b'{"a":123456789012345678901234567890}',
        b'{"mac":"\\ud800"}',
    ],
)
def test_nonsense_is_refused(raw: bytes) -> None:
    with pytest.raises(Tampered):
        Manifest.decode(raw, KEY, "research", "4f1c")


@pytest.mark.attack
def test_only_the_canonical_form_is_read() -> None:
    raw = MANIFEST.encode(KEY)
    document = json.loads(raw)
    for other in (
        json.dumps(document).encode(),
        json.dumps(dict(reversed(document.items())), separators=(",", ":")).encode(),
        raw.replace(b'{"epoch":3', b'{"epoch":2,"epoch":3'),
        raw.replace(b'"epoch":3', b'"epoch":3.0'),
    ):
        assert other != raw
        with pytest.raises(Tampered, match="canonical"):
            Manifest.decode(other, KEY, "research", "4f1c")


@pytest.mark.parametrize("extra", [{"x": float("nan")}, {"x": 1 << 60}, {"x": b"bytes"}])
def test_an_extra_that_is_not_json_is_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Manifest("research", "4f1c", 3, (ENTRY,), extra).encode(KEY)


def test_entries_go_out_and_come_in() -> None:
    assert FileEntry.from_json(json.loads(json.dumps(ENTRY.as_json()))) == ENTRY


@pytest.mark.parametrize(
    "change",
    [
        {"plain_size": -1},
        {"plain_size": "1"},
        {"sealed_size": 1.0},
        {"sealed_size": True},
        {"tag": "ab"},
        {"tag": "AB" * 32},
        {"file": "../x"},
        {"more": 1},
    ],
)
def test_impossible_entries_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        FileEntry.from_json({**ENTRY.as_json(), **change})
    with pytest.raises(InvalidInput):
        FileEntry.from_json({})


@pytest.mark.attack
@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "../a",
        ".hidden",
        "a\0",
        "a\n",
        "-a",
        "ä",
        "a b",
        "a\\b",
        "x" * 201,
    ],
)
def test_names_are_plain(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_file_name(name)
