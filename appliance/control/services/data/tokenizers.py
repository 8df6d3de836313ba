"""Tokenizers: made by prepare jobs, shown here. Each has one version, so its name is the version's.

Called by `rpc.tokenizers`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select

from appliance.api.data.v1 import tokenizer_pb2, tombstone_pb2
from appliance.api.data.v1 import tokenizer_service_pb2 as rpc
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import check_project, timestamp
from appliance.control.services.data import artifact_rows
from appliance.control.services.data.deletions import Deletions
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading
from appliance.core import names
from appliance.core.names import Name


class Tokenizers:
    """Shows and deletes tokenizers."""

    def __init__(self, database: Database, deletions: Deletions) -> None:
        self._database = database
        self._deletions = deletions

    def get(self, caller: Caller, name: str) -> tokenizer_pb2.Tokenizer:
        """One tokenizer; NotFound while the job that makes it runs."""
        del caller  # the gate has decided
        with self._database.read() as state:
            row = artifact_rows.version_row(state, Name.parse(name, "tokenizer"))
            return _resource(state, row)

    def list(
        self, caller: Caller, request: rpc.ListTokenizersRequest
    ) -> rpc.ListTokenizersResponse:
        """One page of the complete tokenizers of a project, by id."""
        del caller
        project = Name.parse(request.parent, "project", field="parent").id
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        version = tables.artifact_version.c
        wanted = select(tables.artifact_version).where(
            version.project == project,
            version.kind == "tokenizer",
            version.state == artifact_rows.COMPLETE,
        )
        if after is not None:
            wanted = wanted.where(version.artifact > after[0])
        with self._database.read() as state:
            check_project(state, project)
            rows = state.all(wanted.order_by(version.artifact).limit(size + 1))
            page, token = paging.cut(rows, size, lambda row: (row.artifact,))
            return rpc.ListTokenizersResponse(
                tokenizers=[_resource(state, row) for row in page], next_page_token=token
            )

    def delete(self, caller: Caller, request: rpc.DeleteTokenizerRequest) -> tombstone_pb2.Deletion:
        """Delete one. Raises as `Deletions.delete_version`."""
        return self._deletions.delete_version(caller, request, "tokenizer")


def _resource(state: Reading, row: Row[Any]) -> tokenizer_pb2.Tokenizer:
    return tokenizer_pb2.Tokenizer(
        name=names.tokenizer(row.project, row.artifact),
        uid=row.uid,
        vocabulary_size=row.facts.get("vocabulary_size", 0),
        job=artifact_rows.job_name(state, row.job),
        job_uid=row.job or "",
        manifest_digest=row.manifest_digest,
        create_time=timestamp(row.complete_time),
    )
