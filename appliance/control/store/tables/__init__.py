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

from appliance.control.store.tables.data import (
    artifact,
    artifact_version,
    storage_task,
    tombstone,
    upload,
    upload_part,
    version_key,
)
from appliance.control.store.tables.fleet import (
    endpoint,
    gateway,
    join_token,
    node,
    replica,
    usage_boot,
)
from appliance.control.store.tables.people import (
    attempt,
    binding,
    device,
    project,
    project_key,
    recovery_code,
    service_account,
    session,
    token,
    totp,
    user,
)
from appliance.control.store.tables.state import (
    meta,
    metadata,
    request,
    row_mac,
)
from appliance.control.store.tables.work import (
    checkpoint,
    deleted_job,
    job,
    job_event,
    job_log,
    job_metric,
)

__all__ = [
    "artifact",
    "artifact_version",
    "attempt",
    "binding",
    "checkpoint",
    "deleted_job",
    "device",
    "endpoint",
    "gateway",
    "job",
    "job_event",
    "job_log",
    "job_metric",
    "join_token",
    "meta",
    "metadata",
    "node",
    "project",
    "project_key",
    "recovery_code",
    "replica",
    "request",
    "row_mac",
    "service_account",
    "session",
    "storage_task",
    "token",
    "tombstone",
    "totp",
    "upload",
    "upload_part",
    "usage_boot",
    "user",
    "version_key",
]
