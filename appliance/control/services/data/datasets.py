"""Datasets: named series of sealed text or token versions.

Rules kept here:
* a version appears whole or not at all: an upload that is cut leaves neither a row nor a file;
* text comes out by `services.data.downloads` alone, but for the excerpts of a prepare report, which
  has a permission of its own.

Called by `rpc.datasets`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from sqlalchemy import Row

from appliance.api.data.v1 import dataset_pb2, tombstone_pb2
from appliance.api.data.v1 import dataset_service_pb2 as rpc
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import check_project, timestamp
from appliance.control.services.common.updates import changed_fields, check_description
from appliance.control.services.data import artifact_rows
from appliance.control.services.data.artifacts import Artifacts, Provenance, Version
from appliance.control.services.data.deletions import Deletions
from appliance.control.services.data.documents import Documents
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import FailedPrecondition, Internal, InvalidInput, NotFound, Tampered
from appliance.core.names import Name
from appliance.crypto.artifacts import ArtifactReader, manifest_digest

REPORT = "report.json"
_KINDS = {
    "text": dataset_pb2.DatasetVersion.KIND_TEXT,
    "tokens": dataset_pb2.DatasetVersion.KIND_TOKENS,
}


class Datasets:
    """Makes, fills, shows, describes and deletes datasets."""

    def __init__(  # the parts of the control plane it acts on
        self,
        database: Database,
        changes: Changes,
        artifacts: Artifacts,
        deletions: Deletions,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._artifacts = artifacts
        self._deletions = deletions
        self._clock = clock

    def get(self, caller: Caller, name: str) -> dataset_pb2.Dataset:
        """One dataset."""
        del caller  # the gate has decided
        with self._database.read() as state:
            row = artifact_rows.artifact_row(state, Name.parse(name, "dataset"))
            return _dataset(state, row)

    def list(self, caller: Caller, request: rpc.ListDatasetsRequest) -> rpc.ListDatasetsResponse:
        """One page of the datasets of a project, by id."""
        del caller
        project = Name.parse(request.parent, "project", field="parent").id
        size = paging.page_size(request.page_size)
        with self._database.read() as state:
            check_project(state, project)
            rows = state.all(
                artifact_rows.page_of_artifacts(
                    project, "dataset", paging.key_of(request.page_token, str), size
                )
            )
            page, token = paging.cut(rows, size, lambda row: (row.id,))
            return rpc.ListDatasetsResponse(
                datasets=[_dataset(state, row) for row in page], next_page_token=token
            )

    def create(self, caller: Caller, request: rpc.CreateDatasetRequest) -> dataset_pb2.Dataset:
        """An empty dataset."""

        def work(transaction: Transaction) -> dataset_pb2.Dataset:
            project = Name.parse(request.parent, "project", field="parent").id
            identifier = names.check_id(request.dataset_id, "dataset_id")
            description = request.dataset.description
            check_description(description, "dataset.description")
            name = Name.of("dataset", project, identifier)
            now = self._clock()
            creator = caller.principal.name
            artifact_rows.create_artifact(transaction, name, description, creator, now)
            return _dataset(transaction, artifact_rows.artifact_row(transaction, name))

        return self._changes.make(caller, request, dataset_pb2.Dataset, work)

    def update(self, caller: Caller, request: rpc.UpdateDatasetRequest) -> dataset_pb2.Dataset:
        """Change the description. Raises NotFound, InvalidInput, Conflict."""
        asked = request.dataset
        name = Name.parse(asked.name, "dataset", field="dataset.name")
        changed_fields(request, ("description",))
        check_description(asked.description, "dataset.description")

        def work(transaction: Transaction) -> dataset_pb2.Dataset:
            row = artifact_rows.describe(transaction, name, asked.description, asked.etag)
            return _dataset(transaction, row)

        return self._changes.make(caller, request, dataset_pb2.Dataset, work)

    def delete(self, caller: Caller, request: rpc.DeleteDatasetRequest) -> tombstone_pb2.Deletion:
        """Delete one with all its versions. Raises as `Deletions.delete_whole`."""
        return self._deletions.delete_whole(caller, request, "dataset")

    def delete_version(
        self, caller: Caller, request: rpc.DeleteDatasetVersionRequest
    ) -> tombstone_pb2.Deletion:
        """Delete one version. Raises as `Deletions.delete_version`."""
        return self._deletions.delete_version(caller, request, "datasetVersion")

    def begin_upload(self, caller: Caller, first: rpc.UploadDatasetVersionRequest) -> Upload:
        """Start an upload with its first message, which names the dataset.

        Raises NotFound when there is no such dataset. It is said plainly: the gate has let the
        caller upload in this project, and every role that may do so may list its datasets.
        """
        name = Name.parse(first.parent, "dataset", field="parent")
        if first.documents:
            raise InvalidInput(
                "the first message names the dataset, documents follow in later ones",
                fields={"documents": "must be empty in the first message"},
            )
        made = Provenance(caller.principal.name)
        with self._database.write() as transaction:
            check_there(transaction, name)
            version = self._artifacts.allocate(
                transaction, name["project"], "dataset", name["dataset"], made
            )
        return Upload(self._changes, self._artifacts, caller, first, version)

    def get_version(self, caller: Caller, name: str) -> dataset_pb2.DatasetVersion:
        """One version."""
        del caller
        with self._database.read() as state:
            row = artifact_rows.version_row(state, Name.parse(name, "datasetVersion"))
            return version_resource(state, row)

    def list_versions(
        self, caller: Caller, request: rpc.ListDatasetVersionsRequest
    ) -> rpc.ListDatasetVersionsResponse:
        """One page of the versions of a dataset, newest first."""
        del caller
        name = Name.parse(request.parent, "dataset", field="parent")
        size = paging.page_size(request.page_size)
        with self._database.read() as state:
            artifact_rows.artifact_row(state, name)
            rows = state.all(
                artifact_rows.page_of_versions(name, paging.key_of(request.page_token, int), size)
            )
            page, token = paging.cut(rows, size, lambda row: (row.number,))
            return rpc.ListDatasetVersionsResponse(
                versions=[version_resource(state, row) for row in page], next_page_token=token
            )

    def prepare_report(self, caller: Caller, name: str) -> dataset_pb2.PrepareReport:
        """The report of the prepare job that made a version, decrypted.

        Raises FailedPrecondition when no prepare job made it, Tampered when it was changed.
        """
        del caller
        with self._database.read() as state:
            row = artifact_rows.version_row(state, Name.parse(name, "datasetVersion"))
        if row.facts.get("kind") != "tokens":
            raise FailedPrecondition(f"{name} was uploaded; only prepared versions have a report")
        report = self._artifacts.open(row).read_json(REPORT)
        try:
            return json_format.ParseDict(
                report, dataset_pb2.PrepareReport(), ignore_unknown_fields=True
            )
        except json_format.ParseError as error:
            raise Tampered(f"the report of {name} cannot be read", object=row.uid) from error


class Upload:
    """One upload under way: `add` each later message, `close`, `finish`; `abort` at last."""

    def __init__(
        self,
        changes: Changes,
        artifacts: Artifacts,
        caller: Caller,
        first: rpc.UploadDatasetVersionRequest,
        version: Version,
    ) -> None:
        self._changes = changes
        self._artifacts = artifacts
        self._caller = caller
        self._first = first
        self._version = version
        self._writer = artifacts.writer(version)
        self._documents = Documents(self._writer)
        self._reader: ArtifactReader | None = None
        self._over = False

    def add(self, message: rpc.UploadDatasetVersionRequest) -> None:
        """Take the documents of a later message."""
        if message.parent or message.request_id:
            raise InvalidInput("only the first message of an upload names the dataset")
        self._documents.add(message.documents)

    def close(self) -> None:
        """The stream has ended: seal and sign what came. Raises InvalidInput when it was empty."""
        self._documents.close()
        digest = manifest_digest(self._writer.finish())
        self._reader = self._artifacts.verify(self._version, digest)
        self._artifacts.sign(self._version, digest)

    def finish(self) -> dataset_pb2.DatasetVersion:
        """Register the version; or the first answer, when this is a repeat."""
        reader = self._reader
        if reader is None:
            raise Internal("an upload is finished before it was closed")
        facts = {"kind": "text", "documents": self._documents.count, "tokens": 0}
        registered = False

        def work(transaction: Transaction) -> dataset_pb2.DatasetVersion:
            nonlocal registered
            self._artifacts.register(
                transaction, self._version, reader, facts, {"kind": "upload", "inputs": []}
            )
            registered = True
            name = Name.parse(self._version.name, "datasetVersion")
            return version_resource(transaction, artifact_rows.version_row(transaction, name))

        contents = rpc.UploadDatasetVersionRequest(parent=self._first.parent)
        contents.documents.add(id=self._documents.digest)
        answer = self._changes.make(
            self._caller, self._first, dataset_pb2.DatasetVersion, work, payload=contents
        )
        self._over = registered
        return answer

    def abort(self) -> None:
        """Leave nothing, unless the upload has been finished."""
        self._documents.abort()
        if not self._over:
            self._over = True
            self._artifacts.give_up(self._version)


def check_there(state: Reading, name: Name) -> None:
    """Raise NotFound, with the command that makes one, unless there is a dataset to upload to."""
    project, dataset = name["project"], name["dataset"]
    try:
        artifact_rows.artifact_row(state, name)
    except NotFound as error:
        projects = tables.project
        if state.first(projects.select().where(projects.c.id == project)) is None:
            raise
        raise NotFound(
            f"there is no dataset {dataset} in {names.project(project)}: make it with `appliance "
            f"dataset create {dataset} --project {project}`, then upload again",
            name=name,
        ) from error


def _dataset(state: Reading, row: Row[Any]) -> dataset_pb2.Dataset:
    return dataset_pb2.Dataset(
        name=names.dataset(row.project, row.id),
        description=row.description,
        create_time=timestamp(row.create_time),
        latest_version=artifact_rows.latest(state, row.project, "dataset", row.id),
        etag=artifact_rows.etag(state, row),
    )


def version_resource(state: Reading, row: Row[Any]) -> dataset_pb2.DatasetVersion:
    """The resource of a complete version's row."""
    return dataset_pb2.DatasetVersion(
        name=names.dataset_version(row.project, row.artifact, row.number),
        uid=row.uid,
        kind=_KINDS.get(row.facts.get("kind", ""), dataset_pb2.DatasetVersion.KIND_UNSPECIFIED),
        size_bytes=row.size_bytes,
        documents=row.facts.get("documents", 0),
        tokens=row.facts.get("tokens", 0),
        manifest_digest=row.manifest_digest,
        creator=row.creator,
        job=artifact_rows.job_name(state, row.job),
        job_uid=row.job or "",
        inputs=row.inputs,
        input_uids=row.input_uids,
        create_time=timestamp(row.complete_time),
        tokenizer=row.facts.get("tokenizer", ""),
    )
