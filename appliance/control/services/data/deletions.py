"""What holds data is deleted: a dataset, a model, one version, a tokenizer, a report.

Rules kept here:
* what is in use is not deleted, and the refusal names each user (`services.data.uses`);
* a dataset or a model goes with all its versions, or not at all; with an `etag` it goes as it was
  seen, and what has come since stays;
* row, key and answers of repeated calls go in one transaction, with the order to do the rest
  (`services.data.erasing`), and a tombstone stays for each version;
* the audit log says first which versions go, by uid and digest.

Called by the services of datasets, models, tokenizers and reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Protocol

from google.protobuf.message import Message
from sqlalchemy import Row, case, delete, select, update

from appliance.api.data.v1 import tombstone_pb2
from appliance.control.audit.record import MAX_MEMBERS
from appliance.control.audit.system import Records
from appliance.control.auth.policy import PolicyStore
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.updates import check_etag
from appliance.control.services.data import artifact_rows, tombstones, upload_rows, uses
from appliance.control.services.data.artifact_rows import COMPLETE, of_artifact
from appliance.control.services.data.artifacts import Artifacts
from appliance.control.store import requests, tables
from appliance.control.store.database import Transaction
from appliance.core import names
from appliance.core.errors import FailedPrecondition
from appliance.core.names import Name
from appliance.core.numbers import written

MAX_VERSIONS = 1000
"""That go in one transaction, in which everybody else waits for it."""
MAX_NAMED = 100
_artifact = tables.artifact.c
_version = tables.artifact_version.c


class DeleteRequest(Protocol):
    """What each request for a deletion says."""

    name: str
    etag: str
    request_id: str
    validate_only: bool


class Deletions:
    """Deletes what holds data.

    Args:
        changes: for what has a request id.
        policies: the policy in force.
        artifacts: erases versions.
        records: the audit log.
        clock: the time, aware.
    """

    def __init__(
        self,
        changes: Changes,
        policies: PolicyStore,
        artifacts: Artifacts,
        records: Records,
        clock: Callable[[], datetime],
    ) -> None:
        self._changes = changes
        self._policies = policies
        self._artifacts = artifacts
        self._records = records
        self._clock = clock

    def delete_whole(self, caller: Caller, request: Message, kind: str) -> tombstone_pb2.Deletion:
        """Delete a dataset or a model with all its versions.

        Args:
            caller: who asks.
            request: a `DeleteRequest`.
            kind: of the name: `dataset` or `model`.

        Raises NotFound, Conflict, FailedPrecondition while it is in use.
        """
        asked: DeleteRequest = request  # type: ignore[assignment]  # every Delete request has these
        name = Name.parse(asked.name, kind)

        def work(transaction: Transaction) -> tombstone_pb2.Deletion:
            row = artifact_rows.artifact_row(transaction, name)
            etag = artifact_rows.etag(transaction, row)
            check_etag(asked.etag, etag, asked.name)
            complete = *of_artifact(row.project, row.kind, row.id), _version.state == COMPLETE
            versions = transaction.all(
                select(tables.artifact_version).where(*complete).order_by(_version.number.desc())
            )
            if len(versions) > MAX_VERSIONS:
                raise FailedPrecondition(
                    f"{name} has {written(len(versions))} versions, more than the "
                    f"{written(MAX_VERSIONS)} that go at once: delete some of them first"
                )
            used = chain(
                uses.of_versions(transaction, row.project, versions),
                uses.of_whole(transaction, name),
            )
            self._refuse(caller, name, used)
            self._delete(transaction, caller, asked, versions)
            this = _artifact.project == row.project, _artifact.kind == row.kind
            transaction.run(delete(tables.artifact).where(*this, _artifact.id == row.id))
            requests.forget_about(transaction, str(name))
            return _deletion(versions, etag)

        return self._changes.make(caller, request, tombstone_pb2.Deletion, work)

    def delete_version(self, caller: Caller, request: Message, kind: str) -> tombstone_pb2.Deletion:
        """Delete one version, or a tokenizer or report, which have one only.

        Args:
            caller: who asks.
            request: a `DeleteRequest`.
            kind: of the name, such as `modelVersion` or `report`.

        Raises NotFound, Conflict, FailedPrecondition while it is in use.
        """
        asked: DeleteRequest = request  # type: ignore[assignment]  # every Delete request has these
        name = Name.parse(asked.name, kind)

        def work(transaction: Transaction) -> tombstone_pb2.Deletion:
            row = artifact_rows.version_row(transaction, name)
            check_etag(asked.etag, row.uid, asked.name)
            used = uses.of_versions(transaction, row.project, [row])
            self._refuse(caller, name, used)
            self._delete(transaction, caller, asked, [row])
            requests.forget_about(transaction, str(name))
            return _deletion([row], row.uid)

        return self._changes.make(caller, request, tombstone_pb2.Deletion, work)

    def _refuse(self, caller: Caller, name: Name, used: Any) -> None:  # noqa: ANN401  # uses
        policy = self._policies.current()
        project = str(name.project)
        uses.refuse(str(name), used, lambda need: policy.allowed(caller.principal, project, need))

    def _delete(
        self,
        transaction: Transaction,
        caller: Caller,
        asked: DeleteRequest,
        rows: Sequence[Row[Any]],
    ) -> None:
        """Versions that nothing uses go, and leave tombstones."""
        tombstones.make(transaction, rows, caller.principal.name, self._clock())
        for row in rows:
            this = _artifact.project == row.project, _artifact.kind == row.kind
            higher = case(
                (_artifact.deleted_number < row.number, row.number), else_=_artifact.deleted_number
            )
            transaction.run(
                update(tables.artifact)
                .where(*this, _artifact.id == row.artifact)
                .values(deleted_number=higher)
            )
            # It would go on to name a version that another one has the name of by then.
            upload = tables.upload.c
            committed = upload.version == row.uid, upload.state == upload_rows.COMMITTED
            transaction.run(delete(tables.upload).where(*committed))
        self._artifacts.erase(transaction, [row.uid for row in rows])
        if asked.validate_only:
            return
        for first in range(0, len(rows), MAX_MEMBERS):
            part = {row.uid: row.manifest_digest for row in rows[first : first + MAX_MEMBERS]}
            by = caller.principal.name
            self._records.record("artifact.deleted", asked.name, versions=part, by=by)


def _deletion(rows: Sequence[Row[Any]], etag: str) -> tombstone_pb2.Deletion:
    return tombstone_pb2.Deletion(
        versions=len(rows),
        size_bytes=sum(row.size_bytes for row in rows),
        tombstones=[names.tombstone(row.project, row.uid) for row in rows[:MAX_NAMED]],
        etag=etag,
    )
