"""Calls about one upload, without a server."""

from __future__ import annotations

from typing import Any

from appliance.client import part_upload
from appliance.core.errors import Unavailable


def test_what_several_calls_wait_for_is_said_once() -> None:
    said: list[str] = []
    connection: Any = object()
    calls = part_upload.UploadCalls(lambda: connection, said.append)
    fails = [True, True]

    def work(_: Any) -> int:
        if fails:
            fails.pop()
            raise Unavailable("the server starts")
        return 1

    def with_another(_: Any) -> int:
        if len(fails) == 2:
            return work(None)
        return calls._repeat(work)

    assert calls._repeat(with_another) == 1
    assert said == ["the server starts; trying again"]
    fails.append(True)
    calls._repeat(work)
    assert len(said) == 2
