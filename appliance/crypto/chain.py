"""The chain of audit records and its offline verification. Pure: bytes in, a verdict out.

A record is one line of RFC 8785 JSON that carries its `sequence` and, as `previous`, the leaf hash
of the record before. All lines are the leaves of one Merkle tree (RFC 6962, 2.1), and signed
checkpoints (C2SP tlog-checkpoint) state the tree's size and root.

Rules kept here:
* a verdict needs the public key, the log and its checkpoints, nothing secret and no server;
* verification returns what is proved, or raises Tampered with the first bad record in
  `metadata["record"]`; it never answers False;
* the link to the record before says which record was changed; the checkpoints say that a chain made
  anew from some record on is not the one that was signed; a checkpoint kept elsewhere says that the
  whole folder was replaced by an older copy.

The attack: whoever can write to the log edits, deletes, inserts, reorders or cuts off records, or
puts an older copy back. Called by the audit log when it opens and by `appliance audit verify`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from appliance.core.errors import Stale, Tampered
from appliance.crypto.signing import SignedNote, VerifyKey

LEAF, NODE = b"\x00", b"\x01"
EMPTY_ROOT = hashlib.sha256(b"").digest()
FIRST_PREVIOUS = "0" * 64
LOG_SUFFIX = ".log"
CHECKPOINTS = "checkpoints"
LONGEST_LINE = 1 << 20


def leaf_hash(line: bytes) -> bytes:
    """RFC 6962 hash of a record, given without its line end."""
    return hashlib.sha256(LEAF + line).digest()


def segment_name(first: int) -> str:
    """Name of the file whose first record has this sequence."""
    return f"{first:012d}{LOG_SUFFIX}"


class Tree:
    """A Merkle tree that grows at its end; it keeps the roots of its full subtrees alone."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash."""
        # The number of trailing ones of the size is the number of full subtrees that merge.
        merge = self.size
        while merge & 1:
            leaf = hashlib.sha256(NODE + self._peaks.pop() + leaf).digest()
            merge >>= 1
        self._peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root hash, 32 bytes (RFC 6962, 2.1)."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = hashlib.sha256(NODE + peak + root).digest()
        return root


@dataclass(frozen=True)
class Verified:
    """What is proved: `size` records with this `root`, of which the first `covered` are signed."""

    size: int
    root: bytes
    covered: int


def notes_of(data: bytes) -> list[bytes]:
    """The signed notes in a file of checkpoints, each ended by an empty line; no half ones."""
    parts = data.split(b"\n\n")
    return [
        text + b"\n\n" + signature + b"\n"
        for text, signature in zip(parts[:-1:2], parts[1:-1:2], strict=False)
    ]


def lines_of(segments: Iterable[tuple[str, BinaryIO]]) -> Iterator[bytes]:
    """Every record of the segments, in their order, without line ends.

    A last line that does not end was never acknowledged and is left out.

    Raises Tampered when a segment does not begin where its name says.
    """
    sequence = 0
    for name, stream in segments:
        if name != segment_name(sequence):
            raise bad_record(sequence, f"{segment_name(sequence)} is missing; found {name}")
        while line := stream.readline(LONGEST_LINE):
            if not line.endswith(b"\n"):
                break
            yield line[:-1]
            sequence += 1


