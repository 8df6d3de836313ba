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

MOST_MARKS = 30
"""Combining marks in a row, as in the stream-safe format of UAX #15; no language writes more."""

_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
# Control characters but tab and line feed, the replacement mark of broken UTF-8, byte order marks,
# soft hyphens, spaces without width, direction marks, invisible operators, annotations, tags.
_UNWANTED = (
    (0x00, 0x08),
    (0x0E, 0x1B),
    (0x1F, 0x1F),
    (0x7F, 0x84),
    (0x86, 0x9F),
    (0xAD, 0xAD),
    (0x061C, 0x061C),
    (0x200B, 0x200B),
    (0x200E, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFD),
    (0xE0000, 0xE007F),
)
_FORM: dict[int, str | None] = {ord(end): "\n" for end in _LINE_ENDS}
_FORM |= {code: None for first, last in _UNWANTED for code in range(first, last + 1)}

_SPACES = " \t\u00a0"
_JOINERS = "\u200c\u200d"
# Scripts whose letters change their shape beside a joiner, with the marks that they share with
# others, and emoji with what modifies them.
_JOINED = re2.compile(
    r"[\p{Arabic}\p{Syriac}\p{Mandaic}\p{Nko}\p{Mongolian}\p{Devanagari}\p{Bengali}\p{Gurmukhi}"
    r"\p{Gujarati}\p{Oriya}\p{Tamil}\p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Khmer}"
    r"\p{Myanmar}\p{Tibetan}\p{Balinese}\x{0610}-\x{061A}\x{064B}-\x{065F}\x{0670}"
    r"\x{2190}-\x{21FF}\x{2600}-\x{27BF}\x{2B00}-\x{2BFF}\x{FE0F}\x{1F000}-\x{1FAFF}]"
)
_MARKS = re2.compile(rf"(\p{{M}}{{{MOST_MARKS}}})\p{{M}}+")
_BLANK_RUN = re2.compile(r"\n{3,}")


def normalize(text: str) -> str:
    """Return the text in its one form; doing it again changes nothing."""
    text = _whole(text).replace("\r\n", "\n").replace("\r", "\n")
    text = _joiners(text.translate(_FORM))
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


def _joiners(text: str) -> str:
    """One joiner in each place where it shapes letters or emoji, none elsewhere."""
    for joiner in _JOINERS:
        if joiner in text:
            text = _joined(text, joiner)
    return text


def _joined(text: str, joiner: str) -> str:
    first, *others = text.split(joiner)
    pieces, last = [first], first[-1:]
    for piece in others:
        if piece:
            if _shaped(last) and _shaped(piece[0]):
                pieces.append(joiner)
            pieces.append(piece)
            last = piece[-1]
    return "".join(pieces)


@lru_cache(maxsize=1 << 16)
def _shaped(character: str) -> bool:
    return _JOINED.fullmatch(character) is not None
