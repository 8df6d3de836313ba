"""The records of the audit log in their order: appended, and signed at the end.

Rules kept here:
* a record is in its place once `append` returns: then it is durable, and counted in `head`;
* records say how many writes of the state there were, and that number never falls, so an older
  state is noticed also after it was recorded that somebody accepts it.

Called by the thread of `log` alone; `head` and `generation` are read by any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from appliance.control.audit.record import MAX_NUMBER, Prepared, line_of
from appliance.control.audit.segments import Segments
from appliance.core.files import full_disk_is_exhausted
from appliance.crypto import chain
from appliance.crypto.merkle import Tree, leaf_hash
from appliance.crypto.signing import SignedNote, SigningKey


class Written:
    """The verified log of some files.

    Args:
        files: of the log.
        key: signs.
        origin: name of the log in its checkpoints.
        known: sizes and roots that were seen before.
        generation: how many writes of the state were committed.

    Raises:
        Tampered: the log was changed; Stale when it is an older copy.
        Exhausted: there is no room to close the segments of 0.1.0.
    """

    def __init__(
        self,
        files: Segments,
        key: SigningKey,
        origin: str,
        known: Mapping[int, bytes],
        generation: Callable[[], int],
    ) -> None:
        self._files, self._key, self._origin, self._state = files, key, origin, generation
        grown = files.verified(known)
        with full_disk_is_exhausted(files.folder):
            files.close_older(grown, self._note_of)
        self._tree, self._previous = grown.tree, grown.previous
        self.head = (self._tree.size, self._tree.root())
        """How many records are durable, and the root over them."""
        size = self._tree.size
        newest = list(files.lines(max(size - 1, 0), size))
        self.generation = _generation_in(newest[0], size - 1) if newest else 0
        """How many writes of the state the newest record knows of."""

    @property
    def size(self) -> int:
        """How many records there are."""
        return self._tree.size

    def append(self, records: Sequence[Prepared]) -> None:
        """Make records durable. Raises OSError, after which comes `roll_back`, or Tampered."""
        lines, leaves, previous = [], [], self._previous
        # Read after what a result tells of was committed.
        generation = min(max(self.generation, self._state()), MAX_NUMBER)
        for sequence, record in enumerate(records, self._tree.size):
            line = line_of(record, sequence, previous, generation)
            leaves.append(leaf_hash(line))
            previous = leaves[-1].hex()
            lines.append(line)
        self._files.append(lines)
        for leaf in leaves:
            self._tree.append(leaf)
        self._previous, self.generation = previous, generation
        self.head = (self._tree.size, self._tree.root())

    def sign(self) -> bytes:
        """Sign a checkpoint over all there is, and make it durable. Raises OSError."""
        note = self._note_of(self._tree)
        self._files.append_note(note)
        return note

    def close_segment(self) -> bytes:
        """Close the open segment; the checkpoint over all there is. Raises OSError."""
        note = self._note_of(self._tree)
        self._files.close_segment(self._tree, note)
        return note

    def roll_back(self) -> None:
        """Cut off what a failed write has left. Raises OSError or Tampered."""
        self._files.roll_back(self._previous)

    def _note_of(self, tree: Tree) -> bytes:
        return SignedNote(self._origin, tree.size, tree.root()).sign(self._key)


def _generation_in(line: bytes, sequence: int) -> int:
    """What a record says; records of 0.1.0 say nothing. Raises Tampered."""
    said = chain.parsed(line, sequence).get("generation", 0)
    if type(said) is not int or not 0 <= said <= MAX_NUMBER:
        raise chain.bad_record(sequence, "its generation is none")
    return said
