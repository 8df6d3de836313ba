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

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from appliance.core.errors import Stale, Tampered
from appliance.crypto.merkle import Tree, leaf_hash
from appliance.crypto.signing import SignedNote, VerifyKey

FIRST_PREVIOUS = "0" * 64
LOG_SUFFIX = ".log"
CHECKPOINTS = "checkpoints"
MAX_LINE = 1 << 20


def segment_name(first: int) -> str:
    """Name of the file whose first record has this sequence."""
    return f"{first:012d}{LOG_SUFFIX}"


Segments = Iterable[tuple[str, BinaryIO]]
"""Files `*.log` with their names, in order of name."""


@dataclass(frozen=True)
class Verified:
    """What is proved: records `first` to before `size`, of which those before `covered` are signed.

    `root` is of the tree of all, also of those before `first`.
    """

    size: int
    root: bytes
    covered: int
    first: int = 0


@dataclass(frozen=True)
class Grown:
    """A log to go on with.

    Attributes:
        tree: of all its records.
        previous: what the next record names.
        ends: the tree at the end of each segment that was read.
    """

    tree: Tree
    previous: str
    ends: list[Tree]


def lines_of(segments: Segments, first: int = 0) -> Iterator[bytes]:
    """Every record of the segments, in their order, without line ends; `first` is the first one.

    A last line that does not end was never acknowledged and is left out.

    Raises Tampered when a segment does not begin where its name says.
    """
    sequence = first
    for name, stream in segments:
        if name != segment_name(sequence):
            raise bad_record(sequence, f"{segment_name(sequence)} is missing; found {name}")
        while line := stream.readline(MAX_LINE):
            if not line.endswith(b"\n"):
                break
            yield line[:-1]
            sequence += 1


def verify(  # noqa: PLR0913 - what a log is verified against
    segments: Segments,
    notes: Iterable[bytes],
    key: VerifyKey,
    origin: str,
    *,
    older: bytes | None = None,
    base: Tree | None = None,
) -> Verified:
    """Prove a log against its checkpoints. Of a log in use, read the checkpoints first.

    Args:
        segments: of the log.
        notes: the signed checkpoints, in any order.
        key: the public key of the checkpoints.
        origin: name of the log in its checkpoints.
        older: a checkpoint of this log that was kept elsewhere, to notice an older copy.
        base: the tree of the records before the first segment, from a proof that was checked.

    Raises:
        Tampered: the log or a checkpoint is not what was written; `metadata["record"]` is the first
            bad record.
        Stale: the log is authentic, but shorter than a checkpoint says.
    """
    known = SignedNote.open(older, key, origin) if older is not None else None
    roots = _roots(notes, key, origin, {known.size: known.root} if known is not None else {})
    start = Tree() if base is None else base
    walk = _Walk(roots, start, _link(start, None))
    lines = lines_of(segments, start.size)
    line = next(lines, None)
    while line is not None:
        try:
            following = next(lines, None)
        except Tampered:
            # A record that is bad comes before a file that is missing.
            walk.step(line, None)
            raise
        walk.step(line, following)
        line = following
    walk.end()
    return Verified(walk.tree.size, walk.tree.root(), walk.covered, start.size)


def grow(  # noqa: PLR0913 - what a log is verified against
    segments: Segments,
    note: bytes | None,
    key: VerifyKey,
    origin: str,
    *,
    known: Mapping[int, bytes],
    base: Tree,
    previous: str | None,
) -> Grown:
    """Verify the end of a log to go on with it, as fast as it can be read.

    What the newest checkpoint covers is only hashed: it is what was signed, or it is not. `verify`
    says which record is the bad one.

    Args:
        segments: those after the records in `base`.
        note: the newest checkpoint.
        key: as in `verify`.
        origin: as in `verify`.
        known: sizes of the log and the roots that were seen then, by whoever else remembers; none
            of before `base`.
        base: the tree of the records before.
        previous: leaf hash of the last of these, hexadecimal; None when it is not known.

    Raises:
        Tampered: as `verify` does, without the name of the record where it is below a checkpoint.
    """
    roots = _roots([] if note is None else [note], key, origin, known)
    # What only somebody remembers is no signature: links are followed there, too.
    signed = SignedNote.open(note, key, origin).size if note is not None else 0
    walk = _Walk(roots, base, _link(base, previous), signed)
    ends: list[Tree] = []
    for segment in segments:
        for line in lines_of([segment], walk.tree.size):
            walk.step(line, None)
        ends.append(walk.tree.copy())
    walk.end()
    return Grown(walk.tree, walk.leaf.hex(), ends)


