"""The Merkle tree of RFC 6962 (2.1), growing at its end. Pure.

Called by `chain`, `proofs` and the audit log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from appliance.core.errors import InvalidInput

LEAF, NODE = b"\x00", b"\x01"
HASH_SIZE = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(line: bytes) -> bytes:
    """Hash of a record, given without its line end; 32 bytes."""
    return hashlib.sha256(LEAF + line).digest()


class Tree:
    """A tree that keeps the roots of its full subtrees alone, its peaks.

    Args:
        size: leaves that it has already.
        peaks: roots of its full subtrees, 32 bytes each, the largest first; one for each bit that
            is set in `size`.

    Raises InvalidInput when the two do not belong together.
    """

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        right = all(len(peak) == HASH_SIZE for peak in peaks)
        if size < 0 or not right or len(peaks) != size.bit_count():
            raise InvalidInput(f"A tree of {size} leaves does not have these peaks.")
        self.size = size
        self._peaks = list(peaks)

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """Roots of its full subtrees, the largest first."""
        return tuple(self._peaks)

    def copy(self) -> Tree:
        """Another tree of the same leaves."""
        return Tree(self.size, self._peaks)

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash."""
        # The number of trailing ones of the size is the number of full subtrees that merge.
        merge = self.size
        while merge & 1:
            leaf = hashlib.sha256(NODE + self._peaks.pop() + leaf).digest()
            merge >>= 1
        self._peaks.append(leaf)
        self.size += 1

    def extend(self, lines: Iterable[bytes]) -> None:
        """Add records, given with their line ends, as a file gives them."""
        for line in lines:
            self.append(leaf_hash(line.removesuffix(b"\n")))

    def root(self) -> bytes:
        """The root hash, 32 bytes."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = hashlib.sha256(NODE + peak + root).digest()
        return root
