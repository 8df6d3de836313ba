"""Bring text into one form, so that the same words are the same bytes.

Unicode NFC (UAX #15), one kind of line end, no control or invisible formatting characters, no
trailing spaces, at most two line ends in a row. Compatibility forms (NFKC) are left alone: they
carry meaning in code and mathematics. What takes time that grows with the text alone: a run of
marks is bounded, because bringing one into order takes the square of its length.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import re2

from appliance.jobs.prepare.scripts import UNSEGMENTED

MAX_MARKS = 30
"""Combining marks in a row, as in the stream-safe format of UAX #15; no language writes more."""

_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
# Control characters but tab and line feed, the replacement mark of broken UTF-8, byte order marks,
# soft hyphens, direction marks, invisible operators, annotations, tags.
_UNWANTED = (
    (0x00, 0x08),
    (0x0E, 0x1B),
    (0x7F, 0x84),
    (0x86, 0x9F),
    (0xAD, 0xAD),
    (0x061C, 0x061C),
    (0x200E, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFD),
    (0xE0000, 0xE007F),
)
_FORM: dict[int, str | None] = {ord(end): "\n" for end in _LINE_ENDS}
_FORM |= {code: None for first, last in _UNWANTED for code in range(first, last + 1)}
_FORM[0x1F] = " "
"""The separator of units."""

_SPACES = " \t\u00a0"
_JOINERS, _WORD_BREAK = "\u200c\u200d", "\u200b"
# Scripts whose letters change their shape beside a joiner, also at the end of a word.
_SHAPED = re2.compile(
    r"[\p{Arabic}\p{Syriac}\p{Mandaic}\p{Nko}\p{Mongolian}\p{Devanagari}\p{Bengali}\p{Gurmukhi}"
    r"\p{Gujarati}\p{Oriya}\p{Tamil}\p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Khmer}"
    r"\p{Myanmar}\p{Tibetan}\p{Balinese}]"
)
_EMOJI = re2.compile(r"[\x{2190}-\x{21FF}\x{2600}-\x{27BF}\x{2B00}-\x{2BFF}\x{1F000}-\x{1FAFF}]")
_UNSPACED = re2.compile("[" + "".join(rf"\p{{{script}}}" for script in sorted(UNSEGMENTED)) + "]")
_MARKS = re2.compile(rf"(\p{{M}}{{{MAX_MARKS}}})\p{{M}}+")
_BLANK_RUN = re2.compile(r"\n{3,}")


def normalize(text: str) -> str:
    """Return the text in its one form; doing it again changes nothing."""
    text = _whole(text).replace("\r\n", "\n").replace("\r", "\n")
    text = _without_width(text.translate(_FORM))
    # Twice: some characters have several marks for one in this form.
    text = _few_marks(unicodedata.normalize("NFC", _few_marks(text)))
    text = "\n".join(line.rstrip(_SPACES) for line in text.split("\n"))
    return str(_BLANK_RUN.sub("\n\n", text)).strip()


def _whole(text: str) -> str:
    """The text without halves of surrogate pairs, which cannot be written down."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="ignore").decode()
    return text


def _few_marks(text: str) -> str:
    return str(_MARKS.sub(lambda found: found[1], text))


def _without_width(text: str) -> str:
    """One joiner behind each letter that it shapes, and between emoji; none elsewhere.

    Likewise one space without width where it divides words that have no other space between them.
    """
    for character in (*_JOINERS, _WORD_BREAK):
        if character in text:
            text = _kept_where_it_acts(text, character)
    return text


def _kept_where_it_acts(text: str, character: str) -> str:
    first, *others = text.split(character)
    pieces, last = [first], _base(first, "")
    for piece in others:
        if _acts(character, last, _base(piece[:1], "")) and pieces[-1] != character:
            pieces.append(character)
        if piece:
            pieces.append(piece)
            last = _base(piece, last)
    return "".join(pieces)


def _base(text: str, before: str) -> str:
    """The last character of a text that is no combining mark; `before` when there is none.

    Marks say nothing of a script that they do not share with others, some are cut later, and they
    may change places.
    """
    for character in reversed(text):
        if not unicodedata.category(character).startswith("M"):
            return character
    return before


@lru_cache(maxsize=1 << 16)
def _acts(character: str, before: str, behind: str) -> bool:
    if character == _WORD_BREAK:
        return bool(_UNSPACED.fullmatch(before) and _UNSPACED.fullmatch(behind))
    return bool(
        _SHAPED.fullmatch(before) or (_EMOJI.fullmatch(before) and _EMOJI.fullmatch(behind))
    )
