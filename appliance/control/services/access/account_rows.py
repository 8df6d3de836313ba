"""Rows of applications and of their tokens: find and show them.

Called by the services of applications and of their tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select

from appliance.api.access.v1 import service_account_pb2
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core import names
from appliance.core.names import Name

Token = service_account_pb2.Token
_token = tables.token.c
_account = tables.service_account.c


def account_row(state: Reading, name: str) -> Row[Any]:
    """The row of an application. Raises InvalidInput, NotFound."""
    identifier = Name.parse(name, "serviceAccount").id
    row = state.first(tables.service_account.select().where(_account.id == identifier))
    if row is None:
        raise missing(name)
    return row


def live_tokens(state: Reading, accounts: Iterable[str], now: datetime) -> dict[str, list[Token]]:
    """The live tokens of applications, by application, oldest first."""
    wanted = (
        select(tables.token)
        .where(_token.service_account.in_(accounts), _token.expire_time > now)
        .order_by(_token.create_time, _token.id)
    )
    rows = state.all(wanted)
    replaced = {row.replaces: row.id for row in rows if row.replaces}
    found: defaultdict[str, list[Token]] = defaultdict(list)
    for row in rows:
        found[row.service_account].append(token_resource(row, replaced.get(row.id, "")))
    return found


def token_resource(row: Row[Any], replaced_by: str) -> Token:
    """What is stored about a token."""
    return Token(
        id=row.id,
        service_account=names.service_account(row.service_account),
        create_time=timestamp(row.create_time),
        expire_time=timestamp(row.expire_time),
        use_time=timestamp(row.use_time),
        creator=row.creator,
        replaces=row.replaces,
        replaced_by=replaced_by,
    )
