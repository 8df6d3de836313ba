"""Column types that mean the same on SQLite and on PostgreSQL.

Rule kept here: a moment is an aware UTC `datetime` in Python and a whole number of microseconds
since 1970 in the database, so that comparing, sorting and adding work in SQL and no time zone is
ever lost.

Called by `appliance.control.store.tables`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import BigInteger, Dialect
from sqlalchemy.types import TypeDecorator

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class Moment(TypeDecorator[datetime]):
    """An aware `datetime`; stored as microseconds since 1970 UTC."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Python to database; a naive `datetime` is a bug and raises TypeError."""
        del dialect
        return None if value is None else (value - EPOCH) // MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """Database to Python."""
        del dialect
        return None if value is None else EPOCH + value * MICROSECOND
