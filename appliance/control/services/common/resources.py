"""Small words every service uses for resources: "there is none", and moments in an answer."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core import names
from appliance.core.errors import InvalidInput, NotFound
from appliance.core.names import Name, shown
from appliance.core.problems import Problems


def missing(name: str) -> NotFound:
    """There is no such resource.

    The gate says the very same to a caller who may not know that there is one, so every service
    uses this text and no other.
    """
    return NotFound(f"there is no {name}, or you hold no role there", name=name)


def check_project(state: Reading, project: str) -> None:
    """Raise NotFound when there is no project of this id.

    Every list and every creation below a project asks: whoever holds a role in all projects would
    take an empty list of a name that was mistyped for the truth.
    """
    if state.first(tables.project.select().where(tables.project.c.id == project)) is None:
        raise missing(names.project(project))


def timestamp(moment: datetime | None) -> Timestamp | None:
    """An aware datetime as protobuf writes it; None stays None, which leaves a field unset."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def parse_name(text: str, kind: str, path: str, project: str, problems: Problems) -> Name | None:
    """A resource name of a request's own project, or None with a problem noted."""
    try:
        name = Name.parse(text, kind, field=path)
    except InvalidInput as error:
        problems.add(path, error.fields[path])
        return None
    if name.project != project:
        problems.add(
            path,
            f"is in project {name.project}; a job works inside its own project: name one of "
            f"{project}",
        )
        return None
    return name


def not_there(name: Name) -> str:
    """What is wrong with the name of a version or a checkpoint that there is not.

    It says what to type to see those there are.
    """
    above, where = name.ids[1], f"--project {name.project}"
    listed = {
        "datasetVersion": f"`appliance dataset versions {above} {where}`",
        "modelVersion": f"`appliance model versions {above} {where}`",
        "checkpoint": f"`appliance checkpoint list {above} {where}`",
    }[name.kind]
    return (
        f"names {shown(str(name))}, which does not exist or is not complete: {listed} shows what "
        "there is"
    )
