"""Rows of artifacts and of their versions: find them, name them, make an artifact without versions.

Called by the services of datasets, tokenizers, models, jobs and endpoints, and by
`services.data.artifacts`, which alone writes versions.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from appliance.control.services.common import paging
from appliance.control.services.common.resources import check_project, missing
from appliance.control.services.common.updates import check_etag, etag_of
from appliance.control.store import tables
from appliance.control.store.database import Database, Reading, Transaction
from appliance.core import names
from appliance.core.errors import AlreadyExists, NotFound
from appliance.core.names import Name

PENDING = "pending"
COMPLETE = "complete"
CHECKPOINTS = "checkpoints"
"""The kind of a series of checkpoints, which is a pending version for as long as it is there."""
_artifact = tables.artifact.c
_version = tables.artifact_version.c


def version_name(project: str, kind: str, artifact: str, number: int) -> str:
    """Resource name of a version; a series of checkpoints, which is none, is named by its job."""
    if kind == "dataset":
        return names.dataset_version(project, artifact, number)
    if kind == "model":
        return names.model_version(project, artifact, number)
    if kind == "tokenizer":
        return names.tokenizer(project, artifact)
    if kind == "report":
        return names.report(project, artifact)
    return f"checkpoints/{artifact}"


def create_artifact(
    transaction: Transaction, name: Name, description: str, creator: str, now: datetime
) -> None:
    """A dataset or model without versions. Raises AlreadyExists, NotFound for the project."""
    project = name.ids[0]
    check_project(transaction, project)
    try:
        transaction.run(
            insert(tables.artifact).values(
                project=project,
                kind=name.kind,
                id=name.id,
                description=description,
                creator=creator,
                create_time=now,
            )
        )
    except IntegrityError as error:
        raise AlreadyExists(f"{name} exists already: choose another id", name=str(name)) from error


def artifact_row(state: Reading, name: Name) -> Row[Any]:
    """The row of a dataset, tokenizer or model. Raises NotFound."""
    row = state.first(
        select(tables.artifact).where(
            _artifact.project == name.ids[0],
            _artifact.kind == name.kind,
            _artifact.id == name.ids[1],
        )
    )
    if row is None:
        raise missing(str(name))
    return row


def version_row(state: Reading, name: Name) -> Row[Any]:
    """The row of a complete version (or of a tokenizer). Raises NotFound."""
    kind = name.kind.removesuffix("Version")
    number = int(name.ids[2]) if name.kind.endswith("Version") else 1
    row = state.first(
        select(tables.artifact_version).where(
            *of_artifact(name.ids[0], kind, name.ids[1]),
            _version.number == number,
            _version.state == COMPLETE,
        )
    )
    if row is None:
        raise missing(str(name))
    return row


def version_of_uid(state: Reading, uid: str) -> Row[Any]:
    """The row of a complete version. Raises NotFound when it was deleted."""
    row = state.first(
        select(tables.artifact_version).where(_version.uid == uid, _version.state == COMPLETE)
    )
    if row is None:
        raise missing(f"version {uid}")
    return row


def check_there(database: Database, name: Name, row: Row[Any]) -> None:
    """Raise NotFound when a version was deleted since: its files may go at any moment."""
    with database.read() as state:
        there = state.first(select(_version.uid).where(_version.uid == row.uid))
    if there is None:
        raise NotFound(f"{name} was deleted while it was downloaded", name=str(name))


def latest(state: Reading, project: str, kind: str, artifact: str) -> str:
    """Name of the newest complete version; empty when there is none."""
    number = state.value(
        select(func.max(_version.number)).where(
            *of_artifact(project, kind, artifact), _version.state == COMPLETE
        )
    )
    return "" if number is None else version_name(project, kind, artifact, int(number))


def etag(state: Reading, row: Row[Any]) -> str:
    """The etag of a dataset or model: of its description, and of which versions there are."""
    # No number is given twice, so these two tell every set of versions from those before.
    versions = select(func.count(), func.coalesce(func.max(_version.number), 0)).where(
        *of_artifact(row.project, row.kind, row.id), _version.state == COMPLETE
    )
    found = state.first(versions)
    return etag_of(row.description, row.create_time.isoformat(), *(found or ()))


def describe(transaction: Transaction, name: Name, description: str, given_etag: str) -> Row[Any]:
    """Change the description of a dataset or model; its row. Raises NotFound, Conflict."""
    row = artifact_row(transaction, name)
    check_etag(given_etag, etag(transaction, row), str(name))
    this = _artifact.project == row.project, _artifact.kind == row.kind, _artifact.id == row.id
    transaction.run(update(tables.artifact).where(*this).values(description=description))
    return artifact_row(transaction, name)


def job_name(state: Reading, uid: str | None) -> str:
    """Resource name of the job with this uid, which may have been deleted; empty for None."""
    if uid is None:
        return ""
    row = None
    for table in (tables.job, tables.deleted_job):
        wanted = select(table.c.project, table.c.id).where(table.c.uid == uid)
        row = row or state.first(wanted)
    return "" if row is None else names.job(row.project, row.id)


def of_artifact(project: str, kind: str, artifact: str) -> tuple[Any, ...]:
    """The conditions that choose the versions of one artifact."""
    return (_version.project == project, _version.kind == kind, _version.artifact == artifact)


def page_of_artifacts(
    project: str, kind: str, after: paging.Key | None, size: int
) -> Select[tuple[Any, ...]]:
    """One row more than a page of the artifacts of a project, by id, for `paging.cut`."""
    wanted = select(tables.artifact).where(_artifact.project == project, _artifact.kind == kind)
    if after is not None:
        wanted = wanted.where(_artifact.id > after[0])
    return wanted.order_by(_artifact.id).limit(size + 1)


def page_of_versions(name: Name, after: paging.Key | None, size: int) -> Select[tuple[Any, ...]]:
    """One row more than a page of the complete versions of an artifact, newest first."""
    wanted = select(tables.artifact_version).where(
        *of_artifact(name.ids[0], name.kind, name.ids[1]), _version.state == COMPLETE
    )
    if after is not None:
        wanted = wanted.where(_version.number < after[0])
    return wanted.order_by(_version.number.desc()).limit(size + 1)


def pending_of(state: Reading, job: str) -> list[Row[Any]]:
    """Pending versions that a job makes, its series of checkpoints among them, by the job's uid."""
    wanted = select(tables.artifact_version).where(_version.job == job, _version.state == PENDING)
    return state.all(wanted)
