"""Short names become resource names, for the command and for programs.

`docs/3` in project `demo` is `projects/demo/datasets/docs/versions/3`, `first/e1-step-50` is
`projects/demo/jobs/first/checkpoints/e1-step-50`, the application `app` there is
`serviceAccounts/demo--app`. Full names are taken as they are.

Within a message, the fields that hold names are those whose proto says so (`names`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from appliance.core import names
from appliance.core.errors import InvalidInput
from appliance.core.values import value_of

_COLLECTIONS = frozenset({"versions", "checkpoints"})
SHORT = {
    "datasetVersion": "DATASET/VERSION",
    "modelVersion": "MODEL/VERSION",
    "checkpoint": "JOB/CHECKPOINT",
}
"""What is written for a kind of resource whose short name is more than its own id."""


class NoProject(InvalidInput):
    """A short name needs a project, and none is chosen."""


def complete(kind: str, text: str, project: str) -> str:
    """The resource name that `text` means.

    Args:
        kind: a key of `names.PATTERNS`.
        text: a full name, an id, or `ID/VERSION` of a version.
        project: id of the project that short names belong to; may be empty.

    Raises:
        InvalidInput: it is no name of this kind.
        NoProject: a short name needs a project and none is chosen.
    """
    pattern = names.PATTERNS[kind]
    if text.startswith(pattern.split("/")[0] + "/"):
        return str(names.Name.parse(text, kind))
    ids = text.split("/")
    if len(ids) == 3 and ids[1] in _COLLECTIONS:  # DATASET/versions/VERSION
        del ids[1]
    if pattern.startswith("projects/{project}/"):
        ids = [needed(project), *ids]
    if kind == "serviceAccount" and names.ACCOUNT_MARK not in text:
        return names.service_account(names.new_service_account_id(needed(project), text))
    try:
        return str(names.Name.of(kind, *ids))
    except InvalidInput as error:
        raise InvalidInput(
            f"{names.shown(text)} is no {_words(kind)}: write {SHORT.get(kind, 'its id')} "
            f"or {pattern}"
        ) from error


def needed(project: str) -> str:
    """The project's id without `projects/`. Raises NoProject when none is chosen."""
    if not project:
        raise NoProject("no project is chosen: give one, or the whole name of the resource")
    return project.removeprefix("projects/")


def complete_within(message: Any, name: Callable[[str, str], str]) -> None:
    """Make resource names of the short ones in a message, in its parts too.

    Args:
        message: changed in place.
        name: the name that a text means, of a kind. What it raises is raised.
    """
    for field, value in message.ListFields():
        if field.message_type is not None:
            if field.message_type.GetOptions().map_entry:
                continue
            for part in value if field.is_repeated else (value,):
                complete_within(part, name)
            continue
        said = value_of(field)
        if said is None or not said.names:
            continue
        if field.is_repeated:
            value[:] = [name(said.names, each) for each in value]
        else:
            setattr(message, field.name, name(said.names, value))


def _words(kind: str) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in kind)
