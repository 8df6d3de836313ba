"""Models: named series of sealed model versions in the Hugging Face layout.

Rules kept here:
* files from outside are checked while they come in (`model_intake`); what could hold code is
  refused by its name, before its bytes;
* a version appears whole or not at all; weights come out by `services.data.downloads` alone.

Called by `rpc.models`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from appliance.api.data.v1 import tombstone_pb2
from appliance.api.models.v1 import model_pb2
from appliance.api.models.v1 import model_service_pb2 as rpc
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import check_project, timestamp
from appliance.control.services.common.updates import changed_fields, check_description
from appliance.control.services.data import artifact_rows
from appliance.control.services.data.artifacts import Artifacts, Provenance, Version
from appliance.control.services.data.deletions import Deletions
from appliance.control.services.data.model_intake import ModelFiles
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import Internal, InvalidInput
from appliance.core.names import Name
from appliance.crypto.artifacts import ArtifactReader, manifest_digest


class Models:
    """Makes, fills, shows, describes and deletes models."""

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

    def get(self, caller: Caller, name: str) -> model_pb2.Model:
        """One model."""
        del caller  # the gate has decided
        with self._database.read() as state:
            return _model(state, artifact_rows.artifact_row(state, Name.parse(name, "model")))

    def list(self, caller: Caller, request: rpc.ListModelsRequest) -> rpc.ListModelsResponse:
        """One page of the models of a project, by id."""
        del caller
        project = Name.parse(request.parent, "project", field="parent").id
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str)
        with self._database.read() as state:
            check_project(state, project)
            rows = state.all(artifact_rows.page_of_artifacts(project, "model", after, size))
            page, token = paging.cut(rows, size, lambda row: (row.id,))
            return rpc.ListModelsResponse(
                models=[_model(state, row) for row in page], next_page_token=token
            )

    def create(self, caller: Caller, request: rpc.CreateModelRequest) -> model_pb2.Model:
        """A model without versions."""

        def work(transaction: Transaction) -> model_pb2.Model:
            project = Name.parse(request.parent, "project", field="parent").id
            identifier = names.check_id(request.model_id, "model_id")
            description = request.model.description
            check_description(description, "model.description")
            name = Name.of("model", project, identifier)
            now = self._clock()
            creator = caller.principal.name
            artifact_rows.create_artifact(transaction, name, description, creator, now)
            return _model(transaction, artifact_rows.artifact_row(transaction, name))

        return self._changes.make(caller, request, model_pb2.Model, work)

    def update(self, caller: Caller, request: rpc.UpdateModelRequest) -> model_pb2.Model:
        """Change the description. Raises NotFound, InvalidInput, Conflict."""
        asked = request.model
        name = Name.parse(asked.name, "model", field="model.name")
        changed_fields(request, ("description",))
        check_description(asked.description, "model.description")

        def work(transaction: Transaction) -> model_pb2.Model:
            row = artifact_rows.describe(transaction, name, asked.description, asked.etag)
            return _model(transaction, row)

        return self._changes.make(caller, request, model_pb2.Model, work)

    def delete(self, caller: Caller, request: rpc.DeleteModelRequest) -> tombstone_pb2.Deletion:
        """Delete one with all its versions. Raises as `Deletions.delete_whole`."""
        return self._deletions.delete_whole(caller, request, "model")

    def delete_version(
        self, caller: Caller, request: rpc.DeleteModelVersionRequest
    ) -> tombstone_pb2.Deletion:
        """Delete one version. Raises as `Deletions.delete_version`."""
        return self._deletions.delete_version(caller, request, "modelVersion")

    def get_version(self, caller: Caller, name: str) -> model_pb2.ModelVersion:
        """One version."""
        del caller
        with self._database.read() as state:
            row = artifact_rows.version_row(state, Name.parse(name, "modelVersion"))
            return version_resource(state, row)

    def list_versions(
        self, caller: Caller, request: rpc.ListModelVersionsRequest
    ) -> rpc.ListModelVersionsResponse:
        """One page of the versions of a model, newest first."""
        del caller
        name = Name.parse(request.parent, "model", field="parent")
        size = paging.page_size(request.page_size)
        with self._database.read() as state:
            artifact_rows.artifact_row(state, name)
            rows = state.all(
                artifact_rows.page_of_versions(name, paging.key_of(request.page_token, int), size)
            )
            page, token = paging.cut(rows, size, lambda row: (row.number,))
            return rpc.ListModelVersionsResponse(
                versions=[version_resource(state, row) for row in page], next_page_token=token
            )

    def begin_import(self, caller: Caller, first: rpc.ImportModelVersionRequest) -> Import:
        """Start an import with its first message, which names the model.

        A model that does not exist comes to be with its first version, or not at all.

        Raises NotFound when there is no such project.
        """
        name = Name.parse(first.parent, "model", field="parent")
        if first.file or first.data:
            raise InvalidInput("the first message names the model, files follow in later ones")
        made = Provenance(caller.principal.name)
        with self._database.write() as transaction:
            version = self._artifacts.allocate(
                transaction, name["project"], "model", name["model"], made
            )
        return Import(self._changes, self._artifacts, caller, first, version)


class Import:
    """One import under way: `add` each later message, `close`, `finish`; `abort` at last."""

    def __init__(
        self,
        changes: Changes,
        artifacts: Artifacts,
        caller: Caller,
        first: rpc.ImportModelVersionRequest,
        version: Version,
    ) -> None:
        self._changes = changes
        self._artifacts = artifacts
        self._caller = caller
        self._first = first
        self._version = version
        self._writer = artifacts.writer(version)
        self._files = ModelFiles(self._writer)
        self._facts: dict[str, Any] = {}
        self._reader: ArtifactReader | None = None
        self._over = False

    def add(self, message: rpc.ImportModelVersionRequest) -> None:
        """Take the next piece of a file. Raises InvalidInput; the import is over then."""
        if message.parent or message.request_id:
            raise InvalidInput("only the first message of an import names the model")
        if not message.file:
            raise InvalidInput("a piece has no name of its file", fields={"file": "is empty"})
        self._files.add(message.file, message.data)

    def close(self) -> None:
        """The stream has ended: check the whole, seal and sign it. Raises InvalidInput."""
        self._facts = self._files.close()
        digest = manifest_digest(self._writer.finish())
        self._reader = self._artifacts.verify(self._version, digest)
        self._artifacts.sign(self._version, digest)

    def finish(self) -> model_pb2.ModelVersion:
        """Register the version; or the first answer, when this is a repeat."""
        reader = self._reader
        if reader is None:
            raise Internal("an import is finished before it was closed")
        registered = False

        def work(transaction: Transaction) -> model_pb2.ModelVersion:
            nonlocal registered
            self._artifacts.register(
                transaction, self._version, reader, self._facts, {"kind": "import", "inputs": []}
            )
            registered = True
            name = Name.parse(self._version.name, "modelVersion")
            return version_resource(transaction, artifact_rows.version_row(transaction, name))

        contents = rpc.ImportModelVersionRequest(parent=self._first.parent, data=self._files.digest)
        answer = self._changes.make(
            self._caller, self._first, model_pb2.ModelVersion, work, payload=contents
        )
        self._over = registered
        return answer

    def abort(self) -> None:
        """Leave nothing, unless the import has been finished."""
        if not self._over:
            self._over = True
            self._files.abort()
            self._artifacts.give_up(self._version)


def _model(state: Reading, row: Row[Any]) -> model_pb2.Model:
    return model_pb2.Model(
        name=names.model(row.project, row.id),
        description=row.description,
        create_time=timestamp(row.create_time),
        latest_version=artifact_rows.latest(state, row.project, "model", row.id),
        etag=artifact_rows.etag(state, row),
    )


def version_resource(state: Reading, row: Row[Any]) -> model_pb2.ModelVersion:
    """The resource of a complete version's row."""
    return model_pb2.ModelVersion(
        name=names.model_version(row.project, row.artifact, row.number),
        uid=row.uid,
        architecture=row.facts.get("architecture", ""),
        parameters=row.facts.get("parameters", 0),
        size_bytes=row.size_bytes,
        format=row.facts.get("format", ""),
        context_length=row.facts.get("context_length", 0),
        manifest_digest=row.manifest_digest,
        creator=row.creator,
        job=artifact_rows.job_name(state, row.job),
        job_uid=row.job or "",
        inputs=row.inputs,
        input_uids=row.input_uids,
        create_time=timestamp(row.complete_time),
    )
