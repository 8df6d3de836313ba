"""Documents that say the same as an earlier one, exactly or nearly.

Exact: equal SHA-256 of the words, letter case and spacing aside. Near: MinHash signatures (Broder
1997) of 5-word shingles in bands (locality-sensitive hashing) propose candidates; a candidate
counts only when the true Jaccard similarity of the shingle sets reaches the threshold, so that the
error of a signature never drops a document. The earliest of each group stays.

Forms that are filled in a thousand times resemble each other without being the same. Such a group
is represented by its first `MAX_ALIKE` documents: a document that resembles so many is not
remembered, so that time grows with the number of documents and not with its square. What is read
again are the few whose signatures are most alike. A near-duplicate of a document that was not
remembered may stay.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rensa import RMinHash, RMinHashLSH

SHINGLE = 5
PERMUTATIONS = 128
BANDS = 32
"""Bands of four values: a pair at similarity 0.8 shares one with probability 1 - 10^-7."""
MAX_ALIKE = 16
"""Documents that stand for a group whose members resemble each other."""
MAX_READ = 4
"""Candidates whose shingles are compared."""
DOUBT = 0.15
"""What a signature may be wrong by: more than three times its standard error of 0.044."""
MAX_WORDS = 200_000
"""Of a text that are all compared, and of candidates that are read: a book has half as many."""
SAMPLED = 8
"""Of more words, about one in so many."""
_SEED = 42


class ExactDuplicates:
    """Remembers the fingerprints of all texts shown so far; 16 bytes each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_repeated(self, text: str) -> bool:
        """Whether the same words are remembered."""
        return _fingerprint(text) in self._seen

    def remember(self, text: str) -> None:
        """Have the words of a text that is kept."""
        self._seen.add(_fingerprint(text))


def _fingerprint(text: str) -> bytes:
    words = " ".join(text.lower().replace("\u200b", "").split())
    return hashlib.sha256(words.encode()).digest()[:16]


@dataclass(frozen=True)
class Compared:
    """A text among those that are remembered.

    Attributes:
        original: the number of an earlier document nearly equal to it; None when there is none.
        signature: its MinHash.
        candidates: how many documents it resembles.
    """

    original: int | None
    signature: Any
    candidates: int


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

    def compare(self, words: list[str]) -> Compared:
        """Look for an earlier document that is nearly equal."""
        found = shingles(words)
        signature = RMinHash(num_perm=PERMUTATIONS, seed=_SEED)
        signature.update(list(found))
        candidates = self._index.query(signature)
        left = MAX_WORDS
        for candidate in self._likeliest(_values(signature), candidates):
            other = self._words_of(candidate)
            if jaccard(found, shingles(other)) >= self._threshold:
                return Compared(candidate, signature, len(candidates))
            left -= len(other)
            if left <= 0:
                break
        return Compared(None, signature, len(candidates))

    def remember(self, number: int, compared: Compared) -> None:
        """Have a text that is kept, unless enough like it are remembered."""
        if compared.candidates < MAX_ALIKE:
            self._index.insert(number, compared.signature)
            self._values[number] = _values(compared.signature)

    def _likeliest(self, values: npt.NDArray[np.uint32], candidates: list[int]) -> list[int]:
        """The candidates that may be duplicates by their signatures, most alike first."""
        alike = sorted(
            (-float(np.mean(self._values[candidate] == values)), candidate)
            for candidate in candidates
        )
        least = self._threshold - DOUBT
        return [candidate for share, candidate in alike[:MAX_READ] if -share >= least]


def _values(signature: Any) -> npt.NDArray[np.uint32]:  # noqa: ANN401 - the library has no types
    return np.array(signature.digest(), np.uint32)


def shingles(words: list[str]) -> set[str]:
    """The 5-word sequences of a text, lower case; a shorter text is one shingle.

    Of a text of more than `MAX_WORDS` words those that begin with words that are chosen by their
    hash, so that two long texts are compared in the same places.
    """
    words = [word.lower() for word in words]
    if len(words) < SHINGLE:
        return {" ".join(words)}
    if len(words) <= MAX_WORDS:
        return set(map(" ".join, zip(*(words[i:] for i in range(SHINGLE)), strict=False)))
    chosen = {word for word in set(words) if zlib.crc32(word.encode()) % SAMPLED == 0}
    starts = (i for i in range(len(words) - SHINGLE + 1) if words[i] in chosen)
    return {" ".join(words[i : i + SHINGLE]) for i in starts} or {" ".join(words[:SHINGLE])}


def jaccard(one: set[str], other: set[str]) -> float:
    """Size of the intersection over size of the union (Jaccard 1901)."""
    common = len(one & other)
    union = len(one) + len(other) - common
    return common / union if union else 1.0
