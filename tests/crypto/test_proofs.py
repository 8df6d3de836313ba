"""Proofs of closed segments: signed, written in one way, and of no use for anything else."""

from __future__ import annotations

import dataclasses
import json

import pytest

from appliance.core.errors import InvalidInput, Tampered
from appliance.crypto.merkle import Tree, leaf_hash
from appliance.crypto.proofs import ARCHIVED, PRUNED, SegmentProof, notes_of, size_of, thinned
from appliance.crypto.signing import SignedNote, SigningKey
from tests.fakes.audit import KEY, ORIGIN

OTHER = SigningKey(b"\x08" * 32)


def tree_of(count: int) -> Tree:
    tree = Tree()
    for number in range(count):
        tree.append(leaf_hash(b"%d" % number))
    return tree


def note(size: int, key: SigningKey = KEY, origin: str = ORIGIN) -> bytes:
    tree = tree_of(size)
    return SignedNote(origin, tree.size, tree.root()).sign(key)


PROOF = SegmentProof.of(4, 1234, tree_of(11), [note(8), note(11)])


def test_a_tree_goes_on_from_its_peaks() -> None:
    for size in range(40):
        begun = tree_of(size)
        again = Tree(begun.size, begun.peaks)
        for number in range(size, size + 9):
            again.append(leaf_hash(b"%d" % number))
        assert again.root() == tree_of(size + 9).root()
        assert begun.root() == tree_of(size).root()


@pytest.mark.parametrize(
    ("size", "peaks"), [(1, []), (0, [b"\0" * 32]), (3, [b"\0" * 32]), (1, [b"\0" * 31]), (-1, [])]
)
def test_peaks_that_do_not_belong_to_a_size_are_refused(size: int, peaks: list[bytes]) -> None:
    with pytest.raises(InvalidInput):
        Tree(size, peaks)


def test_a_proof_is_read_as_it_was_written() -> None:
    again = SegmentProof.loads(PROOF.dumps(), "p")
    assert again == PROOF
    again.check(KEY.verify_key, ORIGIN)
    assert notes_of(PROOF.dumps().partition(b"\n")[2]) == [note(8), note(11)]


@pytest.mark.attack
def test_no_changed_byte_makes_another_tree() -> None:
    """First record and length are compared with the file, older checkpoints with its records."""
    data = PROOF.dumps()
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            found = SegmentProof.loads(changed, "p")
            found.check(KEY.verify_key, ORIGIN)
        except Tampered:
            continue
        assert (found.size, found.peaks, found.notes[-1]) == (11, PROOF.peaks, PROOF.notes[-1])
    for cut in range(len(data)):
        with pytest.raises(Tampered):
            SegmentProof.loads(data[:cut], "p").check(KEY.verify_key, ORIGIN)


@pytest.mark.attack
@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"first":0,"length":0,"peaks":[],"size":0}',
        b'{"first":true,"length":0,"peaks":["%s"],"size":1}' % (b"00" * 32),
        b'{"first":0,"length":0,"peaks":["%s"],"size":1.0}' % (b"00" * 32),
        b'{"first":0,"length":0,"peaks":["zz"],"size":1}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_proof_is_refused(head: bytes) -> None:
    with pytest.raises(Tampered):
        SegmentProof.loads(head + b"\n", "p")


@pytest.mark.attack
def test_a_proof_is_believed_only_by_its_own_signature_and_name() -> None:
    forged = SegmentProof.of(4, 1234, tree_of(11), [note(11, OTHER)])
    for wrong in (
        forged,
        dataclasses.replace(PROOF, notes=()),
        dataclasses.replace(PROOF, notes=(note(8),)),
        dataclasses.replace(PROOF, size=12, peaks=tree_of(12).peaks),
        PROOF.signed_as(ARCHIVED, KEY, ORIGIN),
    ):
        with pytest.raises(Tampered):
            wrong.check(KEY.verify_key, ORIGIN)
    archived = PROOF.signed_as(ARCHIVED, KEY, ORIGIN)
    archived.check(KEY.verify_key, f"{ORIGIN}/{ARCHIVED}")
    with pytest.raises(Tampered):
        archived.check(KEY.verify_key, f"{ORIGIN}/{PRUNED}")


def test_a_proof_keeps_some_checkpoints_and_the_last() -> None:
    notes = [f"log\n{size}\nroot\n\nsigned\n".encode() for size in range(0, 2001, 5)]
    kept = [size_of(each) for each in thinned(notes, 500, 1500)]
    assert kept == [760, 1020, 1280]
    assert [size_of(each) for each in thinned(notes[::-1], 500, 1500)] == kept
    assert thinned([], 0, 5) == []
    assert [size_of(each) for each in (b"", b"log", b"log\nx\n")] == [-1, -1, -1]


def test_a_proof_is_one_line_of_json_and_its_checkpoints() -> None:
    head, _, rest = PROOF.dumps().partition(b"\n")
    assert json.loads(head) == {
        "first": 4,
        "length": 1234,
        "peaks": [peak.hex() for peak in tree_of(11).peaks],
        "size": 11,
    }
    assert rest == note(8) + b"\n" + note(11) + b"\n"
