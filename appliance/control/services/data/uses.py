"""What uses a version, or something with versions, so that it cannot be deleted now.

Rules kept here:
* in use is what somebody would miss: an endpoint serves it, a job that has not ended reads it or
  makes a version of it, an upload into it is open, tokens were made with the tokenizer;
* what has ended and only points back is no use: tombstones answer for that;
* users are found by uid, never by name; a user that the caller may not see is counted, not named.

Called by `services.data.deletions`, in its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from sqlalchemy import Row, select

from appliance.control.services.data import artifact_rows, upload_rows
from appliance.control.services.data.artifact_rows import COMPLETE, PENDING, of_artifact
from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core import names
from appliance.core.errors import FailedPrecondition
from appliance.core.jobs import TERMINAL
from appliance.core.names import Name
from appliance.kinds import kind_of

SHOWN = 5
"""Users of a kind that a refusal names; of the others it says how many."""
_endpoint = tables.endpoint.c
_job = tables.job.c
_replica = tables.replica.c
_version = tables.artifact_version.c


@dataclass(frozen=True)
class Use:
    """One user of something.

    Args:
        what: it is, in the plural: `endpoints`.
        permission: that lets somebody see it; empty when its name says nothing to others.
        says: what it does, and how it is ended.
    """

    what: str
    permission: str
    says: str


def of_versions(state: Reading, project: str, rows: Sequence[Row[Any]]) -> Iterator[Use]:
    """What uses one of these complete versions of a project."""
    uids = {row.uid: _name_of(row) for row in rows}
    served = select(tables.endpoint).where(_endpoint.project == project).order_by(_endpoint.id)
    for row in state.all(served):
        # While it changes from one version to another it has replicas of both.
        older = select(_replica.model_version).where(_replica.endpoint == row.uid).distinct()
        versions = {row.model_version, *(each.model_version for each in state.all(older))}
        serves = sorted(uids[uid] for uid in versions & uids.keys())
        if serves:
            yield Use(
                "endpoints",
                "endpoints.list",
                f"{names.endpoint(project, row.id)} serves {', '.join(serves)} (take it down with "
                f"`appliance endpoint delete {row.id}`)",
            )
    for row in _jobs(state, project):
        read = sorted({uids[uid] for uid in row.inputs.values() if uid in uids})
        if read:
            yield _of_job(row, f"reads {', '.join(read)}")
    for row in rows:
        if row.kind == "tokenizer":
            yield from _tokens(state, row)


def of_whole(state: Reading, name: Name) -> Iterator[Use]:
    """What is about to become a version of a dataset or model."""
    project, kind, identifier = name.ids[0], name.kind, name.ids[1]
    makers = set()
    for row in _jobs(state, project):
        if str(name) in _made(row):
            makers.add(row.uid)
            yield _of_job(row, f"makes a version of {name}")
    pending = select(tables.artifact_version).where(
        *of_artifact(project, kind, identifier), _version.state == PENDING
    )
    for version in state.all(pending):
        if version.job in makers:
            continue
        upload = state.first(
            select(tables.upload).where(
                tables.upload.c.version == version.uid,
                tables.upload.c.state.in_(upload_rows.UNDER_WAY),
            )
        )
        if upload is None:
            says = f"{version.creator} sends a version of {name} now"
        else:
            says = (
                f"{upload_rows.name_of(upload)} of {upload.creator} is open (its owner ends it with"
                f" `appliance upload abort {upload.uid}`)"
            )
        yield Use("uploads", "", says)


def refuse(name: str, uses: Iterable[Use], sees: Callable[[str], bool]) -> None:
    """Raise FailedPrecondition when there is a use.

    Args:
        name: of what is to be deleted.
        uses: of it.
        sees: whether the caller holds a permission in its project.
    """
    found: dict[str, list[Use]] = {}
    for use in uses:
        found.setdefault(use.what, []).append(use)
    if found:
        said = (_said(what, users, sees) for what, users in found.items())
        raise FailedPrecondition(
            f"{name} is in use and was not deleted: {'; '.join(said)}",
            users=", ".join(f"{len(users)} {what}" for what, users in found.items()),
        )


def _said(what: str, users: Sequence[Use], sees: Callable[[str], bool]) -> str:
    seen = [use.says for use in users if not use.permission or sees(use.permission)]
    hidden = len(users) - len(seen)
    said = seen[:SHOWN]
    if more := len(seen) - len(said):
        said.append(f"and {more} more {what}")
    if hidden:
        said.append(f"{what}: {hidden} that you may not list")
    return "; ".join(said)


def _jobs(state: Reading, project: str) -> list[Row[Any]]:
    """Jobs that have not ended."""
    going_on = _job.project == project, _job.state.not_in(tuple(TERMINAL))
    return state.all(select(tables.job).where(*going_on).order_by(_job.create_time, _job.uid))


def _of_job(row: Row[Any], what: str) -> Use:
    name = names.job(row.project, row.id)
    return Use(
        "jobs",
        "jobs.list",
        f"{name} is {row.state} and {what} (wait until it ends, or `appliance job cancel "
        f"{row.id}`)",
    )


def _made(row: Row[Any]) -> set[str]:
    """The names of what gets a version from a job."""
    kind = kind_of(row.kind)
    spec = json_format.ParseDict(row.spec, kind.spec())
    return {output.name for output in kind.outputs_of(spec).values()}


def _tokens(state: Reading, row: Row[Any]) -> Iterator[Use]:
    """Versions of tokens that were made with a tokenizer. They go before it, so its name is its."""
    complete = select(tables.artifact_version).where(
        _version.project == row.project, _version.kind == "dataset", _version.state == COMPLETE
    )
    tokenizer = _name_of(row)
    for version in state.each(complete.order_by(_version.artifact, _version.number)):
        if version.facts.get("tokenizer") == tokenizer:
            yield Use(
                "versions of tokens",
                "datasets.list",
                f"{_name_of(version)} has tokens of it (`appliance dataset delete "
                f"{version.artifact}/{version.number}`)",
            )


def _name_of(row: Row[Any]) -> str:
    return artifact_rows.version_name(row.project, row.kind, row.artifact, row.number)