def _link(base: Tree, previous: str | None) -> bytes | None:
    """What the first record after `base` has to name; None when anything will do."""
    if not base.size:
        return bytes.fromhex(FIRST_PREVIOUS)
    return None if previous is None else bytes.fromhex(previous)


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
            raise another_log(size, origin)
    return roots


class _Walk:
    """Follows the links of a log and compares its roots on the way.

    Args:
        roots: that sizes of the log must have.
        base: the tree of the records before the first one.
        previous: leaf hash of the last of these; None when it is not known.
        hashed: links are followed from this record on; those before are proved by a root.
    """

    def __init__(
        self, roots: Mapping[int, bytes], base: Tree, previous: bytes | None, hashed: int = 0
    ) -> None:
        self.tree = base.copy()
        self.covered = base.size
        self.leaf = previous or b""
        self._two_before = self.leaf
        self._first = base.size if previous is None else None
        self._roots = roots
        self._hashed = hashed
        self._before = b""
        self._compare()

    def step(self, line: bytes, following: bytes | None) -> None:
        """Take the next record. Raises Tampered."""
        leaf = leaf_hash(line)
        if self.tree.size >= self._hashed:
            self._follow(line, leaf, following)
        self.tree.append(leaf)
        self._compare()
        self._before, self._two_before, self.leaf = line, self.leaf, leaf

    def end(self) -> None:
        """No record follows. Raises Stale when one should."""
        size, newest = self.tree.size, max(self._roots, default=0)
        if newest > size:
            raise Stale(
                f"the audit log ends after {size} records, but it had {newest}: record {size} and "
                f"what follows is missing; somebody cut the log or put an older copy back",
                object=f"audit record {size}",
                record=size,
            )

    def _follow(self, line: bytes, leaf: bytes, following: bytes | None) -> None:
        position = self.tree.size
        sequence, previous = _parse(line, position)
        if sequence != position:
            skips = previous == self._two_before.hex() and line != self._before
            _wrong_place(position, sequence, skips_one=skips)
        if position != self._first and previous != self.leaf.hex():
            _wrong_link(position, self.covered, leaf, following)

    def _compare(self) -> None:
        size = self.tree.size
        if size in self._roots:
            if self._roots[size] != self.tree.root():
                _wrong_root(self.covered, size)
            self.covered = size


def parsed(line: bytes, position: int) -> dict[str, Any]:
    """The record of a line. Raises Tampered when it is none."""
    try:
        record: Any = json.loads(line)
        right = isinstance(record["sequence"], int) and isinstance(record["previous"], str)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise bad_record(position, "it is not a record") from error
    if not right:
        raise bad_record(position, "it is not a record")
    return dict(record)


def _parse(line: bytes, position: int) -> tuple[int, str]:
    record = parsed(line, position)
    return record["sequence"], record["previous"]


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


def another_log(size: int, origin: str) -> Tampered:
    """Tampered, for a log that differs from what was seen when it had `size` records."""
    return Tampered(
        f"this is not the log that was seen elsewhere when it had {size} records: somebody put "
        f"another one in its place",
        object=origin,
    )


def bad_record(position: int, why: str) -> Tampered:
    """Tampered, naming a record by its sequence."""
    return Tampered(
        f"audit record {position} is not what was written: {why}",
        object=f"audit record {position}",
        record=position,
    )
