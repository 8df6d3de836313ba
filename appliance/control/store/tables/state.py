"""The state as a whole: its head, the MACs of its rows, answers of calls that may be repeated."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

from appliance.control.store.types import Moment

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row. `generation` rises with every committed write, `policy_version` with every change of who
# may do what; `audit_size` and `audit_root` are the audit log's head at the last commit, so that an
# older copy of the log is noticed. `row_columns` says which columns of which table the MACs of rows
# cover, `row_macs` is a MAC for each of these tables, in the order of their names.
meta = Table(
    "meta",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="one_row"), primary_key=True),
    Column("cluster_id", Text, nullable=False),
    Column("generation", BigInteger, nullable=False, default=0),
    Column("policy_version", BigInteger, nullable=False, default=1),
    Column("audit_size", BigInteger, nullable=False, default=0),
    Column("audit_root", LargeBinary, nullable=True),
    Column("create_time", Moment, nullable=False),
    Column("usage_noted", BigInteger, nullable=False, default=0, server_default=text("0")),
    Column("row_columns", JSON, nullable=True),
    Column("row_macs", LargeBinary, nullable=True),
)

# The tag of each row that is believed only with one, by the name of the row: see `row_macs`.
row_mac = Table(
    "row_mac",
    metadata,
    Column("row", Text, primary_key=True),
    Column("mac", LargeBinary, nullable=False),
)

# Answers of calls that carried a request id, so that a repeat gets the same answer.
request = Table(
    "request",
    metadata,
    Column("principal", Text, primary_key=True),
    Column("method", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("payload_digest", LargeBinary, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("create_time", Moment, nullable=False),
)

Index("ix_request_create_time", request.c.create_time)
