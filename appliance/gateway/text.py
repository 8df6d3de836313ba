"""From token ids to text, as they come: whole characters only, and stop texts never shown.

Rules kept here:
* a character whose bytes come in several tokens is shown when it is whole;
* text that may be the beginning of a stop text is held back until it is or is not one;
* the state belongs to the answer, not to the replica: an answer that goes on elsewhere in the
  middle of a character or of a stop text reads as if nothing had happened.

Pure. One `Detokenizer` for each answer, made by `appliance.gateway.pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_TAILS = range(5, 13)


def context_of(tokenizer: Tokenizer, prompt: Sequence[int]) -> list[int]:
    """The end of a prompt that tells how its continuation is written (a leading space, mostly).

    Empty when it has no end that is whole characters.
    """
    for length in _TAILS:
        tail = list(prompt[-length:])
        if _BROKEN not in tokenizer.decode(tail, skip_special_tokens=True):
            return tail
    return []


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

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=context_of(tokenizer, prompt), skip_special_tokens=True)
        self._finder = StopFinder(stops)
        self._unshown: list[int] = []
        self.stopped = False

    def add(self, tokens: Sequence[int]) -> str:
        """The text that can be shown after these tokens; `stopped` says that it is the last."""
        pieces: list[str] = []
        for token in tokens:
            text = self._stream.step(self._tokenizer, token)
            if text is None:
                self._unshown.append(token)
                continue
            self._unshown.clear()
            shown, self.stopped = self._finder.add(text)
            pieces.append(shown)
            if self.stopped:
                break
        return "".join(pieces)

    def flush(self) -> str:
        """What is left when the answer is over: a broken character is shown as one."""
        if self.stopped:
            return ""
        rest = self._tokenizer.decode(self._unshown, skip_special_tokens=True)
        self._unshown.clear()
        shown, self.stopped = self._finder.add(rest)
        return shown + self._finder.flush()
