"""What is in a project, so that it cannot be deleted now.

Rule kept here: a few names of each kind and how many more; of what the caller may not list, only
how many.

Called by `services.access.projects`, in its transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy import ColumnElement, func, select

from appliance.control.store import tables
from appliance.control.store.database import Reading
from appliance.core.errors import FailedPrecondition

SHOWN = 3
_artifact = tables.artifact.c
_UNDER_WAY = ("OPEN", "COMMITTING")


def refuse_unless_empty(state: Reading, project: str, sees: Callable[[str], bool]) -> None:
    """Raise FailedPrecondition naming what is in a project.

    Args:
        state: to read.
        project: its id.
        sees: whether the caller holds a permission there.
    """
    said = list(_contents(state, project, sees))
    if said:
        raise FailedPrecondition(
            f"projects/{project} is not empty and was not deleted. In it are {'; '.join(said)}. "
            "Delete each of these first"
        )


def _contents(state: Reading, project: str, sees: Callable[[str], bool]) -> Iterator[str]:
    for noun in ("datasets", "models", "tokenizers", "reports"):
        this = _artifact.project == project, _artifact.kind == noun.removesuffix("s")
        yield from _said(state, noun, _artifact.id, this, named=sees(f"{noun}.list"))
    for noun, column, home in (
        ("jobs", tables.job.c.id, tables.job.c.project),
        ("endpoints", tables.endpoint.c.id, tables.endpoint.c.project),
        ("serviceAccounts", tables.service_account.c.id, tables.service_account.c.project),
    ):
        yield from _said(state, noun, column, (home == project,), named=sees(f"{noun}.list"))
    upload = tables.upload.c
    going_on = upload.project == project, upload.state.in_(_UNDER_WAY)
    yield from _said(state, "open uploads", upload.uid, going_on, named=False)


def _said(
    state: Reading,
    noun: str,
    column: ColumnElement[str],
    this: tuple[ColumnElement[bool], ...],
    *,
    named: bool,
) -> Iterator[str]:
    count = int(state.value(select(func.count(column)).where(*this)))
    if not count:
        return
    if not named:
        yield f"{count} {noun}"
        return
    some = state.all(select(column.label("id")).where(*this).order_by(column).limit(SHOWN))
    names = ", ".join(f"{noun}/{row.id}" for row in some)
    more = count - len(some)
    yield names + (f" and {more} more {noun}" if more else "")
