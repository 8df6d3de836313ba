"""Sealed files: round trips, random access, memory, and what a reader refuses."""

import io
import itertools
import multiprocessing
import random
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.core.errors import FailedPrecondition, InvalidInput, Stale, Tampered
from appliance.crypto.floe import OVERHEAD, SEGMENT_SIZE
from appliance.crypto.sealed_place import SealedPlace
from appliance.crypto.sealed_reader import SealedReader
from appliance.crypto.sealed_writer import SealedWriter
from tests.crypto import reference_floe
from tests.fakes.files import CountingFile, FullDisk, SmallPieces, open_bytes, seal_bytes

KEY = bytes(range(32))
PLACE = SealedPlace("research", "4f1c", "part-00000.jsonl")
PREFIX = len(PLACE.prefix())
BODY = PREFIX + 74
SMALL = 64
STEP = SMALL - OVERHEAD
BIG_STEP = SEGMENT_SIZE - OVERHEAD


def seal(
    plain: bytes, *, key: bytes = KEY, place: SealedPlace = PLACE, segment_size: int = SMALL
) -> bytes:
    raw = io.BytesIO()
    with SealedWriter(raw, key, place, segment_size=segment_size) as writer:
        writer.write(plain)
    return raw.getvalue()


def text(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# Round trips


@pytest.mark.parametrize("size", [0, 1, BIG_STEP - 1, BIG_STEP, BIG_STEP + 1, 3 * SEGMENT_SIZE + 5])
def test_what_was_sealed_is_opened(size: int) -> None:
    plain = text(size)

    sealed = seal_bytes(plain, KEY, PLACE)

    assert open_bytes(sealed, KEY, PLACE) == plain
    assert len(sealed) == BODY + size + OVERHEAD * max(1, -(-size // BIG_STEP))


def test_known_answer_opens(known_answers: dict[str, Any]) -> None:
    answer = known_answers["file"]
    place = SealedPlace(answer["project"], answer["object"], answer["file"])

    plain = open_bytes(bytes.fromhex(answer["sealed"]), bytes.fromhex(answer["key"]), place)

    assert plain == answer["plain"].encode()


def test_the_container_is_what_the_documentation_says() -> None:
    header = b'{"file":"part-00000.jsonl","object":"4f1c","project":"research"}'
    sealed = seal(b"some text")

    assert sealed[: 8 + len(header)] == b"SLE1" + len(header).to_bytes(4, "big") + header
    assert reference_floe.decrypt(KEY, PLACE.aad(), sealed[PREFIX:]) == b"some text"


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(pieces=st.lists(st.binary(max_size=3 * SMALL), max_size=12), data=st.data())
def test_any_writes_and_any_reads_give_the_same_bytes(
    pieces: list[bytes], data: st.DataObject
) -> None:
    plain = b"".join(pieces)
    raw = io.BytesIO()
    with SealedWriter(raw, KEY, PLACE, segment_size=SMALL) as writer:
        for piece in pieces:
            assert writer.write(piece) == len(piece)
    assert (writer.plain_size, writer.sealed_size) == (len(plain), len(raw.getvalue()))

    reader = SealedReader(raw, KEY, PLACE, expect_tag=writer.tag)
    assert (reader.size, reader.tag) == (len(plain), writer.tag)
    for _ in range(10):
        start = data.draw(st.integers(0, len(plain) + 5))
        count = data.draw(st.integers(0, len(plain) + 5))
        assert reader.seek(start) == start
        assert reader.read(count) == plain[start : start + count]
        assert reader.tell() == max(start, min(start + count, len(plain)))


def test_reads_go_straight_into_a_buffer_of_any_type() -> None:
    plain = text(10 * STEP + 7)
    target = memoryview(bytearray(len(plain))).cast("B")
    numbers = memoryview(bytearray(8 * STEP)).cast("d")
    reader = SealedReader(io.BytesIO(seal(plain)), KEY, PLACE)

    assert reader.readinto(target) == len(plain)
    assert reader.readinto(target) == 0
    assert reader.readinto(bytearray()) == 0
    reader.seek(STEP)
    assert reader.readinto(numbers) == 8 * STEP

    assert bytes(target) == plain
    assert bytes(numbers) == plain[STEP : 9 * STEP]


def test_writes_take_a_buffer_of_any_type() -> None:
    raw = io.BytesIO()
    with SealedWriter(raw, KEY, PLACE) as writer:
        assert writer.write(memoryview(b"12345678").cast("d")) == 8
        assert writer.write(memoryview(bytearray()).cast("B")) == 0

    assert open_bytes(raw.getvalue(), KEY, PLACE) == b"12345678"


def test_seek_knows_start_position_and_end() -> None:
    reader = SealedReader(io.BytesIO(seal(b"0123456789")), KEY, PLACE)

    assert (reader.seek(-3, io.SEEK_END), reader.read(2)) == (7, b"78")
    assert (reader.seek(-4, io.SEEK_CUR), reader.read(1)) == (5, b"5")
    assert (reader.seek(100), reader.read(1), reader.read()) == (100, b"", b"")
    for offset, whence in ((-1, io.SEEK_SET), (-11, io.SEEK_END), (0, 7)):
        with pytest.raises(InvalidInput):
            reader.seek(offset, whence)


def test_lines_come_out_with_and_without_a_buffer() -> None:
    lines = [b"line %d %s\n" % (n, b"x" * (n % 90)) for n in range(200)] + [b"the end"]
    sealed = seal(b"".join(lines))

    assert list(SealedReader(io.BytesIO(sealed), KEY, PLACE)) == lines
    with io.BufferedReader(SealedReader(io.BytesIO(sealed), KEY, PLACE)) as buffered:
        assert list(buffered) == lines


def test_files_that_take_and_give_little_are_served() -> None:
    plain = text(1000)
    raw = SmallPieces()
    with SealedWriter(raw, KEY, PLACE, segment_size=SMALL) as writer:
        writer.write(plain)

    assert writer.sealed_size == len(raw.getvalue())
    assert SealedReader(raw, KEY, PLACE).read() == plain


def test_memory_is_a_few_segments_whatever_the_size(tmp_path: Path) -> None:
    piece = text(1 << 18)
    path = tmp_path / "sealed"
    target = memoryview(bytearray(1 << 18))

    tracemalloc.start()
    try:
        with path.open("wb", buffering=0) as raw, SealedWriter(raw, KEY, PLACE) as writer:
            for _ in range(256):
                writer.write(piece)
        with path.open("rb", buffering=0) as raw:
            reader = SealedReader(raw, KEY, PLACE)
            while count := reader.readinto(target):
                assert target[:count] == piece[:count]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert reader.size == 64 << 20
    assert peak < 4 * SEGMENT_SIZE


# The life of a writer and a reader


def test_a_failed_block_leaves_a_file_that_cannot_be_opened() -> None:
    raw = io.BytesIO()
    writer = SealedWriter(raw, KEY, PLACE, segment_size=SMALL)

    def fail() -> None:
        with writer:
            writer.write(text(5 * STEP))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    writer.close()

    with pytest.raises(Tampered):
        open_bytes(raw.getvalue(), KEY, PLACE)


def test_a_writer_that_was_forgotten_finishes_nothing() -> None:
    raw = io.BytesIO()
    writer = SealedWriter(raw, KEY, PLACE)
    writer.write(b"half")
    del writer

    with pytest.raises(Tampered):
        open_bytes(raw.getvalue(), KEY, PLACE)


def test_nothing_is_written_after_the_end() -> None:
    raw = io.BytesIO()
    writer = SealedWriter(raw, KEY, PLACE)
    writer.close()
    size = len(raw.getvalue())
    writer.close()

    with pytest.raises(FailedPrecondition):
        writer.write(b"more")
    assert len(raw.getvalue()) == size


def test_a_full_disk_never_ends_as_a_finished_file() -> None:
    raw = FullDisk(1000)
    writer = SealedWriter(raw, KEY, PLACE, segment_size=SMALL)
    with pytest.raises(OSError, match="No space left"):
        writer.write(text(2000))
    raw.space = 10_000

    with pytest.raises(FailedPrecondition):
        writer.close()
    with pytest.raises(Tampered):
        open_bytes(bytes(raw.data), KEY, PLACE)


def test_a_closed_reader_gives_nothing() -> None:
    raw = io.BytesIO(seal(b"text"))
    reader = SealedReader(raw, KEY, PLACE)
    reader.close()

    with pytest.raises(ValueError, match="closed"):
        reader.read(1)
    assert not raw.closed


def test_a_closed_reader_holds_no_plaintext() -> None:
    plain = b"a secret that is longer than nothing"
    reader = SealedReader(io.BytesIO(seal_bytes(plain, KEY, PLACE)), KEY, PLACE)

    def holds() -> bool:
        held = [each for each in vars(reader).values() if isinstance(each, memoryview)]
        return any(plain in bytes(each) for each in held)

    assert reader.read() == plain
    assert holds()
    reader.close()
    assert not holds()


def test_a_reader_closes_its_file_when_asked_to() -> None:
    raw = io.BytesIO(seal(b"text"))
    with SealedReader(raw, KEY, PLACE, closes_raw=True):
        pass

    assert raw.closed


def test_no_key_in_a_repr() -> None:
    writer = SealedWriter(io.BytesIO(), KEY, PLACE)
    reader = SealedReader(io.BytesIO(seal(b"text")), KEY, PLACE)

    for shown in (repr(writer), repr(reader), str(vars(PLACE))):
        assert KEY.hex() not in shown
        assert repr(KEY) not in shown


# Attacks


def refused(blob: bytes, key: bytes = KEY, place: SealedPlace = PLACE) -> None:
    """Reading all of it is refused, and what came out before is not of the failed segment."""
    with pytest.raises(Tampered) as caught:
        open_bytes(blob, key, place)
    assert caught.value.metadata == {
        "project": place.project,
        "object": place.object,
        "file": place.file,
    }


@pytest.mark.attack
@pytest.mark.parametrize("size", [0, 1, STEP, 2 * STEP, 2 * STEP + 6])
def test_every_bit_flip_is_refused(size: int) -> None:
    sealed = seal(text(size))
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        refused(bytes(changed))


@pytest.mark.attack
@pytest.mark.parametrize("size", [0, 1, STEP, 2 * STEP, 2 * STEP + 6])
def test_every_truncation_and_extension_is_refused(size: int) -> None:
    sealed = seal(text(size))
    for length in range(len(sealed)):
        refused(sealed[:length])
    for tail in (bytes(1), bytes(32), bytes(64), sealed[BODY:], sealed[BODY : BODY + 64], sealed):
        for length in range(1, len(tail) + 1):
            refused(sealed + tail[:length])


def segments(sealed: bytes) -> list[bytes]:
    return [sealed[i : i + SMALL] for i in range(BODY, len(sealed), SMALL)]


@pytest.mark.attack
def test_every_order_repetition_and_omission_of_segments_is_refused() -> None:
    sealed = seal(text(4 * STEP - 3))
    parts = segments(sealed)
    for length in range(6):
        for choice in itertools.product(parts, repeat=length):
            if list(choice) != parts:
                refused(sealed[:BODY] + b"".join(choice))


def strangers() -> Iterator[bytes]:
    """Authentic files that are not the one: older, of other files, objects, projects and keys."""
    plain = text(3 * STEP)
    yield seal(text(3 * STEP, seed=1))
    yield seal(plain)
    for other in (
        SealedPlace("research", "4f1c", "part-00001.jsonl"),
        SealedPlace("research", "4f1d", "part-00000.jsonl"),
        SealedPlace("sales", "4f1c", "part-00000.jsonl"),
    ):
        yield seal(plain, place=other)
    yield seal(plain, key=bytes(32))
    yield seal(plain, segment_size=SMALL + 1)


@pytest.mark.attack
def test_every_splice_with_another_authentic_file_is_refused() -> None:
    sealed = seal(text(3 * STEP))
    for stranger in strangers():
        for cut in range(1, min(len(sealed), len(stranger))):
            for mixed in (sealed[:cut] + stranger[cut:], stranger[:cut] + sealed[cut:]):
                # A cut inside what both have in common changes nothing.
                if mixed not in (sealed, stranger):
                    refused(mixed)


@pytest.mark.attack
def test_ten_thousand_random_mutations_are_refused() -> None:
    rng = random.Random(7)
    sealed = seal(text(40_000), segment_size=4096)
    older = seal(text(40_000, seed=1), segment_size=4096)
    for _ in range(10_000):
        changed = mutate(rng, sealed, older)
        if changed != sealed:
            refused(changed)


@pytest.mark.attack
def test_random_mutations_of_large_segments_are_refused() -> None:
    rng = random.Random(8)
    sealed = seal_bytes(text(3 * SEGMENT_SIZE + 5), KEY, PLACE)
    older = seal_bytes(text(3 * SEGMENT_SIZE + 5, seed=1), KEY, PLACE)
    for _ in range(150):
        changed = mutate(rng, sealed, older)
        if changed != sealed:
            refused(changed)


def mutate(rng: random.Random, sealed: bytes, other: bytes) -> bytes:
    start, end = sorted(rng.sample(range(len(sealed) + 1), 2))
    kinds: list[Callable[[], bytes]] = [
        lambda: (
            sealed[:start] + bytes([sealed[start] ^ 1 << rng.randrange(8)]) + sealed[start + 1 :]
        ),
        lambda: sealed[:start],
        lambda: sealed[start:],
        lambda: sealed[:start] + sealed[end:],
        lambda: sealed[:end] + sealed[start:],
        lambda: sealed[:start] + bytes(end - start) + sealed[end:],
        lambda: sealed[:start] + rng.randbytes(rng.randrange(1, 99)) + sealed[start:],
        lambda: sealed[:start] + other[start:end] + sealed[end:],
        lambda: other[:start] + sealed[start:],
    ]
    return rng.choice(kinds)()


@pytest.mark.attack
def test_no_byte_of_a_failed_segment_reaches_the_caller() -> None:
    plain = text(6 * STEP + 5)
    for bad in range(6):
        changed = bytearray(seal(plain))
        changed[BODY + bad * SMALL + 20] ^= 1
        for start in (0, 1, bad * STEP, bad * STEP + 1):
            reader = SealedReader(io.BytesIO(changed), KEY, PLACE)
            target = bytearray(b"\xaa" * len(plain))
            reader.seek(start)
            with pytest.raises(Tampered, match=f"segment {bad} was changed"):
                reader.readinto(target)
            good = max(0, bad * STEP - start)
            assert target[:good] == plain[start : start + good]
            assert set(target[good:]) <= {0, 0xAA}
            # The reader stands before the failed segment and gives it no second time either.
            with pytest.raises(Tampered):
                reader.read(1)


@pytest.mark.attack
def test_a_failed_segment_does_not_stand_in_for_a_good_one() -> None:
    plain = text(3 * STEP)
    changed = bytearray(seal(plain))
    changed[BODY + 20] ^= 1
    reader = SealedReader(io.BytesIO(changed), KEY, PLACE)
    for start in (2 * STEP, 2 * STEP + 5, STEP, STEP + 5):
        reader.seek(1)
        with pytest.raises(Tampered):
            reader.read(5)
        reader.seek(start)
        assert reader.read(5) == plain[start : start + 5]


@pytest.mark.attack
def test_what_is_cut_off_is_noticed_before_the_first_read() -> None:
    sealed = seal(text(10 * STEP))
    for count in range(10):
        with pytest.raises(Tampered):
            SealedReader(io.BytesIO(sealed[: BODY + count * SMALL]), KEY, PLACE)


@pytest.mark.attack
def test_a_file_that_changes_while_it_is_read_is_refused() -> None:
    raw = io.BytesIO(seal(text(10 * STEP)))
    other = seal(text(10 * STEP, seed=1))
    reader = SealedReader(raw, KEY, PLACE)
    reader.read(STEP)

    raw.seek(0)
    raw.write(other)
    with pytest.raises(Tampered):
        reader.read()
    raw.truncate(BODY + 100)
    with pytest.raises(Tampered, match="cut short"):
        reader.read()


@pytest.mark.parametrize("text", [b"", b"SL", b'{"file": "x"}' * 20, b"SLE2" + bytes(200)])
def test_what_is_no_sealed_file_is_said_to_be_none(text: bytes) -> None:
    with pytest.raises(Tampered, match="it is not a sealed file"):
        open_bytes(text, KEY, PLACE)


@pytest.mark.attack
def test_another_key_fails_before_a_segment_is_read() -> None:
    raw = CountingFile(seal(text(10 * STEP)))
    with pytest.raises(Tampered, match="the key does not open it"):
        SealedReader(raw, bytes(32), PLACE)

    assert raw.read_behind(BODY) == 0


@pytest.mark.attack
@pytest.mark.parametrize(
    "place",
    [
        SealedPlace("research", "4f1c", "part-00001.jsonl"),
        SealedPlace("research", "4f1d", "part-00000.jsonl"),
        SealedPlace("researc", "4f1c", "part-00000.jsonl"),
    ],
)
def test_a_moved_file_is_refused_and_named(place: SealedPlace) -> None:
    raw = CountingFile(seal(b"text"))
    with pytest.raises(Tampered, match="sealed for another place") as caught:
        SealedReader(raw, KEY, place)

    assert caught.value.metadata["object"] == place.object
    assert raw.read_behind(BODY) == 0


@pytest.mark.attack
def test_an_older_authentic_writing_is_stale() -> None:
    old, new = seal(b"old"), seal(b"new")
    tag = SealedReader(io.BytesIO(new), KEY, PLACE).tag

    assert SealedReader(io.BytesIO(new), KEY, PLACE, expect_tag=tag).read() == b"new"
    with pytest.raises(Stale) as caught:
        SealedReader(io.BytesIO(old), KEY, PLACE, expect_tag=tag)
    assert caught.value.metadata["file"] == PLACE.file


@pytest.mark.attack
def test_a_place_cannot_be_split_in_two_ways() -> None:
    places = [
        SealedPlace("a", "b/c", "d"),
        SealedPlace("a/b", "c", "d"),
        SealedPlace("a", "b", "c/d"),
    ]
    places += [SealedPlace('a","b', "c", "d"), SealedPlace("a", 'b","c', "d")]

    assert len({place.prefix() for place in places}) == len(places)


@pytest.mark.parametrize(
    "names", [("", "o", "f"), ("p", "", "f"), ("p", "o", ""), ("p" * 5000, "o", "f")]
)
def test_an_incomplete_place_is_refused(names: tuple[str, str, str]) -> None:
    with pytest.raises(InvalidInput):
        SealedPlace(*names)


@pytest.mark.attack
def test_a_forged_header_cannot_ask_for_much_memory() -> None:
    sealed = bytearray(seal(b"text"))
    sealed[PREFIX + 2 : PREFIX + 6] = (16 << 20).to_bytes(4, "big")
    tracemalloc.start()
    try:
        refused(bytes(sealed))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < SEGMENT_SIZE


def header_in_a_process(_number: int) -> list[bytes]:
    return [seal(b"")[PREFIX : PREFIX + 42] for _ in range(200)]


@pytest.mark.attack
def test_forked_processes_never_share_an_iv() -> None:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        headers = list(itertools.chain.from_iterable(pool.map(header_in_a_process, range(4))))

    assert len(set(headers)) == len(headers) == 800


# A ciphertext that raw GCM opens under two keys ("invisible salamanders"): the guard is the header.


def gf_multiply(a: int, b: int) -> int:
    """Product in GHASH's field (NIST SP 800-38D, 6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if b >> bit & 1:
            product ^= a
        a = a >> 1 ^ (0xE1 << 120 if a & 1 else 0)
    return product


def gf_inverse(a: int) -> int:
    result, power = 1 << 127, a
    for _ in range(127):
        power = gf_multiply(power, power)
        result = gf_multiply(result, power)
    return result


def test_the_field_arithmetic_of_the_attack_is_right() -> None:
    number = random.Random(3).getrandbits(128)

    assert gf_multiply(number, gf_inverse(number)) == 1 << 127


@pytest.mark.attack
def test_a_segment_that_opens_under_two_keys_is_refused_at_the_header() -> None:
    other_key = bytes(32)
    iv, nonce, aad = bytes(32), bytes(12), bytes(8) + b"\x01"
    streams = [reference_floe.Reference(k, PLACE.aad(), 64, iv) for k in (KEY, other_key)]
    segment_keys = [s.derive(s.message_key, b"DEK:" + bytes(8), 32) for s in streams]
    sealed = colliding_ciphertext(segment_keys, nonce, aad)
    for stream in streams:
        stream.cipher(0).decrypt(nonce, sealed, aad)

    marker = (4 + 12 + len(sealed)).to_bytes(4, "big")
    for stream in streams:
        start = stream.parameters + iv + stream.tag
        raw = CountingFile(PLACE.prefix() + start + marker + nonce + sealed)
        own, foreign = (KEY, other_key) if stream is streams[0] else (other_key, KEY)
        assert SealedReader(raw, own, PLACE).size == 32
        raw.reads.clear()
        with pytest.raises(Tampered, match="the key does not open it"):
            SealedReader(raw, foreign, PLACE)
        assert raw.read_behind(BODY) == 0


def colliding_ciphertext(keys: list[bytes], nonce: bytes, aad: bytes) -> bytes:
    """Two blocks and a tag that AES-GCM accepts under both keys: one block solves the equation."""

    def block(key: bytes, data: bytes) -> int:
        encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
        return int.from_bytes(encryptor.update(data), "big")

    first = int.from_bytes(b"the first block.", "big")
    lengths = (8 * len(aad)) << 64 | 256
    constant, factor = 0, 0
    tags = []
    for key in keys:
        h = block(key, bytes(16))
        powers = [h]
        for _ in range(3):
            powers.append(gf_multiply(powers[-1], h))
        fixed = gf_multiply(int.from_bytes(aad.ljust(16, b"\0"), "big"), powers[3])
        fixed ^= gf_multiply(first, powers[2]) ^ gf_multiply(lengths, powers[0])
        fixed ^= block(key, nonce + b"\0\0\0\1")
        constant ^= fixed
        factor ^= powers[1]
        tags.append((fixed, powers[1]))
    second = gf_multiply(constant, gf_inverse(factor))
    tag = tags[0][0] ^ gf_multiply(second, tags[0][1])
    return b"".join(number.to_bytes(16, "big") for number in (first, second, tag))
