"""Documents that say the same as an earlier one, exactly or nearly.

Exact: equal SHA-256 of the words, letter case and spacing aside. Near: MinHash signatures (Broder
1997) of 5-word shingles in bands (locality-sensitive hashing) propose candidates; a candidate
counts only when the true Jaccard similarity of the shingle sets reaches the threshold, so that the
error of a signature never drops a document. The earliest of each group stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from rensa import RMinHash, RMinHashLSH

SHINGLE = 5
PERMUTATIONS = 128
BANDS = 32
"""Bands of four values: a pair at similarity 0.8 shares one with probability 1 - 10^-7."""
_SEED = 42


class ExactDuplicates:
    """Remembers the fingerprints of all texts shown so far; 16 bytes each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_repeated(self, text: str) -> bool:
        """Whether the same words came before; the text is remembered either way."""
        words = " ".join(text.lower().split())
        fingerprint = hashlib.sha256(words.encode()).digest()[:16]
        repeated = fingerprint in self._seen
        self._seen.add(fingerprint)
        return repeated


class NearDuplicates:
    """Remembers the signatures of the texts kept so far; 512 bytes each.

    Args:
        threshold: Jaccard similarity from which a text is a duplicate, 0 to 1.
        text_of: returns the text of a kept document by its number, to verify a candidate.
    """

    def __init__(self, threshold: float, text_of: Callable[[int], str]) -> None:
        self._threshold = threshold
        self._text_of = text_of
        self._index = RMinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, num_bands=BANDS)

    def original_of(self, number: int, text: str) -> int | None:
        """The number of an earlier document nearly equal to `text`; None keeps and remembers it."""
        found = shingles(text)
        signature = RMinHash(num_perm=PERMUTATIONS, seed=_SEED)
        signature.update(list(found))
        for candidate in sorted(self._index.query(signature)):
            if jaccard(found, shingles(self._text_of(candidate))) >= self._threshold:
                return int(candidate)
        self._index.insert(number, signature)
        return None


def shingles(text: str) -> set[str]:
    """The 5-word sequences of a text, lower case; a shorter text is one shingle."""
    words = text.lower().split()
    count = max(1, len(words) - SHINGLE + 1)
    return {" ".join(words[i : i + SHINGLE]) for i in range(count)}


def jaccard(one: set[str], other: set[str]) -> float:
    """Size of the intersection over size of the union (Jaccard 1901)."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0
