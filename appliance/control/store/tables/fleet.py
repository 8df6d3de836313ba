"""Servers and what answers on them: endpoints, replicas, nodes, gateways."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
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

# `goal`: RUNNING | STOPPED | DELETED. `generation` rises with each change of what its replicas are
# (`model_version` and the limits); `next_replica` is the number of the next one: none comes twice.
endpoint = Table(
    "endpoint",
    metadata,
    Column("uid", Text, primary_key=True),
    Column("project", Text, ForeignKey("project.id"), nullable=False),
    Column("id", Text, nullable=False),
    Column("model_version", Text, ForeignKey("artifact_version.uid"), nullable=False),
    Column("replicas", Integer, nullable=False),
    Column("tensor_parallel", Integer, nullable=False),
    Column("max_sequence_length", Integer, nullable=False),
    Column("cache_bytes", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("creator", Text, nullable=False),
    Column("create_time", Moment, nullable=False),
    Column("revision", BigInteger, nullable=False, default=1),
    Column("goal", Text, nullable=False, default="RUNNING", server_default=text("'RUNNING'")),
    Column("generation", BigInteger, nullable=False, default=1, server_default=text("1")),
    Column("next_replica", BigInteger, nullable=False, default=0, server_default=text("0")),
    Column("allow_downtime", Boolean, nullable=False, default=False, server_default=false()),
    UniqueConstraint("project", "id"),
)

# `placement` is one entry as in `job`, empty while the replica waits for devices. A replica is what
# its endpoint was when it was added: of that `generation`, with that `model_version` and those
# limits. `state_time`: since when it is in its state. `ready_time`: when it was ready last.
replica = Table(
    "replica",
    metadata,
    Column("endpoint", Text, ForeignKey("endpoint.uid", ondelete="CASCADE"), primary_key=True),
    Column("id", Text, primary_key=True),
    Column("node", Text, ForeignKey("node.id"), nullable=True, index=True),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("epoch", BigInteger, nullable=False, default=0),
    Column("placement", JSON, nullable=False, default=dict),
    Column("address", Text, nullable=False, default=""),
    Column("restarts", Integer, nullable=False, default=0),
    Column("start_time", Moment, nullable=True),
    Column("ready_time", Moment, nullable=True),
    Column("state_time", Moment, nullable=True),
    Column("generation", BigInteger, nullable=False, default=1, server_default=text("1")),
    Column("model_version", Text, ForeignKey("artifact_version.uid"), nullable=True),
    Column("tensor_parallel", Integer, nullable=False, default=1, server_default=text("1")),
    Column("max_sequence_length", Integer, nullable=False, default=0, server_default=text("0")),
    Column("cache_bytes", BigInteger, nullable=False, default=0, server_default=text("0")),
)

# `state`: READY | LOST | EVICTED. `facts`: devices, device_kind, memory_bytes, address,
# agent_version, lacks (kind of work -> what it lacks for it, "" for nothing; null when it does not
# say). `certificate_used`: the newest certificate has been shown; from then on the one before is
# only in the hands of who has copied it. `draining` implies `cordoned`; `cordon_*`, `cordoned_by`
# and `drain_grace_seconds` are of who said so last, and mean nothing while it is not cordoned.
node = Table(
    "node",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("facts", JSON, nullable=False, default=dict),
    Column("certificate_serial", Text, nullable=False, default=""),
    Column("previous_serial", Text, nullable=False, default=""),
    Column("certificate_used", Boolean, nullable=False, default=False, server_default=false()),
    Column("certificate_expire_time", Moment, nullable=True),
    Column("create_time", Moment, nullable=False),
    Column("seen_time", Moment, nullable=True),
    Column("cordoned", Boolean, nullable=False, default=False, server_default=false()),
    Column("draining", Boolean, nullable=False, default=False, server_default=false()),
    Column("cordon_reason", Text, nullable=False, default="", server_default=text("''")),
    Column("cordoned_by", Text, nullable=False, default="", server_default=text("''")),
    Column("cordon_time", Moment, nullable=True),
    Column("drain_grace_seconds", Integer, nullable=False, default=0, server_default=text("0")),
)

# `state`: READY | EVICTED. `certificate_*` and `previous_serial` are about its identity, as of a
# node. `hosts` are DNS names and addresses that its callers use; none: those that the control plane
# announces. `front_expire_time` is of the newest certificate with them.
gateway = Table(
    "gateway",
    metadata,
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("hosts", JSON, nullable=False, default=list, server_default=text("'[]'")),
    Column("certificate_serial", Text, nullable=False, default=""),
    Column("previous_serial", Text, nullable=False, default="", server_default=text("''")),
    Column("certificate_used", Boolean, nullable=False, default=False, server_default=false()),
    Column("certificate_expire_time", Moment, nullable=True),
    Column("front_expire_time", Moment, nullable=True),
    Column("create_time", Moment, nullable=False),
)

# Which numbers of one boot of a gateway are in the audit log, as ranges, as of the first
# `meta.usage_noted` records; a start reads there what came after. `closed`: it has no more.
usage_boot = Table(
    "usage_boot",
    metadata,
    Column("gateway", Text, primary_key=True),
    Column("boot", Text, primary_key=True),
    Column("recorded", JSON, nullable=False),
    Column("closed", Boolean, nullable=False, default=False, server_default=false()),
    Column("time", Moment, nullable=False),
)

# `kind`: node | gateway; `machine` is the id of the one that may join; `hosts` are a gateway's.
join_token = Table(
    "join_token",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False, default="node", server_default=text("'node'")),
    Column("machine", Text, nullable=False),
    Column("hosts", JSON, nullable=False, default=list, server_default=text("'[]'")),
    Column("digest", LargeBinary, nullable=False),
    Column("creator", Text, nullable=False),
    Column("create_time", Moment, nullable=False),
    Column("expire_time", Moment, nullable=False),
    Column("used_time", Moment, nullable=True),
)
