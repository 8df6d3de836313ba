"""Decide whether a text is worth learning from: rules with names, after Gopher and C4.

Sources: Rae et al. 2021 (Gopher, table A1) for word length, symbols, alphabetic words and
repetition; Raffel et al. 2020 (C4) for placeholder text. Thresholds are loosened where technical
documentation, which is full of symbols, would fall to rules made for web pages, and where other
languages than English would: words of Greenlandic have 15 letters on average, those of Korean and
Amharic two or three, and the length of a word says nothing where none are set apart.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from appliance.jobs.prepare.scripts import Writing

MAX_WORDS = 200_000
MINIMUM_WORD_LENGTH = 2.5
SHORT_WORDS = {"Hangul": 1.5, "Ethiopic": 1.5, "Vai": 1.5}
"""Scripts whose letters are syllables have shorter words: the least average length."""
MAXIMUM_WORD_LENGTH = 20.0
MINIMUM_ALPHABETIC = 0.5
MAXIMUM_SYMBOLS = 0.35
MAXIMUM_DUPLICATE_LINES = 0.4
MAXIMUM_TOP_BIGRAM = 0.25
_FEW_LINES = 8


def fault(text: str, words: list[str], writing: Writing, minimum_characters: int) -> str | None:
    """The name of the first rule the text breaks; None for a good text.

    Args:
        text: normalized.
        words: of the text; the first `MAX_WORDS` are judged.
        writing: of the text.
        minimum_characters: shorter texts are none.
    """
    if len(text) < minimum_characters:
        return "too_short"
    if "lorem ipsum" in text.lower():
        return "placeholder_text"
    words = words[:MAX_WORDS]
    if writing.spaced and _unusual(words, writing):
        return "unusual_word_length"
    if sum(map(_has_letter, words)) < MINIMUM_ALPHABETIC * len(words):
        return "few_words_with_letters"
    if writing.symbols > MAXIMUM_SYMBOLS * writing.solid:
        return "many_symbols"
    return _repetition(text, words)


def _unusual(words: list[str], writing: Writing) -> bool:
    """Whether the words that are set apart are too short or too long on average."""
    apart = [word for word in words if word[0] not in writing.unsegmented]
    least = SHORT_WORDS.get(writing.main, MINIMUM_WORD_LENGTH)
    return bool(apart) and not least <= sum(map(len, apart)) / len(apart) <= MAXIMUM_WORD_LENGTH


def _repetition(text: str, words: list[str]) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > _FEW_LINES:
        repeated = len(lines) - len(set(lines))
        if repeated > MAXIMUM_DUPLICATE_LINES * len(lines):
            return "repeated_lines"
    counts = Counter(words)
    whole = sum(map(len, words))
    # A pair has at most twice the share of its word that has more: most texts end here.
    if max(count * len(word) for word, count in counts.items()) * 2 <= MAXIMUM_TOP_BIGRAM * whole:
        return None
    pairs = Counter(pairwise(words))
    if pairs:
        (first, second), count = pairs.most_common(1)[0]
        share = count * (len(first) + len(second)) / whole
        if count > 2 and share > MAXIMUM_TOP_BIGRAM:
            return "repeated_phrase"
    return None


def _has_letter(word: str) -> bool:
    return word.isalpha() or any(c.isalpha() for c in word)
