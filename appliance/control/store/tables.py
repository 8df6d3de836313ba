"""Every table of the control plane's state.

Rules kept here:
* these tables are the truth for people, roles, keys, artifacts, jobs, endpoints and nodes; whatever
  is kept in memory is made from them;
* types are portable (SQLite now, PostgreSQL possible): text, whole numbers, booleans, bytes, JSON
  and `Moment`;
* nothing here is a secret in clear: passwords are Argon2id hashes, tokens and recovery codes are
  keyed digests, TOTP secrets and data keys are sealed under the keyring, output of jobs under the
  key of its project;
* a `revision` counts the changes of a row, for whoever compares two copies of the state; etags are
  made of what callers can change (`services.common.updates`).

Called by `appliance.control.store`, `auth` and `services`. The migrations create exactly this.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
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

# `kind`: dataset | tokenizer | model | report | checkpoints. `id` of checkpoints is the job's uid.
# `origin` is the uid of the job or of the first version that it came to be with, and goes with when
# nothing comes of that; null for what a person has created. `deleted_number` is the highest number
# of its versions that were deleted: no other version gets that one while the artifact is there.
artifact = Table(
    "artifact",
    metadata,
    Column("project", Text, ForeignKey("project.id"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("description", Text, nullable=False, default=""),
    Column("creator", Text, nullable=False),
    Column("origin", Text, nullable=True),
    Column("create_time", Moment, nullable=False),
    Column("deleted_number", Integer, nullable=False, default=0, server_default=text("0")),
)

# `state`: pending | complete. `uid` is the folder and the object identity bound into the
# ciphertext. Its data key is in `version_key`, under version `key_version` of the project's key.
# `kind` is the resource that it is a version of; what it holds, `facts` say
# (`core.artifact_kinds`). `job` is a job's uid, `slot` which of its outputs this is, `inputs`
# resource names, and `input_uids` what they named, one for each. `statement` is signed and says how
# it was made (`appliance.crypto.statements`); empty of what 0.1.0 has registered.
artifact_version = Table(
    "artifact_version",
    metadata,
    Column("uid", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("artifact", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("key_version", Integer, nullable=False),
    Column("folder", Text, nullable=False),
    Column("manifest_digest", Text, nullable=False, default=""),
    Column("facts", JSON, nullable=False, default=dict),
    Column("statement", Text, nullable=False, default="", server_default=text("''")),
    Column("size_bytes", BigInteger, nullable=False, default=0),
    Column("creator", Text, nullable=False),
    Column("job", Text, nullable=True, index=True),
    Column("slot", Text, nullable=False, default="", server_default=text("''")),
    Column("inputs", JSON, nullable=False, default=list),
    Column("create_time", Moment, nullable=False),
    Column("complete_time", Moment, nullable=True),
    Column("input_uids", JSON, nullable=False, default=list, server_default=text("'[]'")),
    ForeignKeyConstraint(
        ["project", "kind", "artifact"], ["artifact.project", "artifact.kind", "artifact.id"]
    ),
    ForeignKeyConstraint(
        ["project", "key_version"], ["project_key.project", "project_key.version"]
    ),
    UniqueConstraint("project", "kind", "artifact", "number"),
)

# The data keys of versions, apart from them: what is deleted here is in no file afterwards.
version_key = Table(
    "version_key",
    metadata,
    Column(
        "version", Text, ForeignKey("artifact_version.uid", ondelete="CASCADE"), primary_key=True
    ),
    Column("wrapped_key", LargeBinary, nullable=False),
)

# What is left of a version that was deleted: `name` is the one it had; the other columns are as in
# `artifact_version`, `job_name` is the name of its job then. `erase_time`: its key is in no file of
# the data directory any more; `purge_time`: its bytes are gone from the object store.
tombstone = Table(
    "tombstone",
    metadata,
    Column("uid", Text, primary_key=True),
    Column("project", Text, ForeignKey("project.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("manifest_digest", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("statement", Text, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("input_uids", JSON, nullable=False),
    Column("job", Text, nullable=True),
    Column("job_name", Text, nullable=False),
    Column("creator", Text, nullable=False),
    Column("create_time", Moment, nullable=False),
    Column("delete_time", Moment, nullable=False),
    Column("deleter", Text, nullable=False),
    Column("erase_time", Moment, nullable=True),
    Column("purge_time", Moment, nullable=True),
)

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

# What is still to be done with the object store. `kind` and what `subject` and `details` are: see
# `services.data.storage_tasks`. `attempts` counts failures, `message` says why the last one failed.
# `lock_token` is of whoever does it now.
storage_task = Table(
    "storage_task",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False, index=True),
    Column("details", JSON, nullable=False, default=dict),
    Column("attempts", Integer, nullable=False, default=0),
    Column("message", Text, nullable=False, default=""),
    Column("due_time", Moment, nullable=False),
    Column("lock_token", Text, nullable=True),
    Column("lock_expire_time", Moment, nullable=True),
    Column("create_time", Moment, nullable=False),
)

# What is on its way in, part by part. `state`: OPEN | COMMITTING | COMMITTED | FAILED. `principal`
# is the subject of who began it, `version` the uid of the pending version, under whose key the
# parts are sealed, `version_name` its name once it is complete. `files` is [[name, bytes], ...] of
# a model, whose parts lie in `folder` until then; those of a dataset lie in the version's folder.
# `digest` is over all parts, as the commit names them. `grant_*` are of the token for this upload;
# `grant_session` is the session or token with which that was made.
upload = Table(
    "upload",
    metadata,
    Column("uid", Text, primary_key=True),
    Column("project", Text, ForeignKey("project.id"), nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("artifact", Text, nullable=False),
    Column("principal", Text, nullable=False, index=True),
    Column("creator", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("version", Text, nullable=False, index=True),
    Column("version_name", Text, nullable=False, default=""),
    Column("folder", Text, nullable=False, default=""),
    Column("files", JSON, nullable=False, default=list),
    Column("parts", BigInteger, nullable=False, default=0),
    Column("documents", BigInteger, nullable=False, default=0),
    Column("size_bytes", BigInteger, nullable=False, default=0),
    Column("digest", Text, nullable=False, default=""),
    Column("message", Text, nullable=False, default=""),
    Column("create_time", Moment, nullable=False),
    Column("expire_time", Moment, nullable=False),
    Column("grant_id", Text, nullable=True, unique=True),
    Column("grant_digest", LargeBinary, nullable=True),
    Column("grant_session", Text, nullable=True),
)

# A part that is there, sealed and durable. `digest` and `size_bytes` are of what was sent; the rest
# is its entry in the manifest of the folder it lies in.
upload_part = Table(
    "upload_part",
    metadata,
    Column("upload", Text, ForeignKey("upload.uid", ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("documents", BigInteger, nullable=False),
    Column("file", Text, nullable=False),
    Column("plain_size", BigInteger, nullable=False),
    Column("sealed_size", BigInteger, nullable=False),
    Column("tag", Text, nullable=False),
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

Index("ix_tombstone_project", tombstone.c.project, tombstone.c.delete_time)
Index("ix_session_expire_time", session.c.expire_time)
Index("ix_request_create_time", request.c.create_time)
