"""Who may do what: people, their log-ins, projects, applications, and who holds which role."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from appliance.control.store.tables.state import metadata
from appliance.control.store.types import Moment

user = Table(
    "user",
    metadata,
    Column("id", Text, primary_key=True),
    Column("password_hash", Text, nullable=False),
    Column("locked", Boolean, nullable=False, default=False, server_default=false()),
    Column("create_time", Moment, nullable=False),
    Column("must_change", Boolean, nullable=False, default=False, server_default=false()),
    Column("description", Text, nullable=False, default="", server_default=text("''")),
)

# Failed proofs in a row. `account` is what they are counted for: `user:<id>` for all unknown
# devices together, `device:<id>`, `recovery:<user>` for who holds an unused recovery code, or
# `unknown:<n>`, a bucket shared by many names that nobody has.
attempt = Table(
    "attempt",
    metadata,
    Column("account", Text, primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("next_time", Moment, nullable=False),
)

totp = Table(
    "totp",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user", Text, ForeignKey("user.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("sealed_secret", LargeBinary, nullable=False),
    Column("confirmed", Boolean, nullable=False),
    Column("last_timecode", BigInteger, nullable=True),
    Column("create_time", Moment, nullable=False),
    Column("used_timecodes", JSON, nullable=False, default=list, server_default=text("'[]'")),
)

recovery_code = Table(
    "recovery_code",
    metadata,
    Column("user", Text, ForeignKey("user.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
)

# A device on which a user has logged in; it shows a token of which this is the digest.
device = Table(
    "device",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user", Text, ForeignKey("user.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False),
    Column("create_time", Moment, nullable=False),
    Column("expire_time", Moment, nullable=False),
    Column("seen_time", Moment, nullable=False),
)

# `step`: VERIFY_TOTP | ENROLL_TOTP | CHANGE_PASSWORD | COMPLETE. `failures`: wrong codes and
# passwords in a row in this session. `counter`: the row of `attempt` that its log-in counted in.
session = Table(
    "session",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user", Text, ForeignKey("user.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False),
    Column("step", Text, nullable=False),
    Column("create_time", Moment, nullable=False),
    Column("expire_time", Moment, nullable=False),
    Column("seen_time", Moment, nullable=False),
    Column("mfa_time", Moment, nullable=True),
    Column("source", Text, nullable=False),
    Column("failures", Integer, nullable=False, default=0, server_default=text("0")),
    Column("counter", Text, nullable=False, default="", server_default=text("''")),
)

project = Table(
    "project",
    metadata,
    Column("id", Text, primary_key=True),
    Column("description", Text, nullable=False),
    Column("create_time", Moment, nullable=False),
    Column("allow_downloads", Boolean, nullable=False, default=False, server_default=false()),
)

# The project's key-encryption key, wrapped by the keyring's master key. The highest version wraps
# new data keys. How `wrapped_key` is stored, here and in `version_key`: `services.common.keys`.
project_key = Table(
    "project_key",
    metadata,
    Column("project", Text, ForeignKey("project.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("create_time", Moment, nullable=False),
)

service_account = Table(
    "service_account",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, ForeignKey("project.id"), nullable=False, index=True),
    Column("locked", Boolean, nullable=False, default=False, server_default=false()),
    Column("create_time", Moment, nullable=False),
    Column("description", Text, nullable=False, default="", server_default=text("''")),
)

# Bearer tokens of service accounts. `use_time`: when it was last used, to the hour. `replaces`: id
# of the token in whose place it was made.
token = Table(
    "token",
    metadata,
    Column("id", Text, primary_key=True),
    Column(
        "service_account",
        Text,
        ForeignKey("service_account.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("digest", LargeBinary, nullable=False),
    Column("create_time", Moment, nullable=False),
    Column("expire_time", Moment, nullable=False),
    Column("creator", Text, nullable=False, default="", server_default=text("''")),
    Column("use_time", Moment, nullable=True),
    Column("replaces", Text, nullable=False, default="", server_default=text("''")),
)

# Who holds which role where. `subject` as in the policy (`user:alice`, `svc:app`), `domain` a
# project id or `*`.
binding = Table(
    "binding",
    metadata,
    Column("id", Text, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("domain", Text, nullable=False, index=True),
    Column("creator", Text, nullable=False),
    Column("create_time", Moment, nullable=False),
    UniqueConstraint("subject", "role", "domain"),
)

Index("ix_session_expire_time", session.c.expire_time)
