"""Reports: what jobs have found, shown here. Each has one version, so its name is the version's.

Rules kept here: what is shown was read through the verified reader, and checked for its shape
before it was registered; whoever may see a report may keep its files.

Called by `rpc.reports`.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

from google.protobuf import json_format
from sqlalchemy import Row, select

from appliance.api.data.v1 import download_pb2, tombstone_pb2
from appliance.api.reports.v1 import report_pb2
from appliance.api.reports.v1 import report_service_pb2 as rpc
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import check_project, timestamp
from appliance.control.services.data import artifact_rows
from appliance.control.services.data.artifacts import Artifacts
from appliance.control.services.data.deletions import Deletions
from appliance.control.services.data.downloads import each_second, pieces, start_of
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading
from appliance.core import names
from appliance.core.errors import NotFound, Tampered
from appliance.core.names import Name
from appliance.core.report_content import REPORT_FILE


class Reports:
    """Shows and deletes reports."""

    def __init__(self, database: Database, artifacts: Artifacts, deletions: Deletions) -> None:
        self._database = database
        self._artifacts = artifacts
        self._deletions = deletions

    def get(self, caller: Caller, name: str) -> report_pb2.Report:
        """One report with what it says; NotFound while the job that makes it runs.

        Blocking: reads the object store. Raises Tampered when it was changed.
        """
        del caller  # the gate has decided
        with self._database.read() as state:
            row = artifact_rows.version_row(state, Name.parse(name, "report"))
            found = _resource(state, row)
        content = self._artifacts.open(row).read_json(REPORT_FILE)
        try:
            json_format.ParseDict(content, found.content)
        except json_format.ParseError as error:
            raise Tampered(f"{name} cannot be read", object=row.uid) from error
        return found

    def list(self, caller: Caller, request: rpc.ListReportsRequest) -> rpc.ListReportsResponse:
        """One page of the complete reports of a project, by id."""
        del caller
        project = Name.parse(request.parent, "project", field="parent").id
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        version = tables.artifact_version.c
        wanted = select(tables.artifact_version).where(
            version.project == project,
            version.kind == "report",
            version.state == artifact_rows.COMPLETE,
        )
        if after is not None:
            wanted = wanted.where(version.artifact > after[0])
        with self._database.read() as state:
            check_project(state, project)
            rows = state.all(wanted.order_by(version.artifact).limit(size + 1))
            page, token = paging.cut(rows, size, lambda row: (row.artifact,))
            return rpc.ListReportsResponse(
                reports=[_resource(state, row) for row in page], next_page_token=token
            )

    def files(
        self, caller: Caller, request: rpc.DownloadReportRequest
    ) -> Generator[download_pb2.DownloadPart]:
        """The pieces of its files, each read when it is asked for."""
        name = Name.parse(request.name, "report")
        with self._database.read() as state:
            row = artifact_rows.version_row(state, name)
        there = partial(artifact_rows.check_there, self._database, name, row)
        try:
            reader = self._artifacts.open(row)
        except (NotFound, Tampered):
            there()
            raise
        look = each_second(there)
        return pieces(name, reader, start_of(reader, request), caller, look)

    def delete(self, caller: Caller, request: rpc.DeleteReportRequest) -> tombstone_pb2.Deletion:
        """Delete one. Raises as `Deletions.delete_version`."""
        return self._deletions.delete_version(caller, request, "report")


def _resource(state: Reading, row: Row[Any]) -> report_pb2.Report:
    return report_pb2.Report(
        name=names.report(row.project, row.artifact),
        uid=row.uid,
        title=row.facts.get("title", ""),
        job=artifact_rows.job_name(state, row.job),
        job_uid=row.job or "",
        inputs=row.inputs,
        input_uids=row.input_uids,
        pictures=row.facts.get("pictures", 0),
        size_bytes=row.size_bytes,
        manifest_digest=row.manifest_digest,
        creator=row.creator,
        create_time=timestamp(row.complete_time),
    )
