"""Short names on the command line; `appliance.client.naming` says what they mean."""

from __future__ import annotations

import click

from appliance.client import naming
from appliance.core import names


def complete(kind: str, text: str, project: str) -> str:
    """The resource name that `text` means.

    Raises:
        InvalidInput: it is no name of this kind.
        click.UsageError: a short name needs a project and none is chosen.
    """
    try:
        return naming.complete(kind, text, project)
    except naming.NoProject as error:
        raise _none_chosen() from error


def needed(project: str) -> str:
    """The project's id without `projects/`. Raises click.UsageError when none is chosen."""
    if not project:
        raise _none_chosen()
    return naming.needed(project)


def parent(project: str) -> str:
    """`projects/{project}` of the chosen project."""
    return names.project(needed(project))


def _none_chosen() -> click.UsageError:
    return click.UsageError(
        "no project is chosen: give --project P, or `appliance context set-project P`"
    )
