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
from collections.abc import Iterable, Iterator, Mapping
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
    """Prove a log against its checkpoints. Of a log in use, read the checkpoints first.

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
    known = SignedNote.open(older, key, origin) if older is not None else None
    roots = {known.size: known.root} if known is not None else {}
    walk = _walk(segments, notes, key, origin, roots)
    return Verified(walk.tree.size, walk.tree.root(), walk.covered)


def grow(
    segments: Iterable[tuple[str, BinaryIO]],
    notes: Iterable[bytes],
    key: VerifyKey,
    origin: str,
    *,
    known: Mapping[int, bytes],
) -> tuple[Tree, str]:
    """Verify a log to go on with it: its tree, and what the next record names as `previous`.

    Args:
        segments: as in `verify`.
        notes: as in `verify`.
        key: as in `verify`.
        origin: as in `verify`.
        known: sizes of the log and the roots that were seen then, by whoever else remembers.

    Raises:
        Tampered: as `verify` does.
    """
    walk = _walk(segments, notes, key, origin, known)
    return walk.tree, walk.leaves[-1].hex()


def _roots(
    notes: Iterable[bytes], key: VerifyKey, origin: str, known: Mapping[int, bytes]
) -> dict[int, bytes]:
    """The root that each size must have, by signed checkpoint or by somebody's memory."""
    roots: dict[int, bytes] = {}
    for note in notes:
        checkpoint = SignedNote.open(note, key, origin)
        if roots.setdefault(checkpoint.size, checkpoint.root) != checkpoint.root:
            raise Tampered("two signed checkpoints contradict each other", object=origin)
    for size, root in known.items():
        if roots.setdefault(size, root) != root:
            raise Tampered(
                f"this is not the log that was seen elsewhere when it had {size} records: somebody "
                f"put another one in its place",
                object=origin,
            )
    return roots


class _Walk:
    """Follows the links of a log and compares its roots on the way."""

    def __init__(self, roots: Mapping[int, bytes]) -> None:
        self.tree = Tree()
        self.covered = 0
        self.leaves = [bytes.fromhex(FIRST_PREVIOUS)] * 2
        self._roots = roots
        self._before = b""

    def step(self, line: bytes, following: bytes | None) -> None:
        """Take the next record. Raises Tampered."""
        position = self.tree.size
        sequence, previous = _parse(line, position)
        leaf = leaf_hash(line)
        if sequence != position:
            skips = previous == self.leaves[-2].hex() and line != self._before
            _wrong_place(position, sequence, skips_one=skips)
        if previous != self.leaves[-1].hex():
            _wrong_link(position, self.covered, leaf, following)
        self.tree.append(leaf)
        size = self.tree.size
        if size in self._roots:
            if self._roots[size] != self.tree.root():
                _wrong_root(self.covered, size)
            self.covered = size
        self._before, self.leaves = line, [self.leaves[-1], leaf]


def _walk(
    segments: Iterable[tuple[str, BinaryIO]],
    notes: Iterable[bytes],
    key: VerifyKey,
    origin: str,
    known: Mapping[int, bytes],
) -> _Walk:
    roots = _roots(notes, key, origin, known)
    walk = _Walk(roots)
    lines = lines_of(segments)
    line = next(lines, None)
    while line is not None:
        following = next(lines, None)
        walk.step(line, following)
        line = following
    size, newest = walk.tree.size, max(roots, default=0)
    if newest > size:
        raise Stale(
            f"the audit log ends after {size} records, but it had {newest}: record {size} and what "
            f"follows is missing; somebody cut the log or put an older copy back",
            object=f"audit record {size}",
            record=size,
        )
    return walk


def _parse(line: bytes, position: int) -> tuple[int, str]:
    try:
        record: Any = json.loads(line)
        sequence, previous = record["sequence"], record["previous"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise bad_record(position, "it is not a record") from error
    if not isinstance(sequence, int) or not isinstance(previous, str):
        raise bad_record(position, "it is not a record")
    return sequence, previous


def _wrong_place(position: int, sequence: int, *, skips_one: bool) -> None:
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