def verify(
    segments: Iterable[tuple[str, BinaryIO]],
    notes: Iterable[bytes],
    key: VerifyKey,
    origin: str,
    *,
    older: bytes | None = None,
) -> Verified:
    """Prove a log against its checkpoints.

    Args:
        segments: the files `*.log` with their names, in order of name.
        notes: the signed checkpoints, in any order.
        key: the public key of the checkpoints.
        origin: name of the log in its checkpoints.
        older: a checkpoint of this log that was kept elsewhere, to notice an older copy.

    Raises:
        Tampered: the log or a checkpoint is not what was written; `metadata["record"]` is the first
            bad record.
        Stale: the log is authentic, but shorter than a checkpoint says.
    """
    checkpoints = [SignedNote.open(note, key, origin) for note in notes]
    known = SignedNote.open(older, key, origin) if older is not None else None
    signed = {note.size: note.root for note in checkpoints}
    if len(signed) != len({(note.size, note.root) for note in checkpoints}):
        raise Tampered("two signed checkpoints of one size contradict each other", object=origin)
    if known is not None and signed.setdefault(known.size, known.root) != known.root:
        raise Tampered(
            f"the checkpoint kept elsewhere, of {known.size} records, is not of this log",
            object=origin,
        )
    tree, covered = _walk(lines_of(segments), signed)
    newest = max(signed, default=0)
    if newest > tree.size:
        raise Stale(
            f"the audit log ends after {tree.size} records, but a signed checkpoint states "
            f"{newest}: record {tree.size} and what follows is missing; somebody cut the log or put "
            f"an older copy back",
            object=f"audit record {tree.size}",
            record=tree.size,
        )
    return Verified(tree.size, tree.root(), covered)


def _walk(lines: Iterator[bytes], signed: dict[int, bytes]) -> tuple[Tree, int]:
    """Follow the links and the checkpoints; the tree, and how many records are signed for."""
    tree, covered = Tree(), 0
    before, leaves = b"", [bytes.fromhex(FIRST_PREVIOUS)] * 2
    line = next(lines, None)
    while line is not None:
        following = next(lines, None)
        sequence, previous = _parse(line, tree.size)
        leaf = leaf_hash(line)
        if sequence != tree.size:
            _wrong_place(tree.size, sequence, leaves[-2].hex() == previous and line != before)
        if previous != leaves[-1].hex():
            _wrong_link(tree.size, covered, leaf, following)
        tree.append(leaf)
        if tree.size in signed:
            if signed[tree.size] != tree.root():
                _wrong_root(covered, tree.size)
            covered = tree.size
        before, line, leaves = line, following, [leaves[-1], leaf]
    return tree, covered


def _parse(line: bytes, position: int) -> tuple[int, str]:
    try:
        record: Any = json.loads(line)
        sequence, previous = record["sequence"], record["previous"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise bad_record(position, "it is not a record") from error
    if not isinstance(sequence, int) or not isinstance(previous, str):
        raise bad_record(position, "it is not a record")
    return sequence, previous


def _wrong_place(position: int, sequence: int, skips_one: bool) -> None:  # noqa: FBT001 - private
    if sequence > position:
        raise bad_record(position, f"it is missing: record {sequence} stands in its place")
    if skips_one:
        # This one follows the record two before it: what stands between them was put there.
        raise bad_record(position - 1, "it was put in: it does not belong to the chain")
    raise bad_record(position, f"record {sequence} stands in its place")


def _wrong_link(position: int, covered: int, leaf: bytes, following: bytes | None) -> None:
    """The link between this record and the one before is broken: say which of them was changed."""
    this = covered == position or (
        following is not None and _parse(following, position + 1)[1] != leaf.hex()
    )
    if this or position == 0:
        raise bad_record(position, "it was changed: its link to the record before is wrong")
    raise bad_record(position - 1, "it was changed: the record after it was made for another one")


def _wrong_root(covered: int, size: int) -> None:
    """The chain is whole, but not the signed one: its end, or all from some record on, is new."""
    which = f"records {covered} to {size - 1} are" if size - 1 > covered else f"record {covered} is"
    raise Tampered(
        f"{which} not what the signed checkpoint of {size} records states: the last of them was "
        f"changed, or they were written anew",
        object=f"audit record {size - 1}",
        record=size - 1,
        first=covered,
    )


def bad_record(position: int, why: str) -> Tampered:
    """Tampered, naming a record by its sequence."""
    return Tampered(
        f"audit record {position} is not what was written: {why}",
        object=f"audit record {position}",
        record=position,
    )
