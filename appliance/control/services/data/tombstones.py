"""Tombstones: what is left of a version that was deleted, so that lineage goes on to resolve.

Rules kept here: a tombstone is made in the transaction that deletes the version; it holds nothing
of its content, and no key; what was signed of the version is kept as it is, and verified when it is
shown. It goes with its project.

Called by `services.data.deletions` and `rpc.tombstones`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, select

from appliance.api.data.v1 import tombstone_pb2
from appliance.api.data.v1 import tombstone_service_pb2 as rpc
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import check_project, missing, timestamp
from appliance.control.services.data import artifact_rows
from appliance.control.store import tables
from appliance.control.store.database import Database, Transaction
from appliance.control.store.types import EPOCH, MICROSECOND
from appliance.core import names
from appliance.core.names import Name
from appliance.crypto import statements
from appliance.crypto.signing import VerifyKey

_tombstone = tables.tombstone.c
_MAX_MICROSECONDS = 1 << 57


class Tombstones:
    """Shows tombstones.

    Args:
        database: the state.
        key: verifies what was signed of versions.
    """

    def __init__(self, database: Database, key: VerifyKey) -> None:
        self._database = database
        self._key = key

    def get(self, caller: Caller, name: str) -> tombstone_pb2.Tombstone:
        """One tombstone. Raises Tampered when what was signed is about something else."""
        del caller  # the gate has decided
        parsed = Name.parse(name, "tombstone")
        this = _tombstone.project == parsed.project, _tombstone.uid == parsed.id
        with self._database.read() as state:
            row = state.first(select(tables.tombstone).where(*this))
        if row is None:
            raise missing(name)
        if row.statement:
            statements.verify(self._key, row.statement, row.name, row.manifest_digest)
        found = _resource(row)
        found.statement = row.statement
        return found

    def list(
        self, caller: Caller, request: rpc.ListTombstonesRequest
    ) -> rpc.ListTombstonesResponse:
        """One page of the tombstones of a project, what was deleted last first."""
        del caller
        project = Name.parse(request.parent, "project", field="parent").id
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, int, str)
        wanted = select(tables.tombstone).where(_tombstone.project == project)
        if after is not None:
            time, uid = _moment(int(after[0])), str(after[1])
            same = (_tombstone.delete_time == time) & (_tombstone.uid > uid)
            wanted = wanted.where((_tombstone.delete_time < time) | same)
        ordered = wanted.order_by(_tombstone.delete_time.desc(), _tombstone.uid)
        with self._database.read() as state:
            check_project(state, project)
            rows = state.all(ordered.limit(size + 1))
        page, token = paging.cut(rows, size, _key_of)
        return rpc.ListTombstonesResponse(
            tombstones=[_resource(row) for row in page], next_page_token=token
        )


def make(transaction: Transaction, rows: Iterable[Row[Any]], deleter: str, now: datetime) -> None:
    """A tombstone for each of these complete versions, which are about to be deleted.

    Args:
        transaction: that deletes them.
        rows: of the versions.
        deleter: who deletes them.
        now: aware time.
    """
    for row in rows:
        transaction.run(
            insert(tables.tombstone).values(
                uid=row.uid,
                project=row.project,
                kind=row.kind,
                name=artifact_rows.version_name(row.project, row.kind, row.artifact, row.number),
                manifest_digest=row.manifest_digest,
                size_bytes=row.size_bytes,
                statement=row.statement,
                inputs=row.inputs,
                input_uids=row.input_uids,
                job=row.job,
                job_name=artifact_rows.job_name(transaction, row.job),
                creator=row.creator,
                create_time=row.complete_time or row.create_time,
                delete_time=now,
                deleter=deleter,
            )
        )


def _key_of(row: Row[Any]) -> tuple[int, str]:
    return (row.delete_time - EPOCH) // MICROSECOND, row.uid


def _moment(microseconds: int) -> datetime:
    if not 0 <= microseconds <= _MAX_MICROSECONDS:
        raise paging.wrong_token()
    return EPOCH + microseconds * MICROSECOND


def _resource(row: Row[Any]) -> tombstone_pb2.Tombstone:
    return tombstone_pb2.Tombstone(
        name=names.tombstone(row.project, row.uid),
        deleted=row.name,
        uid=row.uid,
        manifest_digest=row.manifest_digest,
        size_bytes=row.size_bytes,
        inputs=row.inputs,
        input_uids=row.input_uids,
        job=row.job_name,
        job_uid=row.job or "",
        creator=row.creator,
        create_time=timestamp(row.create_time),
        delete_time=timestamp(row.delete_time),
        deleter=row.deleter,
        erase_time=timestamp(row.erase_time),
        purge_time=timestamp(row.purge_time),
    )
