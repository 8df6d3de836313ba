"""Documents that say the same as an earlier one, exactly or nearly.

Exact: equal SHA-256 of the words, letter case and spacing aside. Near: MinHash signatures (Broder
1997) of 5-word shingles in bands (locality-sensitive hashing) propose candidates; a candidate
counts only when the true Jaccard similarity of the shingle sets reaches the threshold, so that the
error of a signature never drops a document. The earliest of each group stays.

Forms that are filled in a thousand times resemble each other without being the same. Such a group
is represented by its first `MOST_ALIKE` documents: a document that resembles so many is not
remembered, so that time grows with the number of documents and not with its square. What is read
again are the few whose signatures are most alike. A near-duplicate of a document that was not
remembered may stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from rensa import RMinHash, RMinHashLSH

SHINGLE = 5
PERMUTATIONS = 128
BANDS = 32
"""Bands of four values: a pair at similarity 0.8 shares one with probability 1 - 10^-7."""
MOST_ALIKE = 16
"""Documents that stand for a group whose members resemble each other."""
MOST_READ = 4
"""Candidates whose shingles are compared."""
DOUBT = 0.15
"""What a signature may be wrong by: more than three times its standard error of 0.044."""
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
    """Remembers the signatures of the texts kept so far, twice; 512 bytes each.

    Args:
        threshold: Jaccard similarity from which a text is a duplicate, 0 to 1.
        words_of: returns the words of a kept document by its number, to verify a candidate.
    """

    def __init__(self, threshold: float, words_of: Callable[[int], list[str]]) -> None:
        self._threshold = threshold
        self._words_of = words_of
        self._index = RMinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._values: dict[int, npt.NDArray[np.uint32]] = {}

    def original_of(self, number: int, words: list[str]) -> int | None:
        """The number of an earlier document nearly equal to this; None keeps and remembers it."""
        found = shingles(words)
        signature = RMinHash(num_perm=PERMUTATIONS, seed=_SEED)
        signature.update(list(found))
        values = np.array(signature.digest(), np.uint32)
        candidates = self._index.query(signature)
        for candidate in self._likeliest(values, candidates):
            if jaccard(found, shingles(self._words_of(candidate))) >= self._threshold:
                return candidate
        if len(candidates) < MOST_ALIKE:
            self._index.insert(number, signature)
            self._values[number] = values
        return None

    def _likeliest(self, values: npt.NDArray[np.uint32], candidates: list[int]) -> list[int]:
        """The candidates that may be duplicates by their signatures, most alike first."""
        alike = sorted(
            (-float(np.mean(self._values[candidate] == values)), candidate)
            for candidate in candidates
        )
        least = self._threshold - DOUBT
        return [candidate for share, candidate in alike[:MOST_READ] if -share >= least]


def shingles(words: list[str]) -> set[str]:
    """The 5-word sequences of a text, lower case; a shorter text is one shingle."""
    words = [word.lower() for word in words]
    if len(words) < SHINGLE:
        return {" ".join(words)}
    return set(map(" ".join, zip(*(words[i:] for i in range(SHINGLE)), strict=False)))


def jaccard(one: set[str], other: set[str]) -> float:
    """Size of the intersection over size of the union (Jaccard 1901)."""
    common = len(one & other)
    union = len(one) + len(other) - common
    return common / union if union else 1.0
