"""From token ids to text, as they come: whole characters only, and stop texts never shown.

Rules kept here:
* whatever ids an engine answers with, their text is told and the answer goes on: bytes that are no
  character are shown as U+FFFD, and an id that the tokenizer does not have is no text and is not
  remembered;
* the pieces together are the text that the tokenizer makes of all ids at once;
* text that may be the beginning of a stop text is held back until it is or is not one;
* the state belongs to the answer, not to the replica: an answer that goes on elsewhere in the
  middle of a character or of a stop text reads as if nothing had happened;
* no exception from here carries text of an answer: the library's own does, and would take it into
  a log.

Pure. One `Detokenizer` for each answer, made by `appliance.gateway.pipeline`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import Protocol

from tokenizers import Tokenizer

from appliance.gateway.vocabulary import ControlToken

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_TAIL = 32
"""Ids at the end of a prompt among which the last word is looked for."""


def _byte_letters() -> dict[str, int]:
    """The letters that stand for bytes in byte-level vocabularies (GPT-2's `bytes_to_unicode`)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}


_LETTERS = _byte_letters()


class Decoding:
    """What is known of a tokenizer for turning ids into text; one for all answers of a model."""

    def __init__(self, tokenizer: Tokenizer, controls: Sequence[ControlToken] = ()) -> None:
        self._tokenizer = tokenizer
        self.byte_level = _is_byte_level(tokenizer)
        self._special = {
            identifier
            for identifier, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        # In the tokenizer they have names; here, their texts.
        shown = [control for control in controls if control.id not in self._special]
        self._texts = {control.id: control.text for control in shown}
        self._names = {control.id: control.name for control in shown}
        # Asked of the tokenizer once each; only ids that it has, so that an engine fills nothing.
        self._tokens: dict[int, str] = {}
        self._bytes: dict[int, bytes] = {}
        self._alone: dict[int, str] = {}

    def token(self, identifier: int) -> str | None:
        """The token of an id; None when it is never text: a special one, or none at all."""
        found = self._tokens.get(identifier)
        if found is None and identifier not in self._special:
            found = self._texts.get(identifier) or self._tokenizer.id_to_token(identifier)
            if found is not None:
                self._tokens[identifier] = found
        return found

    def bytes_of(self, identifier: int) -> bytes:
        """The bytes of an id of a byte-level tokenizer."""
        found = self._bytes.get(identifier)
        if found is None:
            token = self.token(identifier)
            if token is None:
                return b""
            found = self._bytes[identifier] = _bytes(token)
        return found

    def text_of(self, identifiers: Sequence[int]) -> str:
        """The text of ids, as the tokenizer writes them at the beginning of a text."""
        text: str = self._tokenizer.decode(identifiers, skip_special_tokens=True)
        for identifier in identifiers:
            if identifier in self._names:
                text = text.replace(self._names[identifier], self._texts[identifier])
        return text

    def alone(self, identifiers: Sequence[int]) -> str:
        """The same for what was shown last, which mostly is one id."""
        if len(identifiers) != 1:
            return self.text_of(identifiers)
        found = self._alone.get(identifiers[0])
        if found is None:
            found = self._alone[identifiers[0]] = self.text_of(identifiers)
        return found


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's decoder puts bytes together and does nothing else."""
    if tokenizer.decoder is None:
        return False
    state = json.loads(tokenizer.decoder.__getstate__())
    kinds = [part["type"] for part in state.get("decoders", [state])]
    return kinds[0] == "ByteLevel" and set(kinds) <= {"ByteLevel", "Fuse", "ByteFallback"}


def _bytes(token: str) -> bytes:
    try:
        return bytes(_LETTERS[letter] for letter in token)
    except KeyError:
        # An added token is written as it is.
        return token.encode()


class TextStream(Protocol):
    """Ids of one answer in, its text out."""

    def add(self, identifier: int) -> str:
        """The text that is certain with this id; empty while there is none."""

    def flush(self) -> str:
        """The rest, when no id follows."""


class _Bytes:
    """Text of a byte-level tokenizer: bytes in a row, whatever the tokens."""

    def __init__(self, decoding: Decoding) -> None:
        self._bytes_of = decoding.bytes_of
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def add(self, identifier: int) -> str:
        return self._decode(self._bytes_of(identifier))

    def flush(self) -> str:
        return self._decode(b"", final=True)


class _Words:
    """Text of any other tokenizer: that of the newest ids behind the last ones that were shown.

    Bytes that a vocabulary spells one by one (`<0x41>`) are a character, or none, only when the
    row of them has ended; until then they are held back.
    """

    def __init__(self, decoding: Decoding, context: Sequence[int]) -> None:
        self._decoding = decoding
        self._before = list(context)
        self._said = decoding.text_of(self._before) if self._before else ""
        self._held: list[int] = []

    def add(self, identifier: int) -> str:
        token = self._decoding.token(identifier)
        if token is None:
            return ""
        if _BYTE.fullmatch(token):
            self._held.append(identifier)
            return ""
        rest = self.flush() if self._held else ""
        self._held.append(identifier)
        return rest + self.flush()

    def flush(self) -> str:
        if not self._held:
            return ""
        text = self._decoding.text_of([*self._before, *self._held])[len(self._said) :]
        if text or not self._before:
            # What was shown last is what the next text is written behind.
            self._before, self._held = self._held, []
            self._said = self._decoding.alone(self._before)
        else:
            self._held.clear()
        return text


def context_of(decoding: Decoding, prompt: Sequence[int]) -> list[int]:
    """The last word of a prompt, which tells how its continuation is written: with a space, mostly.

    Empty when there is none near the end.
    """
    for identifier in reversed(prompt[-_TAIL:]):
        token = decoding.token(identifier)
        if token and not _BYTE.fullmatch(token):
            return [identifier]
    return []


def stream_of(decoding: Decoding, prompt: Sequence[int]) -> TextStream:
    """A stream for one answer to a prompt."""
    if decoding.byte_level:
        return _Bytes(decoding)
    return _Words(decoding, context_of(decoding, prompt))


class StopFinder:
    """Looks for stop texts in text that comes in pieces. The one that begins first ends it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop text ended it."""
        if not self._stops:
            return text, False
        held = self._held + text
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """What was held back: the answer is over, so no stop text follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class Detokenizer:
    """The text of one answer.

    Args:
        prompt: token ids the answer goes on from.
        stops: texts that end it.
    """

    def __init__(self, decoding: Decoding, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._stream = stream_of(decoding, prompt)
        self._finder = StopFinder(stops)
        self.stopped = False

    def add(self, tokens: Sequence[int]) -> str:
        """The text that can be shown after these tokens; `stopped` says that it is the last."""
        pieces: list[str] = []
        for token in tokens:
            text = self._stream.add(token)
            if not text:
                continue
            shown, self.stopped = self._finder.add(text)
            pieces.append(shown)
            if self.stopped:
                break
        return "".join(pieces)

    def flush(self) -> str:
        """What is left when the answer is over: a broken character is shown as one."""
        if self.stopped:
            return ""
        shown, self.stopped = self._finder.add(self._stream.flush())
        return shown if self.stopped else shown + self._finder.flush()
