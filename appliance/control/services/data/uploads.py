"""Uploads: versions of datasets and models that come in part by part.

Rules kept here:
* an upload belongs to who began it: nobody else sees it, sends to it or ends it;
* what it becomes needs the caller's right at every call that brings it further, so that a right
  that was taken away ends it; a session that ends does not, because an upload has a token of its
  own (`auth.grants`);
* how many are open, and how large they are together, is bounded, for a caller and for a project;
* a commit names every part, by their number and one digest over all of theirs; what is committed
  becomes a version in the queue of the object store, and a repeat has the same answer.

The attacks: somebody else's upload, another project's dataset, a name of a file that holds code,
uploads without end. Called by `rpc.uploads`; parts are taken in by `services.data.upload_parts`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, insert, select, update

from appliance.api.data.v1 import upload_pb2
from appliance.api.data.v1 import upload_service_pb2 as rpc
from appliance.control.auth import grants
from appliance.control.auth.credentials import Credentials
from appliance.control.auth.policy import PolicyStore
from appliance.control.config import Uploading
from appliance.control.services.common import paging
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.change import Changes
from appliance.control.services.common.resources import check_project, missing
from appliance.control.services.data import upload_rows
from appliance.control.services.data.artifacts import Provenance
from appliance.control.services.data.datasets import check_there
from appliance.control.services.data.storage_tasks import StorageTasks, TaskKind
from appliance.control.services.data.upload_folder import UploadFolder
from appliance.control.services.data.upload_layout import MAX_PARTS, File, UploadLayout, kept_files
from appliance.control.services.data.upload_parts import (
    IncomingPart,
    KnownPart,
    UploadParts,
    check_open,
)
from appliance.control.services.data.upload_rows import (
    COMMITTED,
    COMMITTING,
    FAILED,
    OPEN,
    UNDER_WAY,
)
from appliance.control.services.data.upload_tasks import UploadTasks
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.control.store.objects import new_uid
from appliance.core.errors import (
    AlreadyExists,
    Denied,
    Exhausted,
    FailedPrecondition,
    InvalidInput,
)
from appliance.core.names import Name
from appliance.core.numbers import written

NEEDS = {"dataset": "datasets.upload", "model": "models.import"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_upload = upload_rows.upload


class Uploads:
    """Begins, shows, commits and aborts uploads, and lets parts in.

    Args:
        database: the state.
        changes: for what has a request id.
        policies: the policy in force.
        parts: takes in parts.
        tasks: the queue of the object store.
        upload_tasks: drops uploads.
        credentials: says whether a session is still live.
        token_key: the keyring's token key.
        limits: how many may be open.
        clock: the time, aware.
    """

    def __init__(  # noqa: PLR0913  # the parts of the control plane it acts on
        self,
        *,
        database: Database,
        changes: Changes,
        policies: PolicyStore,
        parts: UploadParts,
        tasks: StorageTasks,
        upload_tasks: UploadTasks,
        credentials: Credentials,
        token_key: bytes,
        limits: Uploading,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._changes = changes
        self._policies = policies
        self._parts = parts
        self._tasks = tasks
        self._upload_tasks = upload_tasks
        self._credentials = credentials
        self._token_key = token_key
        self._limits = limits
        self._clock = clock

    def create(self, caller: Caller, request: rpc.CreateUploadRequest) -> upload_pb2.Upload:
        """A new upload.

        Raises NotFound for a dataset that is not there; a model comes to be with its version.
        """

        def work(transaction: Transaction) -> upload_pb2.Upload:
            project = Name.parse(request.parent, "project", field="parent").id
            field = "upload.artifact"
            name = Name.parse(request.upload.artifact, "dataset", "model", field=field)
            if name.project != project:
                wrong = f"is not in {request.parent}"
                raise InvalidInput(f"{field} {wrong}", fields={field: wrong})
            self._check_right(caller, project, name.kind)
            files = _files(request, name.kind)
            if name.kind == "dataset":
                check_there(transaction, name)
            self._check_room(transaction, caller, project, files)
            return upload_rows.resource(self._begin(transaction, caller, name, files))

        return self._changes.make(caller, request, upload_pb2.Upload, work)

    def grant(self, caller: Caller, request: rpc.GrantUploadRequest) -> rpc.GrantUploadResponse:
        """A token for one upload; the one before ends.

        Raises Unauthenticated when the session or token that asks for it has ended meanwhile.
        """
        with self._database.write() as transaction:
            row = upload_rows.of_caller(transaction, caller, request.name)
            self._check_right(caller, row.project, row.kind)
            # In here: one that ended since the caller was identified leaves no token behind.
            self._credentials.check(transaction, caller.principal, caller.credential)
            text = grants.create(transaction, row.uid, caller.credential, self._token_key)
        return rpc.GrantUploadResponse(token=text)

    def begin_part(self, caller: Caller, first: rpc.UploadPartRequest) -> IncomingPart | KnownPart:
        """A part begins with its first message.

        Raises:
            InvalidInput: its number or digest cannot be one.
            AlreadyExists: another content has this number.
            FailedPrecondition: the upload takes no more.
        """
        digest = bytes.fromhex(_digest(first.sha256))
        with self._database.read() as state:
            row, layout = self._of_part(state, caller, first)
            known = upload_rows.part_of(state, row.uid, first.number)
            if known is not None and known.digest == digest:
                return KnownPart(known, first)
        piece = layout.piece(first.number) if layout else None
        if piece is None:
            self._parts.ids.check_ready(row.uid)
        end = self._parts.begin(row, first.number)
        try:
            # Once more: until now another call may have written it, or committed the upload.
            with self._database.read() as state:
                row, _ = self._of_part(state, caller, first)
                known = upload_rows.part_of(state, row.uid, first.number)
                if known is not None and known.digest == digest:
                    end()
                    return KnownPart(known, first)
                check_open(row, row, self._clock())
                _check_new(known, first.number)
                folder = UploadFolder.of(state, self._database, self._parts.artifacts, row)
            return IncomingPart(self._parts, row, folder, first, digest, piece, end)
        except BaseException:
            end()
            raise

    def _of_part(
        self, state: Reading, caller: Caller, first: rpc.UploadPartRequest
    ) -> tuple[Row[Any], UploadLayout | None]:
        """The upload of a part, and of a model what its parts are. Raises as `begin_part`."""
        row = upload_rows.of_caller(state, caller, first.name)
        self._check_right(caller, row.project, row.kind)
        layout = UploadLayout(row.files) if row.files else None
        most = layout.parts if layout else MAX_PARTS
        if not 0 <= first.number < most:
            wrong = f"must be 0 to {written(most - 1)}"
            raise InvalidInput(f"number {wrong}", fields={"number": wrong})
        return row, layout

    def get(self, caller: Caller, name: str) -> upload_pb2.Upload:
        """One upload of the caller."""
        with self._database.read() as state:
            return upload_rows.resource(upload_rows.of_caller(state, caller, name))

    def list(self, caller: Caller, request: rpc.ListUploadsRequest) -> rpc.ListUploadsResponse:
        """One page of the caller's uploads in a project, newest first."""
        project = Name.parse(request.parent, "project", field="parent").id
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, str, str)
        wanted = select(tables.upload).where(
            _upload.project == project, _upload.principal == caller.principal.subject
        )
        if after is not None:
            time, uid = _moment(str(after[0])), str(after[1])
            later = (_upload.create_time == time) & (_upload.uid > uid)
            wanted = wanted.where((_upload.create_time < time) | later)
        ordered = wanted.order_by(_upload.create_time.desc(), _upload.uid)
        with self._database.read() as state:
            check_project(state, project)
            rows = state.all(ordered.limit(size + 1))
        page, token = paging.cut(rows, size, lambda row: (row.create_time.isoformat(), row.uid))
        return rpc.ListUploadsResponse(
            uploads=[upload_rows.resource(row) for row in page], next_page_token=token
        )

    def list_parts(
        self, caller: Caller, request: rpc.ListUploadPartsRequest
    ) -> rpc.ListUploadPartsResponse:
        """One page of the parts that are there, by number."""
        size = paging.page_size(request.page_size)
        after = paging.key_of(request.page_token, int)
        part = upload_rows.part
        with self._database.read() as state:
            row = upload_rows.of_caller(state, caller, request.parent, field="parent")
            wanted = select(tables.upload_part).where(part.upload == row.uid)
            if after is not None:
                wanted = wanted.where(part.number > after[0])
            rows = state.all(wanted.order_by(part.number).limit(size + 1))
        page, token = paging.cut(rows, size, lambda each: (each.number,))
        return rpc.ListUploadPartsResponse(
            parts=[
                upload_pb2.UploadedPart(
                    number=each.number, sha256=each.digest.hex(), size_bytes=each.size_bytes
                )
                for each in page
            ],
            next_page_token=token,
        )

    def commit(self, caller: Caller, request: rpc.CommitUploadRequest) -> upload_pb2.Upload:
        """Everything is there: it becomes a version soon.

        Raises:
            FailedPrecondition: a part is missing, or it failed before.
            InvalidInput: the parts are not those that are there.
            Unavailable: a part of it is being written.
        """
        digest = _digest(request.sha256)
        with self._database.read() as state:
            # Before others wait: parts are added meanwhile, and never changed or taken away.
            row = upload_rows.of_caller(state, caller, request.name)
            wanted = UploadLayout(row.files).parts if row.files else max(request.parts, 1)
            if not (request.parts or row.parts or row.files):
                raise FailedPrecondition(f"{request.name} holds no document: send at least one")
            there = upload_rows.digest_of(state, row, wanted) if row.state == OPEN else ""
        alone = self._parts.none_written(row) if row.state == OPEN else contextlib.nullcontext()
        with alone, self._database.write() as transaction:
            row = upload_rows.of_caller(transaction, caller, request.name)
            self._check_right(caller, row.project, row.kind)
            if row.state == FAILED:
                raise FailedPrecondition(f"{request.name} failed: {row.message}")
            if row.state in {COMMITTING, COMMITTED}:
                if (row.parts, row.digest) != (request.parts, digest):
                    raise _other_parts("it was committed with other parts")
                return upload_rows.resource(row)
            check_open(row, row, self._clock())
            upload_rows.check_count(row, wanted)
            if there != digest or row.parts != request.parts:
                raise _other_parts("is not that of the parts that are there, in their order")
            transaction.run(
                update(tables.upload)
                .where(_upload.uid == row.uid)
                .values(state=COMMITTING, digest=digest)
            )
            self._tasks.add(transaction, TaskKind.COMMIT_UPLOAD, row.uid)
            return upload_rows.resource(upload_rows.of_caller(transaction, caller, request.name))

    def abort(self, caller: Caller, request: rpc.AbortUploadRequest) -> rpc.AbortUploadResponse:
        """Forget an upload and all that was sent.

        Also one that was committed, while nobody makes its version: a commit that cannot be done
        is not tried for ever. Raises FailedPrecondition when a version is being made, or is there.
        """
        with self._database.write() as transaction:
            row = upload_rows.of_caller(transaction, caller, request.name)
            if row.state == COMMITTED:
                raise FailedPrecondition(
                    f"{request.name} was committed and is {row.version_name}: delete that"
                )
            if self._upload_tasks.is_at_work(transaction, row):
                raise FailedPrecondition(
                    f"{request.name} was committed and becomes a version now: see "
                    "`appliance upload get`, and abort it if that says that it is tried again"
                )
            self._upload_tasks.drop(transaction, row)
        return rpc.AbortUploadResponse()

    def _begin(
        self, transaction: Transaction, caller: Caller, name: Name, files: Sequence[File]
    ) -> Row[Any]:
        artifacts, now, uid = self._parts.artifacts, self._clock(), new_uid()
        made = Provenance(caller.principal.name)
        version = artifacts.allocate(transaction, name.ids[0], name.kind, name.id, made)
        transaction.run(
            insert(tables.upload).values(
                uid=uid,
                project=name.ids[0],
                kind=name.kind,
                artifact=name.id,
                principal=caller.principal.subject,
                creator=caller.principal.name,
                state=OPEN,
                version=version.uid,
                folder=artifacts.store.folder(name.ids[0], uid) if files else "",
                files=[list(file) for file in files],
                create_time=now,
                expire_time=self._parts.expire_time(now),
            )
        )
        row = upload_rows.by_uid(transaction, uid)
        if row is None:
            raise missing(str(name))
        transaction.after_commit(lambda: self._parts.ids.begin(uid))
        return row

    def _check_right(self, caller: Caller, project: str, kind: str) -> None:
        """Raise Denied unless the caller may make what an upload becomes."""
        if not self._policies.current().allowed(caller.principal, project, NEEDS[kind]):
            raise Denied(
                f"{caller.principal.name} may not do this: it needs {NEEDS[kind]} in "
                f"projects/{project}",
                permission=NEEDS[kind],
            )

    def _check_room(
        self, state: Reading, caller: Caller, project: str, files: Sequence[File]
    ) -> None:
        """Raise Exhausted when there are too many open uploads."""
        of_project = _upload.project == project, _upload.state.in_(UNDER_WAY)
        mine = _upload.principal == caller.principal.subject
        count = select(func.count()).select_from(tables.upload)
        for whose, number, most in (
            ("you have", state.value(count.where(*of_project, mine)), self._limits.per_caller),
            ("there are", state.value(count.where(*of_project)), self._limits.per_project),
        ):
            if number >= most:
                raise Exhausted(
                    f"{whose} {number} open uploads in projects/{project}, as many as may be: end "
                    "or abort one (`appliance upload list`), then begin another"
                )
        declared = sum(size for _, size in files)
        self._parts.check_room(upload_rows.open_bytes(state, project) + declared)


def _files(request: rpc.CreateUploadRequest, kind: str) -> Sequence[File]:
    files = [(each.file, each.size_bytes) for each in request.upload.files]
    if kind == "model":
        return kept_files(files)
    if files:
        wrong = "must be empty for a dataset"
        raise InvalidInput(f"upload.files {wrong}", fields={"upload.files": wrong})
    return []


def _check_new(known: Row[Any] | None, number: int) -> None:
    if known is not None:
        raise AlreadyExists(
            f"part {number} holds something else: what is sent has changed since it came; begin "
            "another upload, or send what it was",
            part=number,
        )


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise paging.wrong_token()
    return found


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        wrong = "must be a SHA-256 digest, 64 of 0-9 and a-f"
        raise InvalidInput(f"sha256 {wrong}", fields={"sha256": wrong})
    return text


def _other_parts(why: str) -> InvalidInput:
    return InvalidInput(f"sha256: {why}", fields={"sha256": why})
