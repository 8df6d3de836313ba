"""Walk a list page by page, whatever its noun."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.client.connection import Connection

PAGE_SIZE = 200


def all_pages(connection: Connection, method: Any, request: Any, field: str) -> Iterator[Any]:
    """Yield every resource of a list.

    Args:
        connection: where to ask.
        method: a List method of a stub.
        request: its request; `page_size` and `page_token` are set here.
        field: name of the repeated field in its response.
    """
    request.page_size = request.page_size or PAGE_SIZE
    while True:
        response = connection.call(method, request)
        yield from getattr(response, field)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token
