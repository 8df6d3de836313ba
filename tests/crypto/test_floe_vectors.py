"""FLOE: published answers of five other implementations (tests/vectors/floe/README.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.core.errors import Tampered
from appliance.crypto import floe
from appliance.crypto.floe import HEADER_SIZE, floe_decrypt

VECTORS = Path(__file__).parents[1] / "vectors" / "floe"
KEY = bytes(32)
AAD = b"This is AAD"
MADE_BY = ("cpp", "go", "java", "pub_java", "rust")
READABLE = [f"{maker}_GCM256_IV256_{size}" for size in ("64", "4K") for maker in MADE_BY]
ROTATING = [f"{maker}_rotation" for maker in MADE_BY]
SHORT = ["java_lastSegAligned", "java_lastSegEmpty"]


def published(name: str) -> tuple[bytes, bytes]:
    sealed, plain = (
        bytes.fromhex((VECTORS / f"{name}_{part}.txt").read_text()) for part in ("ct", "pt")
    )
    return sealed, plain


def test_every_published_answer_is_opened_by_a_test() -> None:
    there = {path.name.removesuffix("_ct.txt") for path in VECTORS.glob("*_ct.txt")}
    assert there == {*READABLE, *ROTATING, *SHORT}


@pytest.mark.parametrize("name", READABLE)
def test_published_answers_are_opened(name: str) -> None:
    sealed, plain = published(name)
    assert floe_decrypt(KEY, AAD, sealed) == plain


@pytest.mark.parametrize("name", SHORT)
def test_a_full_and_an_empty_last_segment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floe, "MIN_SEGMENT", 40)
    sealed, plain = published(name)
    assert floe_decrypt(KEY, AAD, sealed) == plain


@pytest.mark.parametrize("name", ROTATING)
def test_keys_of_segments_change_as_published(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floe, "MIN_SEGMENT", 40)
    monkeypatch.setattr(floe, "ROTATION_BITS", 2)
    sealed, plain = published(name)
    assert floe_decrypt(KEY, AAD, sealed) == plain

    # The first four segments have the first key whatever the turn is; the fifth does not.
    monkeypatch.setattr(floe, "ROTATION_BITS", 3)
    with pytest.raises(Tampered, match="segment 4 was changed"):
        floe_decrypt(KEY, AAD, sealed)


@pytest.mark.parametrize("name", [*ROTATING, *SHORT])
def test_segments_shorter_than_ours_are_refused(name: str) -> None:
    with pytest.raises(Tampered, match="impossible segment size"):
        floe_decrypt(KEY, AAD, published(name)[0])


@pytest.mark.attack
@pytest.mark.parametrize("name", [name for name in READABLE if name.endswith("64")])
def test_no_changed_bit_of_a_published_answer_is_opened(name: str) -> None:
    sealed, _ = published(name)
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Tampered):
            floe_decrypt(KEY, AAD, bytes(changed))


@pytest.mark.attack
@pytest.mark.parametrize("name", [name for name in READABLE if name.endswith("64")])
def test_a_published_answer_cut_repeated_or_swapped_is_refused(name: str) -> None:
    sealed, _ = published(name)
    head, body = sealed[:HEADER_SIZE], sealed[HEADER_SIZE:]
    segments = [body[start : start + 64] for start in range(0, len(body), 64)]

    for size in range(len(sealed)):
        with pytest.raises(Tampered):
            floe_decrypt(KEY, AAD, sealed[:size])
    for others in (
        [segments[1], segments[0], *segments[2:]],
        [segments[0], *segments],
        [*segments, segments[-1]],
        segments[1:],
    ):
        with pytest.raises(Tampered):
            floe_decrypt(KEY, AAD, head + b"".join(others))


@pytest.mark.attack
@pytest.mark.parametrize("name", READABLE)
def test_a_published_answer_of_another_key_or_context_is_refused(name: str) -> None:
    sealed, _ = published(name)
    for key, aad in ((b"\x01" + bytes(31), AAD), (KEY, AAD + b"!"), (KEY, b"")):
        with pytest.raises(Tampered, match="the key does not open it"):
            floe_decrypt(key, aad, sealed)
