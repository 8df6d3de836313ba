"""Decide whether a text is worth learning from: rules with names, after Gopher and C4.

Sources: Rae et al. 2021 (Gopher, table A1) for word length, symbols, alphabetic words and
repetition; Raffel et al. 2020 (C4) for placeholder text. Thresholds are loosened where technical
documentation, which is full of symbols, would fall to rules made for web pages.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

_WORD = re.compile(r"\S+")
MINIMUM_WORD_LENGTH = 2.5
MAXIMUM_WORD_LENGTH = 14.0
MINIMUM_ALPHABETIC = 0.5
MAXIMUM_SYMBOLS = 0.35
MAXIMUM_DUPLICATE_LINES = 0.4
MAXIMUM_TOP_BIGRAM = 0.25
_FEW_LINES = 8


def fault(text: str, minimum_characters: int) -> str | None:
    """The name of the first rule the text breaks; None for a good text."""
    if len(text) < minimum_characters:
        return "too_short"
    if "lorem ipsum" in text.lower():
        return "placeholder_text"
    words = _WORD.findall(text)
    length = sum(map(len, words)) / len(words)
    if not MINIMUM_WORD_LENGTH <= length <= MAXIMUM_WORD_LENGTH:
        return "unusual_word_length"
    if sum(any(c.isalpha() for c in word) for word in words) < MINIMUM_ALPHABETIC * len(words):
        return "few_words_with_letters"
    solid = sum(map(len, words))
    if sum(not c.isalnum() for word in words for c in word) > MAXIMUM_SYMBOLS * solid:
        return "many_symbols"
    return _repetition(text, words)


def _repetition(text: str, words: list[str]) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > _FEW_LINES:
        repeated = len(lines) - len(set(lines))
        if repeated > MAXIMUM_DUPLICATE_LINES * len(lines):
            return "repeated_lines"
    pairs = Counter(pairwise(words))
    if pairs:
        (first, second), count = pairs.most_common(1)[0]
        share = count * (len(first) + len(second)) / sum(map(len, words))
        if count > 2 and share > MAXIMUM_TOP_BIGRAM:
            return "repeated_phrase"
    return None
