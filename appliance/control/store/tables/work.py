"""Jobs: what they are, what they save, and what happened to them."""

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
    text,
)

from appliance.control.store.tables.state import metadata
from appliance.control.store.types import Moment

# `spec` is the proto JSON of the member `kind` of the job's oneof. `placement` is a list of
# {"node", "rank_base", "devices", "memory_bytes", "port", "ended"}, `outputs` slot -> uid of the
# artifact version. When a lease ends is kept in memory alone: a control plane that starts gives
# every holder a whole lease to come back in. `pause` is {"by", "grace_seconds"} while somebody's
# order to pause stands, `pauses` how often in a row the object store was full, `on_lost` the proto
# JSON of the job's OnLost. `inputs` binds what it reads: resource name -> uid of the version, or
# `{job's uid}/{id}` of a checkpoint, as they were when it was accepted.
job = Table(
    "job",
    metadata,
    Column("uid", Text, primary_key=True),
    Column("project", Text, ForeignKey("project.id"), nullable=False),
    Column("id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("reason", Text, nullable=False, default=""),
    Column("message", Text, nullable=False, default=""),
    Column("epoch", BigInteger, nullable=False, default=0),
    Column("placement", JSON, nullable=False, default=list),
    Column("progress", JSON, nullable=False, default=dict),
    Column("restarts", Integer, nullable=False, default=0),
    Column("outputs", JSON, nullable=False, default=dict),
    Column("result", JSON, nullable=False, default=dict),
    Column("failures", Integer, nullable=False, default=0),
    Column("retry_time", Moment),
    Column("pause", JSON, nullable=False, default=dict, server_default=text("'{}'")),
    Column("pauses", Integer, nullable=False, default=0, server_default=text("0")),
    Column("on_lost", JSON, nullable=False, default=dict, server_default=text("'{}'")),
    Column("creator", Text, nullable=False),
    Column("create_time", Moment, nullable=False),
    Column("start_time", Moment, nullable=True),
    Column("end_time", Moment, nullable=True),
    Column("revision", BigInteger, nullable=False, default=1),
    Column("inputs", JSON, nullable=False, default=dict, server_default=text("'{}'")),
    UniqueConstraint("project", "id"),
)

# A checkpoint of a job that was seen to be complete. `epoch` is of the start that saved it, 0 for
# one of release 0.1.0. `state`: COMPLETE | DELETING. The key is that of the version of kind
# `checkpoints` of this job.
checkpoint = Table(
    "checkpoint",
    metadata,
    Column("job", Text, ForeignKey("job.uid", ondelete="CASCADE"), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("create_time", Moment, nullable=False),
)

job_metric = Table(
    "job_metric",
    metadata,
    Column("job", Text, ForeignKey("job.uid", ondelete="CASCADE"), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("values", JSON, nullable=False),
)

# What happened to a job. `number` counts its events; where some were left out it jumps. `kind` is
# that of the proto's JobEvent without its prefix. `shares` is as in `placement` of the job, of a
# start; `outputs` are resource names.
job_event = Table(
    "job_event",
    metadata,
    Column("job", Text, ForeignKey("job.uid", ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("actor", Text, nullable=False, default=""),
    Column("message", Text, nullable=False, default=""),
    Column("shares", JSON, nullable=False, default=list),
    Column("checkpoint_step", BigInteger, nullable=False, default=0),
    Column("outputs", JSON, nullable=False, default=list),
    Column("create_time", Moment, nullable=False),
)

# A job that was deleted, for the lineage of what it made: versions name their job by its uid.
deleted_job = Table(
    "deleted_job",
    metadata,
    Column("uid", Text, primary_key=True),
    Column("project", Text, ForeignKey("project.id", ondelete="CASCADE"), nullable=False),
    Column("id", Text, nullable=False),
    Column("delete_time", Moment, nullable=False),
)

# The last output of the ranks of a job's newest start that did not succeed, one row for each of its
# nodes. `sealed_text` is sealed under version `key_version` of the project's key; null until the
# node has sent it.
job_log = Table(
    "job_log",
    metadata,
    Column("job", Text, ForeignKey("job.uid", ondelete="CASCADE"), primary_key=True),
    Column("node", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("rank_base", Integer, nullable=False),
    Column("key_version", Integer, nullable=True),
    Column("sealed_text", LargeBinary, nullable=True),
    Column("cut", Boolean, nullable=False, default=False),
    Column("create_time", Moment, nullable=False),
    Column("receive_time", Moment, nullable=True),
)
