"""The chain of audit records: RFC 6962's tree, and every way to change a log, found by name."""

import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.core.errors import Stale, Tampered
from appliance.crypto import chain
from appliance.crypto.chain import Verified, segment_name, verify
from appliance.crypto.merkle import EMPTY_ROOT, Tree, leaf_hash
from appliance.crypto.proofs import notes_of
from appliance.crypto.signing import SignedNote, SigningKey

KEY = SigningKey(b"\x07" * 32)
ORIGIN = "appliance/lab/audit"

# Leaves and roots of the reference tree that Certificate Transparency implementations share.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def test_roots_are_those_of_certificate_transparency() -> None:
    tree = Tree()
    found = [tree.root().hex()]
    for leaf in LEAVES:
        tree.append(leaf_hash(leaf))
        found.append(tree.root().hex())
    assert found == ROOTS


def _tree_hash(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, as it is written there."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    split = 1 << (len(leaves) - 1).bit_length() - 1
    left, right = _tree_hash(leaves[:split]), _tree_hash(leaves[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def test_the_growing_tree_is_the_recursive_one() -> None:
    leaves = [bytes([number]) * number for number in range(70)]
    tree = Tree()
    for count, leaf in enumerate(leaves, 1):
        tree.append(leaf_hash(leaf))
        assert (tree.size, tree.root()) == (count, _tree_hash(leaves[:count]))


# --- a log to attack ------------------------------------------------------------------------------


def _lines(count: int, start: list[bytes] | None = None, text: str = "OK") -> list[bytes]:
    lines = list(start or [])
    previous = leaf_hash(lines[-1]).hex() if lines else chain.FIRST_PREVIOUS
    for sequence in range(len(lines), count):
        record = {"outcome": text, "previous": previous, "sequence": sequence}
        lines.append(json.dumps(record, separators=(",", ":")).encode())
        previous = leaf_hash(lines[-1]).hex()
    return lines


def _note(lines: list[bytes]) -> bytes:
    tree = Tree()
    for line in lines:
        tree.append(leaf_hash(line))
    return SignedNote(ORIGIN, tree.size, tree.root()).sign(KEY)


def _verify(
    lines: list[bytes], notes: list[bytes], *, per_file: int = 10_000, older: bytes | None = None
) -> Verified:
    files = [
        (
            segment_name(first),
            io.BytesIO(b"".join(line + b"\n" for line in lines[first : first + per_file])),
        )
        for first in range(0, len(lines), per_file)
    ]
    return verify(files, notes, KEY.verify_key, ORIGIN, older=older)


def _first_bad(lines: list[bytes], notes: list[bytes], older: bytes | None = None) -> int:
    with pytest.raises(Tampered) as raised:
        _verify(lines, notes, older=older)
    return int(raised.value.metadata["record"])


SMALL = _lines(12)
SMALL_NOTES = [_note(SMALL[:size]) for size in (0, 5, 12)]


def test_a_log_as_it_was_written_is_proved() -> None:
    found = _verify(SMALL, SMALL_NOTES)
    assert (found.size, found.covered, found.root) == (12, 12, _tree_hash(SMALL))
    assert _verify(SMALL, SMALL_NOTES, per_file=5) == found
    assert _verify(SMALL, SMALL_NOTES[:2]).covered == 5
    assert _verify([], []).size == 0


def _edit(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at].replace(b'"OK"', b'"NO"'), *lines[at + 1 :]]


def _delete(lines: list[bytes], at: int) -> list[bytes]:
    return lines[:at] + lines[at + 1 :]


def _insert_copy(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[: at + 1], *lines[at:]]


def _insert_forged(lines: list[bytes], at: int) -> list[bytes]:
    forged = _lines(at + 1, lines[:at], "forged")[at]
    return [*lines[:at], forged, *lines[at:]]


def _break(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at][:-1], *lines[at + 1 :]]


@pytest.mark.attack
@pytest.mark.parametrize("change", [_edit, _delete, _insert_forged, _break])
@pytest.mark.parametrize("at", range(12))
def test_every_change_of_every_record_is_found_by_name(
    change: Callable[[list[bytes], int], list[bytes]], at: int
) -> None:
    assert _first_bad(change(SMALL, at), SMALL_NOTES) == at


@pytest.mark.attack
@pytest.mark.parametrize("at", range(11))
def test_a_record_that_stands_twice_is_found(at: int) -> None:
    assert _first_bad(_insert_copy(SMALL, at), SMALL_NOTES) == at + 1


@pytest.mark.attack
@pytest.mark.parametrize("at", range(12))
def test_two_records_in_each_other_s_place_are_found(at: int) -> None:
    for other in range(at + 1, 12):
        swapped = list(SMALL)
        swapped[at], swapped[other] = swapped[other], swapped[at]
        assert _first_bad(swapped, SMALL_NOTES) == at


@pytest.mark.attack
@pytest.mark.parametrize("left", range(12))
def test_a_log_that_was_cut_is_found(left: int) -> None:
    with pytest.raises(Stale, match=f"ends after {left} records, but it had 12") as raised:
        _verify(SMALL[:left], SMALL_NOTES)
    assert raised.value.metadata["record"] == str(left)


@pytest.mark.attack
@pytest.mark.parametrize("start", range(12))
def test_a_chain_made_anew_from_some_record_on_is_found(start: int) -> None:
    anew = _lines(12, SMALL[:start], "forged")
    with pytest.raises(Tampered, match="written anew") as raised:
        _verify(anew, SMALL_NOTES)
    covered = 5 if start >= 5 else 0
    assert raised.value.metadata["first"] == str(covered)
    assert int(raised.value.metadata["record"]) >= start


@pytest.mark.attack
def test_an_older_copy_of_everything_is_found_by_a_checkpoint_kept_elsewhere() -> None:
    old_log, old_notes = SMALL[:5], SMALL_NOTES[:2]
    assert _verify(old_log, old_notes).covered == 5
    with pytest.raises(Stale, match="older copy"):
        _verify(old_log, old_notes, older=SMALL_NOTES[2])
    assert _verify(SMALL, SMALL_NOTES, older=SMALL_NOTES[1]).covered == 12


@pytest.mark.attack
def test_another_log_signed_by_the_same_key_is_found_by_a_checkpoint_kept_elsewhere() -> None:
    other = _lines(12, [], "other")
    notes = [_note(other[:5]), _note(other)]
    assert _verify(other, notes).covered == 12
    with pytest.raises(Tampered):
        _verify(other, notes, older=SMALL_NOTES[1])


@pytest.mark.attack
def test_checkpoints_of_others_count_nothing() -> None:
    tree_root = _tree_hash(SMALL)
    wrong = [
        SignedNote(ORIGIN, 12, tree_root).sign(SigningKey(b"\x08" * 32)),
        SignedNote("appliance/other/audit", 12, tree_root).sign(KEY),
        SMALL_NOTES[2].replace(b"\n12\n", b"\n11\n"),
        b"",
    ]
    for note in wrong:
        with pytest.raises(Tampered):
            _verify(SMALL, [note])
    with pytest.raises(Tampered, match="contradict"):
        _verify(SMALL, [SMALL_NOTES[2], _note(_lines(12, [], "other"))])


@pytest.mark.attack
@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b'{"sequence":0}',
        b'{"sequence":"0","previous":"x"}',
        b'{"sequence":0,"previous":7}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_record_is_found_and_never_crashes(line: bytes) -> None:
    assert _first_bad([line, *SMALL[1:]], SMALL_NOTES) == 0


@pytest.mark.attack
def test_a_missing_file_is_found() -> None:
    files = [
        (segment_name(first), io.BytesIO(b"\n".join(SMALL[first : first + 4]) + b"\n"))
        for first in (0, 4, 8)
    ]
    for gone in range(3):
        for _, stream in files:
            stream.seek(0)
        with pytest.raises(Tampered) as raised:
            verify(
                [f for n, f in enumerate(files) if n != gone], SMALL_NOTES, KEY.verify_key, ORIGIN
            )
        assert raised.value.metadata["record"] == str((0, 4, 8)[gone])


def test_a_half_written_last_line_was_never_acknowledged() -> None:
    for cut in range(len(SMALL[11])):
        data = b"\n".join(SMALL[:11]) + b"\n" + SMALL[11][:cut]
        files = [(segment_name(0), io.BytesIO(data))]
        assert verify(files, SMALL_NOTES[:2], KEY.verify_key, ORIGIN).size == 11


def test_half_written_checkpoints_are_left_out() -> None:
    data = b"".join(note + b"\n" for note in SMALL_NOTES)
    assert notes_of(data) == SMALL_NOTES
    for cut in range(len(data)):
        found = notes_of(data[:cut])
        assert found == SMALL_NOTES[: len(found)]
    assert notes_of(b"") == []


LARGE = _lines(1000)
LARGE_NOTES = [_note(LARGE[:size]) for size in (256, 512, 768, 1000)]
SAMPLE = sorted({0, 1, 255, 256, 257, 998, 999, *random.Random(1).sample(range(1000), 25)})


@pytest.mark.attack
@pytest.mark.parametrize("change", [_edit, _delete, _insert_forged])
def test_changes_of_a_thousand_records_are_found_by_name(
    change: Callable[[list[bytes], int], list[bytes]],
) -> None:
    assert [_first_bad(change(LARGE, at), LARGE_NOTES) for at in SAMPLE] == SAMPLE


def test_nothing_but_the_files_and_the_key_is_needed() -> None:
    source = Path(chain.__file__).read_text()
    assert "import socket" not in source
    assert "open(" not in source.replace("SignedNote.open(", "")
