"""FLOE: known answers, agreement with a second implementation, keys and limits."""

import random
from typing import Any

import pytest

from appliance.core.errors import InvalidInput, Tampered
from appliance.crypto.floe import (
    HEADER_SIZE,
    MAX_SEGMENT,
    MAX_SEGMENTS,
    MIN_SEGMENT,
    OVERHEAD,
    FloeStream,
    Geometry,
    Parameters,
    floe_decrypt,
    floe_encrypt,
)
from tests.crypto import reference_floe


@pytest.mark.parametrize("index", range(7))
def test_known_answers_decrypt(known_answers: dict[str, Any], index: int) -> None:
    answer = known_answers["floe"][index]
    sealed = bytes.fromhex(answer["sealed"])

    plain = floe_decrypt(bytes.fromhex(answer["key"]), answer["aad"].encode(), sealed)

    assert plain == bytes.fromhex(answer["plain"])


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 63, 64, 65, 96, 97, 1000])
def test_a_second_implementation_agrees_both_ways(key: bytes, size: int) -> None:
    rng = random.Random(size)
    plain = rng.randbytes(size)

    ours = floe_encrypt(key, b"aad", plain, segment_size=64)
    theirs = reference_floe.encrypt(key, b"aad", plain, segment_size=64, random=rng.randbytes)

    assert reference_floe.decrypt(key, b"aad", ours) == plain
    assert floe_decrypt(key, b"aad", theirs) == plain
    assert len(ours) == len(theirs)


def test_the_segment_key_changes_every_2_to_the_20_segments(key: bytes) -> None:
    stream = FloeStream.create(key, b"aad", Parameters(64))
    reference = reference_floe.Reference(key, b"aad", 64, stream.header[10:42])
    turn = 1 << 20
    for position in (0, 1, turn - 1, turn, turn + 1, 0, 5 * turn, MAX_SEGMENTS - 1, turn - 1):
        sealed = memoryview(bytearray(64))
        stream.seal_into(position, b"x" * 32, sealed, last=False)

        aad = position.to_bytes(8, "big") + b"\x00"
        plain = reference.cipher(position).decrypt(bytes(sealed[4:16]), bytes(sealed[16:]), aad)

        assert plain == b"x" * 32


def test_no_segment_behind_the_last_possible_one(key: bytes) -> None:
    stream = FloeStream.create(key, b"", Parameters(64))
    with pytest.raises(InvalidInput):
        stream.seal_into(MAX_SEGMENTS, b"", memoryview(bytearray(OVERHEAD)), last=True)


@pytest.mark.attack
def test_a_failed_segment_leaves_zeros_in_the_target(key: bytes) -> None:
    # The library below leaves the unchecked plaintext in the buffer.
    stream = FloeStream.create(key, b"", Parameters(1024))
    sealed = bytearray(500 + OVERHEAD)
    stream.seal_into(0, b"secret!!!!" * 50, memoryview(sealed), last=True)
    sealed[-1] ^= 1
    out = bytearray(b"\xaa" * 500)

    with pytest.raises(Tampered):
        stream.open_into(0, memoryview(sealed), memoryview(out), last=True)

    assert out == bytes(500)


@pytest.mark.attack
def test_every_changed_bit_of_a_header_is_refused(key: bytes) -> None:
    header = FloeStream.create(key, b"aad", Parameters()).header
    assert len(header) == HEADER_SIZE
    for bit in range(8 * HEADER_SIZE):
        changed = bytearray(header)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Tampered):
            FloeStream.open(key, b"aad", bytes(changed))


@pytest.mark.attack
def test_another_key_or_context_is_refused_at_the_header(key: bytes) -> None:
    header = FloeStream.create(key, b"aad", Parameters()).header
    for other_key, aad in ((bytes(32), b"aad"), (key, b"aae"), (key, b"")):
        with pytest.raises(Tampered, match="the key does not open it"):
            FloeStream.open(other_key, aad, header)


@pytest.mark.parametrize("size", [0, MIN_SEGMENT - 1, MAX_SEGMENT + 1])
def test_segment_sizes_have_limits(size: int) -> None:
    with pytest.raises(InvalidInput):
        Parameters(size)
    with pytest.raises(Tampered, match="impossible segment size"):
        Parameters.decode(b"\x00\x00" + size.to_bytes(4, "big") + (32).to_bytes(4, "big"))


def test_keys_have_32_bytes() -> None:
    for size in (0, 16, 31, 33):
        with pytest.raises(InvalidInput):
            floe_encrypt(bytes(size), b"", b"")


@pytest.mark.parametrize(
    ("body", "count", "plain"),
    [(32, 1, 0), (64, 1, 32), (96, 2, 32), (128, 2, 64), (129 + 31, 3, 64)],
)
def test_geometry_counts_segments(body: int, count: int, plain: int) -> None:
    geometry = Geometry(64, body)

    assert (geometry.count, geometry.plain_size) == (count, plain)


@pytest.mark.parametrize("body", [0, 1, 31, 65, 95])
def test_geometry_refuses_lengths_that_no_stream_has(body: int) -> None:
    with pytest.raises(Tampered, match="cut short"):
        Geometry(64, body)


def test_geometry_refuses_more_segments_than_there_are_positions() -> None:
    assert Geometry(64, 64 * MAX_SEGMENTS).count == MAX_SEGMENTS
    with pytest.raises(Tampered, match="longer than the format allows"):
        Geometry(64, 64 * MAX_SEGMENTS + OVERHEAD)


def test_no_header_and_no_nonce_comes_twice(key: bytes) -> None:
    streams = [FloeStream.create(key, b"", Parameters(64)) for _ in range(2000)]
    nonces = []
    for stream in streams[:20]:
        for position in range(500):
            sealed = memoryview(bytearray(OVERHEAD))
            stream.seal_into(position, b"", sealed, last=False)
            nonces.append(bytes(sealed[4:16]))

    assert len({stream.header for stream in streams}) == len(streams)
    assert len(set(nonces)) == len(nonces)
