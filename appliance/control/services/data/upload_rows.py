"""Rows of uploads and of their parts: find, count and show them.

Rule kept here: an upload is there for who began it and for nobody else, and for the token of an
upload only that one.

Called by the services of uploads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Row, func, select

from appliance.api.data.v1 import upload_pb2
from appliance.control.services.common.caller import Caller
from appliance.control.services.common.resources import missing, timestamp
from appliance.control.services.data.upload_layout import PART_BYTES
from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core import names
from appliance.core.errors import FailedPrecondition
from appliance.core.names import Name
from appliance.crypto.manifest import FileEntry

OPEN, COMMITTING, COMMITTED, FAILED = "OPEN", "COMMITTING", "COMMITTED", "FAILED"
UNDER_WAY = (OPEN, COMMITTING)
upload = tables.upload.c
part = tables.upload_part.c


def of_caller(state: Reading, caller: Caller, name: str, field: str = "name") -> Row[Any]:
    """The caller's upload of a name. Raises NotFound for everything else."""
    parsed = Name.parse(name, "upload", field=field)
    row = by_uid(state, parsed.id)
    if (
        row is None
        or row.project != parsed.project
        or row.principal != caller.principal.subject
        or caller.upload not in {"", row.uid}
    ):
        raise missing(name)
    return row


def by_uid(state: Reading, uid: str) -> Row[Any] | None:
    """The row of an upload."""
    return state.first(select(tables.upload).where(upload.uid == uid))


def name_of(row: Row[Any]) -> str:
    """Its resource name."""
    return names.upload(row.project, row.uid)


def part_of(state: Reading, uid: str, number: int) -> Row[Any] | None:
    """The row of a part."""
    mine = part.upload == uid, part.number == number
    return state.first(select(tables.upload_part).where(*mine))


def parts_of(state: Reading, uid: str) -> Iterator[Row[Any]]:
    """The rows of all parts, by number."""
    mine = select(tables.upload_part).where(part.upload == uid)
    return state.each(mine.order_by(part.number))


def entry_of(row: Row[Any]) -> FileEntry:
    """The sealed file of a part."""
    return FileEntry(row.file, row.plain_size, row.sealed_size, row.tag)


def digest_of(state: Reading, row: Row[Any], parts: int) -> str:
    """The digest over all parts, as a commit names it, hex.

    Args:
        state: to read.
        row: of the upload.
        parts: how many there are.

    Raises FailedPrecondition when one is missing, or there are more.
    """
    digest, expected = hashlib.sha256(), 0
    for each in parts_of(state, row.uid):
        if each.number != expected:
            break
        digest.update(each.digest)
        expected += 1
    if expected < parts:
        raise FailedPrecondition(f"part {expected} of {parts} is missing: send it, then commit")
    check_count(row, parts)
    return digest.hexdigest()


def check_count(row: Row[Any], parts: int) -> None:
    """Raise FailedPrecondition when an upload has more parts."""
    if row.parts > parts:
        raise FailedPrecondition(f"there are {row.parts} parts, not {parts}: name all of them")


def open_bytes(state: Reading, project: str) -> int:
    """Bytes that everything under way in a project takes in the object store."""
    wanted = select(func.coalesce(func.sum(upload.size_bytes), 0))
    return int(state.value(wanted.where(upload.project == project, upload.state.in_(UNDER_WAY))))


def resource(row: Row[Any]) -> upload_pb2.Upload:
    """The resource of a row."""
    name = Name.of(row.kind, row.project, row.artifact)
    return upload_pb2.Upload(
        name=name_of(row),
        artifact=str(name),
        state=f"STATE_{row.state}",
        files=[upload_pb2.UploadFile(file=file, size_bytes=size) for file, size in row.files],
        part_bytes=PART_BYTES,
        parts=row.parts,
        size_bytes=row.size_bytes,
        creator=row.creator,
        create_time=timestamp(row.create_time),
        expire_time=timestamp(row.expire_time),
        version=row.version_name,
        message=row.message,
    )
