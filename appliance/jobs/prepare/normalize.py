"""Bring text into one form, so that the same words are the same bytes.

Unicode NFC (UAX #15), one kind of line end, no control or invisible formatting characters, no
trailing spaces, at most two line ends in a row. Compatibility forms (NFKC) are left alone: they
carry meaning in code and mathematics.
"""

from __future__ import annotations

import re
import unicodedata

# C0 and C1 controls but tab and line feed, the replacement mark of broken UTF-8, byte order marks,
# zero-width and bidirectional formatting characters, lone surrogates.
_UNWANTED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufeff\u200b-\u200f\u202a-\u202e\u2060-\u2069"
    "\ud800-\udfff]"
)
_LINE_END = re.compile("\r\n?|\u2028|\u2029")
_TRAILING = re.compile(r"[ \t\u00a0]+$", re.MULTILINE)
_BLANK_RUN = re.compile(r"\n{3,}")


def normalize(text: str) -> str:
    """Return the text in its one form; doing it again changes nothing."""
    text = _LINE_END.sub("\n", text)
    text = _UNWANTED.sub("", text)
    text = unicodedata.normalize("NFC", text)
    text = _TRAILING.sub("", text)
    return _BLANK_RUN.sub("\n\n", text).strip()
