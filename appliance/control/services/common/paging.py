"""Pages of lists: sizes, and tokens that say where the page before ended.

Rules kept here:
* a page continues after a key, not after a count, so rows that come and go in between neither
  repeat nor hide others;
* a token holds no more than the last key the caller has seen: it is readable, it grants nothing,
  and a forged one only starts the list elsewhere (the caller's permission is checked on each page).

Used by every List method.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from appliance.core import strict_json
from appliance.core.errors import InvalidInput

DEFAULT_SIZE = 50
MAX_SIZE = 1000
_MAX_TOKEN = 1024

Key = tuple[str | int, ...]
Row = TypeVar("Row")


def page_size(requested: int) -> int:
    """Rows on a page: 50 if zero, never more than 1000. InvalidInput if negative."""
    if requested < 0:
        raise InvalidInput(
            "page_size: must not be negative", fields={"page_size": "must not be negative"}
        )
    return min(requested or DEFAULT_SIZE, MAX_SIZE)


def token_of(key: Key) -> str:
    """The token of the page that starts after `key`."""
    text = json.dumps(list(key), separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def key_of(token: str, *kinds: type[str | int]) -> Key | None:
    """The key in a token, None for the first page.

    Args:
        token: `page_token` of the request.
        kinds: type of each part of the list's key.

    Raises:
        InvalidInput: it is not a token of this list.
    """
    if not token:
        return None
    if len(token) > _MAX_TOKEN or not token.isascii():
        raise wrong_token()
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        parts = strict_json.read_value("page_token", raw)
    except (binascii.Error, ValueError, InvalidInput) as error:
        raise wrong_token() from error
    if not isinstance(parts, list) or [type(part) for part in parts] != list(kinds):
        raise wrong_token()
    if any(isinstance(part, int) and abs(part) >= 1 << 63 for part in parts):
        raise wrong_token()
    return tuple(parts)


def wrong_token() -> InvalidInput:
    """The error for a token that is none of the list, also where only the list can tell."""
    return InvalidInput(
        "page_token: not a token of this list: pass `next_page_token` of the page before",
        fields={"page_token": "not a token of this list"},
    )


def cut(rows: Sequence[Row], size: int, key: Callable[[Row], Key]) -> tuple[list[Row], str]:
    """One page of `rows`, of which one more than `size` was read, and the next page's token."""
    page = list(rows[:size])
    return page, token_of(key(page[-1])) if len(rows) > size else ""
