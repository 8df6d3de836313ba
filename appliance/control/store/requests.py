"""A repeated request gets the first answer.

Rules kept here: the answer is stored in the transaction of the effect, so there is either both or
neither; the same request id with other contents is an error, not a second effect; an id belongs to
one principal and one method; answers are kept for a day, and of one principal the newest
`MAX_ANSWERS` alone.

Called by the services behind every RPC that has a `request_id`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, insert, or_, select

from appliance.control.store.database import Reading, Transaction
from appliance.control.store.tables import request
from appliance.core.errors import InvalidInput

KEPT = timedelta(days=1)
MAX_ANSWERS = 10_000
"""Of one principal; more than that are repeated within the seconds that a client waits."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_id(request_id: str) -> str:
    """Return a request id that is empty or a UUID in its usual form; InvalidInput otherwise."""
    lowered = request_id.lower()
    if lowered and _UUID.fullmatch(lowered) is None:
        wrong = "must be a UUID such as 123e4567-e89b-42d3-a456-426614174000, or empty"
        raise InvalidInput(f"request_id: {wrong}", fields={"request_id": wrong})
    return lowered


def answered(  # noqa: PLR0913 - what a row is found by
    state: Reading, *, principal: str, method: str, request_id: str, payload: bytes, now: datetime
) -> bytes | None:
    """The stored answer of an earlier call, or None when there was none or `request_id` is empty.

    Args:
        state: the transaction of the effect that would follow.
        principal: subject of the caller.
        method: full name of the RPC.
        request_id: as the caller sent it.
        payload: the deterministic serialisation of the request.
        now: the moment; what is over is no answer any more, swept or not.

    Raises:
        InvalidInput: the id was used for a request with other contents.
    """
    request_id = check_id(request_id)
    if not request_id:
        return None
    row = state.first(
        select(request.c.payload_digest, request.c.response, over(now).label("over")).where(
            request.c.principal == principal,
            request.c.method == method,
            request.c.request_id == request_id,
        )
    )
    if row is None or row.over:
        return None
    if row.payload_digest != hashlib.sha256(payload).digest():
        wrong = "was used for a different request; choose a new one"
        raise InvalidInput(f"request_id: {wrong}", fields={"request_id": wrong})
    return bytes(row.response)


def remember(  # noqa: PLR0913 - the columns of one row
    transaction: Transaction,
    *,
    principal: str,
    method: str,
    request_id: str,
    payload: bytes,
    response: bytes,
    now: datetime,
) -> None:
    """Store the answer in the transaction of the effect; nothing when `request_id` is empty."""
    request_id = check_id(request_id)
    if request_id:
        # What is over may not have been swept yet: `answered` found nothing else.
        transaction.run(
            insert(request)
            .prefix_with("OR REPLACE")
            .values(
                principal=principal,
                method=method,
                request_id=request_id,
                payload_digest=hashlib.sha256(payload).digest(),
                response=response,
                create_time=now,
            )
        )


def forget_about(transaction: Transaction, name: str) -> None:
    """Forget the answers that are a resource of this name, or one below it: it is deleted.

    A repeat would say that it is there, also of another one that has its name by then. They are
    found in the answer itself: field 1 of each resource is its name. What a deletion answered is
    kept: a repeat of it must not delete the next one.
    """
    field = b"\x0a" + _varint(len(name)) + name.encode()
    exactly = func.instr(request.c.response, field) == 1
    # Of one below it, the field has another length, in one byte or two.
    below = func.instr(request.c.response, f"{name}/".encode()).in_((3, 4))
    tagged = func.substr(request.c.response, 1, 1) == b"\x0a"
    deletes = request.c.method.like("%Delete%")
    transaction.run(delete(request).where(or_(exactly, below & tagged), ~deletes))


def _varint(number: int) -> bytes:
    """A small number as protobuf writes it."""
    low, high = number & 0x7F, number >> 7
    return bytes([low]) if not high else bytes([low | 0x80, high])


def over(now: datetime) -> ColumnElement[bool]:
    """Which answers are older than a day, or of a clock that was ahead."""
    made = request.c.create_time
    return or_(made < now - KEPT, made > now + KEPT)


def crowded(state: Reading) -> list[str]:
    """Principals that have more answers than are kept."""
    rows = state.all(
        select(request.c.principal).group_by(request.c.principal).having(func.count() > MAX_ANSWERS)
    )
    return [row.principal for row in rows]


def forget_crowded(transaction: Transaction, principals: Iterable[str]) -> None:
    """Keep the newest answers of these principals."""
    for principal in principals:
        mine = request.c.principal == principal
        newest = select(request.c.create_time).where(mine)
        newest = newest.order_by(request.c.create_time.desc()).offset(MAX_ANSWERS).limit(1)
        oldest = transaction.value(newest)
        if oldest is not None:
            transaction.run(delete(request).where(mine, request.c.create_time <= oldest))
