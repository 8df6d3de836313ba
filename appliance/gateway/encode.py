"""From text to token ids without stopping anybody else, and no further than a context reaches.

The tokenizer lets go of the interpreter only where it is asked for a batch, and takes seconds for a
long text. Rules kept here:
* a text that is too long for a context whatever its tokens are is refused before it is tokenized;
* any other is tokenized piece by piece, and is refused at the first piece that is too much;
* the tokens of the pieces are those of the whole: a text is cut only where no token can reach over
  the cut (`appliance.gateway.vocabulary`), which is tried on the text around each cut; where there
  is no such place, a piece is longer.

The attack: long prompts, to stop the answers of others. Called by `appliance.gateway.tokenize`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tokenizers import Tokenizer

from appliance.core.errors import ContextExceeded, InvalidInput
from appliance.gateway.vocabulary import Vocabulary, without_beginning

PIECE = 32_768
_AROUND = 64
_TRIES = 16


class Encoder:
    """Makes token ids.

    Args:
        piece: characters after which a text is cut, where it may be.

    Raises whatever the library raises for a tokenizer that it cannot read.
    """

    def __init__(self, vocabulary: Vocabulary, *, piece: int = PIECE) -> None:
        self._piece = piece
        self.tokenizer = _tokenizer(json.dumps(vocabulary.document))
        # Only the first piece begins a text.
        self._rest = (
            _tokenizer(json.dumps(without_beginning(vocabulary.document)))
            if vocabulary.cuts and vocabulary.beginning
            else self.tokenizer
        )
        self._before, self._after = _around(self.tokenizer)
        self._longest = vocabulary.longest
        self._cut = re.compile(rf"(?<=[^\W\d_])[{vocabulary.cuts}]") if vocabulary.cuts else None

    def encode(self, text: str, most: int, *, special: bool) -> list[int]:
        """Token ids of a text.

        Args:
            text: of any length.
            most: tokens that prompt and answer may have together.
            special: put tokens around it as the tokenizer does with a text that stands alone.

        Raises:
            ContextExceeded: there are as many or more.
            InvalidInput: the text is not valid Unicode.
        """
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidInput("the text is not valid Unicode") from error
        if self._longest is not None and size > most * self._longest:
            raise ContextExceeded(
                f"the prompt has {size} bytes, but prompt and answer together may have {most} "
                f"tokens, which are {most * self._longest} bytes at most: send a shorter one",
                fields={"prompt": f"has {size} bytes, more than {most} tokens can hold"},
                max_sequence_length=most,
            )
        ids: list[int] = []
        tokenizer = self.tokenizer
        for piece, last in self._pieces(text):
            encoding = tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0]
            if len(ids) + len(encoding) >= most:
                raise too_long(len(ids) + len(encoding), most, whole=last)
            ids += encoding.ids
            tokenizer = self._rest
        return [*self._before, *ids, *self._after] if special else ids

    def _pieces(self, text: str) -> Iterator[tuple[str, bool]]:
        """The text in pieces, each with whether it is the last."""
        start = 0
        while len(text) - start > 2 * self._piece and (end := self._end(text, start + self._piece)):
            yield text[start:end], False
            start = end
        yield text[start:], True

    def _end(self, text: str, at: int) -> int:
        """Where to cut a text, at some place or a little later; 0: nowhere."""
        if self._cut is None:
            return 0
        for _ in range(_TRIES):
            found = self._cut.search(text, at, len(text) - _AROUND)
            if found is None:
                return 0
            if self._holds(text, found.start()):
                return found.start()
            at = found.end()
        return 0

    def _holds(self, text: str, at: int) -> bool:
        """Whether the tokens on both sides of a cut are those without it."""
        left, right = text[max(0, at - _AROUND) : at], text[at : at + _AROUND]
        parts = self._rest.encode_batch_fast([left, right, left + right], add_special_tokens=False)
        return list(parts[0].ids) + list(parts[1].ids) == list(parts[2].ids)


def too_long(tokens: int, most: int, *, whole: bool) -> ContextExceeded:
    """The error for a prompt of so many tokens, or of more when that is not the whole."""
    number = f"{tokens}" if whole else f"more than {tokens - 1}"
    return ContextExceeded(
        f"the prompt has {number} tokens, but prompt and answer together may have {most}: "
        "send a shorter one",
        fields={"prompt": f"has {number} tokens of at most {most - 1}"},
        max_sequence_length=most,
    )


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and behind a text that stands alone."""
    inner = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(inner) + 1):
        end = start + len(inner)
        if whole[start:end] == inner:
            return whole[:start], whole[end:]
    return [], []


def _tokenizer(document: str) -> Tokenizer:
    made = Tokenizer.from_str(document)
    made.no_truncation()
    made.no_padding()
    return made
