"""What a caller wrote, as a template sees it: a text whose marks are veiled.

The first and last characters of control tokens (`<` and `>`, mostly) are replaced in it by others
that nobody wrote, so that nothing in it, nor anything put together from it and from what stands
beside it, is a control token. Its length stays, and what a template looks for in it (`</think>`) is
veiled the same way first, so that it is found.

Called by `appliance.gateway.renderer`; pure.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self

# Methods of a text that are given others, to look for or to put in.
_LOOKING = (
    *("count", "endswith", "find", "index", "lstrip", "partition", "removeprefix", "removesuffix"),
    *("replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines"),
    *("startswith", "strip", "lower", "upper"),
)


class VeiledText(str):
    """A veiled text.

    Args:
        text: veiled already.
        veil: letter -> what stands for it.
    """

    __slots__ = ("_veil",)
    _veil: Mapping[int, str]

    def __new__(cls, text: str, veil: Mapping[str, str]) -> Self:
        """A text and what hides in it."""
        made = super().__new__(cls, text)
        made._veil = {ord(letter): hidden for letter, hidden in veil.items()}
        return made

    def _hidden(self, other: object) -> Any:  # noqa: ANN401 - what it was, veiled if it was a text
        if isinstance(other, str):
            return str.translate(other, self._veil)
        return tuple(map(self._hidden, other)) if isinstance(other, tuple) else other

    def _kept(self, found: object) -> Any:  # noqa: ANN401 - what it was, as content if it was text
        if isinstance(found, str):
            made = super().__new__(type(self), found)
            made._veil = self._veil
            return made
        if isinstance(found, (list, tuple)):
            return type(found)(map(self._kept, found))
        return found

    def __str__(self) -> str:
        """Itself: it stays what it is when a filter asks for text."""
        return self

    def __contains__(self, part: object) -> bool:
        """Whether a text is in it."""
        return super().__contains__(self._hidden(part))

    def __eq__(self, other: object) -> bool:
        """Whether it is that text."""
        return bool(super().__eq__(self._hidden(other)))

    def __ne__(self, other: object) -> bool:
        """Whether it is another."""
        return not self == other

    __hash__ = str.__hash__

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - an index or a slice
        """A part of it."""
        return self._kept(super().__getitem__(key))


def _looking(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def looking(self: VeiledText, *others: object) -> Any:  # noqa: ANN401 - as the method
        return self._kept(method(self, *map(self._hidden, others)))

    return looking


for _name in _LOOKING:
    setattr(VeiledText, _name, _looking(getattr(str, _name)))
