"""How a log stood at the end of a closed segment: its tree there, and signed checkpoints. Pure.

The peaks of the tree at the end of one segment and those at the end of the next one prove every
record between the two, so a segment is verified alone, and a log that goes on starts from the
newest peaks instead of from its first record.

Rules kept here:
* the last checkpoint of a proof is over exactly the records up to its end: size and peaks, by which
  everything is decided, are signed; first record and length are only where to look;
* there is one way to write a proof; what is not written that way is Tampered.

The same form says that what came before was archived (`archived`) or deleted by a rule (`pruned`):
then its only checkpoint is signed under a name of its own, so that neither can be made out of what
is signed anyway.

The attack: segments deleted, and a proof put there that says they had been archived. Called by the
audit log and by `appliance audit`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from appliance.core.errors import InvalidInput, Tampered
from appliance.crypto.merkle import Tree
from appliance.crypto.signing import SignedNote, SigningKey, VerifyKey

PROOF_SUFFIX = ".proof"
ARCHIVED, PRUNED = "archived", "pruned"
"""Names of the files, and last parts of the names that they are signed under."""
NOTE_RECORDS = 256
"""A closed segment keeps a checkpoint for about as many records."""


def notes_of(data: bytes) -> list[bytes]:
    """The signed notes in a file of checkpoints, each ended by an empty line; no half ones."""
    parts = data.split(b"\n\n")
    return [
        text + b"\n\n" + signature + b"\n"
        for text, signature in zip(parts[:-1:2], parts[1:-1:2], strict=False)
    ]


def size_of(note: bytes) -> int:
    """How many records a note says that it covers; -1 when it is none. Nothing is verified."""
    try:
        return int(note.split(b"\n", 2)[1])
    except (IndexError, ValueError):
        return -1


def thinned(notes: Iterable[bytes], first: int, size: int) -> list[bytes]:
    """Of these notes, those before the end of a segment, a few hundred records apart."""
    kept: list[bytes] = []
    covered = first
    for number, note in sorted((size_of(note), note) for note in notes):
        if first < number < size and number - covered >= NOTE_RECORDS:
            kept.append(note)
            covered = number
    return kept


@dataclass(frozen=True)
class SegmentProof:
    """What is known of a closed segment without its records.

    Attributes:
        first: its first record.
        size: how many records the log had at its end.
        length: of its file, in bytes.
        peaks: of the tree of the first `size` records, 32 bytes each, the largest first.
        notes: signed checkpoints, the last one of `size` records.
    """

    first: int
    size: int
    length: int
    peaks: tuple[bytes, ...]
    notes: tuple[bytes, ...]

    @classmethod
    def of(cls, first: int, length: int, tree: Tree, notes: Sequence[bytes]) -> SegmentProof:
        """The proof of a segment whose end is the end of this tree."""
        return cls(first, tree.size, length, tree.peaks, tuple(notes))

    def tree(self) -> Tree:
        """The tree at the end of the segment."""
        return Tree(self.size, self.peaks)

    def signed_as(self, what: str, key: SigningKey, origin: str) -> SegmentProof:
        """That the segments up to the end of this one were archived or pruned."""
        note = SignedNote(f"{origin}/{what}", self.size, self.tree().root()).sign(key)
        return SegmentProof(self.first, self.size, self.length, self.peaks, (note,))

    def check(self, key: VerifyKey, origin: str) -> None:
        """Raise Tampered unless its last checkpoint is signed, and over this very tree."""
        signed = SignedNote.open(self.notes[-1] if self.notes else b"", key, origin)
        if (signed.size, signed.root) != (self.size, self.tree().root()):
            raise Tampered(
                f"the proof of records {self.first} to {self.size - 1} is not what was signed",
                object=origin,
                record=self.first,
            )

    def dumps(self) -> bytes:
        """One line of JSON, then the checkpoints as in the file `checkpoints`."""
        head = {
            "first": self.first,
            "length": self.length,
            "peaks": [peak.hex() for peak in self.peaks],
            "size": self.size,
        }
        text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
        return text + b"\n" + b"".join(note + b"\n" for note in self.notes)

    @classmethod
    def loads(cls, data: bytes, name: str) -> SegmentProof:
        """Read a proof; `name` is of its file. Raises Tampered when it is none."""
        head, _, rest = data.partition(b"\n")
        try:
            facts = json.loads(head)
            peaks = tuple(bytes.fromhex(peak) for peak in facts["peaks"])
            notes = tuple(notes_of(rest))
            proof = cls(facts["first"], facts["size"], facts["length"], peaks, notes)
            numbers = (proof.first, proof.size, proof.length)
            right = all(type(number) is int for number in numbers)
            right = right and 0 <= proof.first < proof.tree().size and proof.dumps() == data
        except (ValueError, TypeError, KeyError, RecursionError, InvalidInput):
            right = False
        if not right:
            raise Tampered(f"{name} is not what was written", object=name)
        return proof
