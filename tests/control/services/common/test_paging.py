from __future__ import annotations

import base64

import pytest

from appliance.control.services.common import paging
from appliance.core.errors import InvalidInput


def test_sizes_have_a_default_and_a_limit() -> None:
    assert [paging.page_size(n) for n in (0, 1, 1000, 5000)] == [50, 1, 1000, 1000]
    with pytest.raises(InvalidInput) as refused:
        paging.page_size(-1)
    assert refused.value.fields == {"page_size": "must not be negative"}


def test_pages_follow_each_other_without_a_gap() -> None:
    rows = [("a", 1), ("b", 2), ("c", 3)]
    seen: list[tuple[str, int]] = []
    token = ""
    while True:
        after = paging.key_of(token, str, int)
        left = [row for row in rows if after is None or row > after]
        page, token = paging.cut(left[:3], 2, lambda row: row)
        seen += page
        if not token:
            break
    assert seen == rows


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "é",
        "A" * 2000,
        base64.urlsafe_b64encode(b'["a"]').decode(),
        base64.urlsafe_b64encode(b'["a",true]').decode(),
        base64.urlsafe_b64encode(b'{"a":1}').decode(),
        base64.urlsafe_b64encode(b"[" * 700).decode(),
        base64.urlsafe_b64encode(b'["\\ud800",1]').decode(),
        paging.token_of(("a", 1 << 70)),
    ],
)
def test_a_forged_token_is_one_clear_error(token: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        paging.key_of(token, str, int)
    assert refused.value.fields == {"page_token": "not a token of this list"}
