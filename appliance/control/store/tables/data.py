"""What projects own: artifacts, their versions, keys and uploads; and the object store's queue."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from appliance.control.store.tables.state import metadata
from appliance.control.store.types import Moment

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

Index("ix_tombstone_project", tombstone.c.project, tombstone.c.delete_time)
