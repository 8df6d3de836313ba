"""What a text is written in: its letters by script, and its words.

Letters are what Unicode calls letters and combining marks: without its vowel signs and tones no
text of India or South-East Asia is read. Counted once for each different character, so that a long
text costs little more than a look at each of its characters.

Scripts are the property of UAX #24, for those that texts are written in today.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import re2

UNSEGMENTED = frozenset(
    {
        "Balinese",
        "Bopomofo",
        "Buginese",
        "Cham",
        "Han",
        "Hiragana",
        "Javanese",
        "Katakana",
        "Khmer",
        "Lao",
        "Myanmar",
        "New_Tai_Lue",
        "Sundanese",
        "Tai_Le",
        "Tai_Tham",
        "Tai_Viet",
        "Thai",
        "Tibetan",
        "Yi",
    }
)
"""Scripts without spaces between words: each of their letters counts as a word."""
SEGMENTED = (
    "Latin",
    "Cyrillic",
    "Greek",
    "Arabic",
    "Hebrew",
    "Hangul",
    "Devanagari",
    "Bengali",
    "Gurmukhi",
    "Gujarati",
    "Oriya",
    "Tamil",
    "Telugu",
    "Kannada",
    "Malayalam",
    "Sinhala",
    "Armenian",
    "Georgian",
    "Ethiopic",
    "Mongolian",
    "Cherokee",
    "Canadian_Aboriginal",
    "Thaana",
    "Nko",
    "Adlam",
    "Vai",
    "Tifinagh",
    "Ol_Chiki",
    "Meetei_Mayek",
    "Syriac",
    "Osage",
)
"""Scripts with spaces between words."""
_SCRIPTS = (*SEGMENTED, *sorted(UNSEGMENTED))
OTHER = "Other"
ETHIOPIC_SPACE = "\u1361"
_DIVIDERS = dict.fromkeys((0x200B, *range(0x1361, 0x1369)), " ")
"""Between words, where no blank is: spaces without width, and the points of Ethiopic."""
NONE = "None"
"""The script of a text without letters."""
_RUN = re2.compile("|".join(rf"(\p{{{script}}}+)" for script in _SCRIPTS))


def by_script(letters: Iterable[str]) -> dict[str, str]:
    """Letters by their script; those of all scripts and of rare ones are of `OTHER`."""
    found: dict[str, list[str]] = {}
    # In their order, the letters of a script lie together.
    ordered = "".join(sorted(letters))
    start = 0
    for run in _RUN.finditer(ordered):
        first, end = run.span()
        if start < first:
            found.setdefault(OTHER, []).append(ordered[start:first])
        found.setdefault(_SCRIPTS[run.lastindex - 1], []).append(ordered[first:end])
        start = end
    if start < len(ordered):
        found.setdefault(OTHER, []).append(ordered[start:])
    return {script: "".join(runs) for script, runs in found.items()}


@dataclass(frozen=True)
class Writing:
    """What a text is made of.

    Attributes:
        letters: letters and combining marks by script; marks of all scripts are `OTHER`.
        solid: characters that are no space.
        symbols: of them, those that are no letter, mark or number.
        unsegmented: letters of the text that are words by themselves.
    """

    letters: Counter[str]
    solid: int
    symbols: int
    unsegmented: frozenset[str]

    @property
    def main(self) -> str:
        """The script of most of the letters."""
        ours = Counter({script: n for script, n in self.letters.items() if script != OTHER})
        most = (ours or self.letters).most_common(1)
        return most[0][0] if most else NONE

    @property
    def spaced(self) -> bool:
        """Whether most of its words have spaces between them."""
        without = sum(count for script, count in self.letters.items() if script in UNSEGMENTED)
        return 2 * without < sum(self.letters.values())


def writing_of(text: str) -> Writing:
    """Count the characters of a normalized text."""
    counts = Counter(text)
    letters: list[str] = []
    solid = symbols = 0
    for character, count in counts.items():
        kind = unicodedata.category(character)
        # Blanks, and what controls are left in a normalized text: tabs, ends of lines, joiners.
        if kind[0] == "Z" or kind in {"Cc", "Cf"} or character == ETHIOPIC_SPACE:
            continue
        solid += count
        if kind[0] in "LM":
            letters.append(character)
        elif kind[0] != "N":
            symbols += count
    scripts = by_script(letters)
    return Writing(
        letters=Counter({name: sum(map(counts.__getitem__, of)) for name, of in scripts.items()}),
        solid=solid,
        symbols=symbols,
        unsegmented=frozenset(
            letter
            for script in UNSEGMENTED & scripts.keys()
            for letter in scripts[script]
            if letter.isalpha()
        ),
    )


def words_of(text: str, writing: Writing) -> list[str]:
    """The words of a text: what stands between spaces, and each letter of a script without them."""
    if writing.unsegmented or "Ethiopic" in writing.letters:
        alone = {ord(letter): f" {letter}" for letter in writing.unsegmented}
        text = text.translate(alone | _DIVIDERS)
    return text.split()
