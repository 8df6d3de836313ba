"""Short names on the command line become resource names.

`docs/3` in project `demo` is `projects/demo/datasets/docs/versions/3`, `first/e1-step-50` is
`projects/demo/jobs/first/checkpoints/e1-step-50`, the application `app` there is
`serviceAccounts/demo--app`. Full names are taken as they are.
"""

from __future__ import annotations

import click

from appliance.core import names
from appliance.core.errors import InvalidInput

_COLLECTIONS = frozenset({"versions", "checkpoints"})
SHORT = {
    "datasetVersion": "DATASET/VERSION",
    "modelVersion": "MODEL/VERSION",
    "checkpoint": "JOB/CHECKPOINT",
}
"""What is typed for a kind of resource whose short name is more than its own id."""


def complete(kind: str, text: str, project: str) -> str:
    """The resource name that `text` means.

    Args:
        kind: a key of `names.PATTERNS`.
        text: a full name, an id, or `ID/VERSION` of a version.
        project: id of the project that short names belong to; may be empty.

    Raises:
        InvalidInput: it is no name of this kind.
        click.UsageError: a short name needs a project and none is chosen.
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
    """The project's id without `projects/`. Raises click.UsageError when none is chosen."""
    if not project:
        raise click.UsageError(
            "no project is chosen: give --project P, or `appliance context set-project P`"
        )
    return project.removeprefix("projects/")


def parent(project: str) -> str:
    """`projects/{project}` of the chosen project."""
    return names.project(needed(project))


def _words(kind: str) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in kind)
