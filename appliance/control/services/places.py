"""Where a resource is, for the policy: in a project, or on the whole appliance.

Rules kept here:
* a name that does not parse is an error, never "the whole appliance";
* service accounts and bindings carry no project in their name, so their row says it; a name without
  a row has no place at all.

Called by the gate before it asks the policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.control.auth.rules import EVERYWHERE
from appliance.control.services.resources import missing
from appliance.control.store import tables
from appliance.control.store.database import Database
from appliance.core.names import Name


@dataclass(frozen=True)
class Place:
    """Where a resource is.

    Args:
        project: a project's id; None is the whole appliance.
        hidden: whoever holds no role there may not learn whether the resource exists.
    """

    project: str | None
    hidden: bool


class Places:
    """Finds the place of a resource."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, resource: str) -> Place:
        """The place of a resource name; `""` is the whole appliance.

        Raises InvalidInput for text that is no name, NotFound for a name that only a row could
        place and that has none.
        """
        if not resource:
            return Place(None, hidden=False)
        name = Name.parse(resource)
        if name.project is not None:
            return Place(name.project, hidden=True)
        if name.kind == "serviceAccount":
            return Place(self._look(tables.service_account.c.project, name), hidden=True)
        if name.kind == "binding":
            domain = self._look(tables.binding.c.domain, name)
            return Place(None if domain == EVERYWHERE else domain, hidden=True)
        return Place(None, hidden=False)

    def _look(self, column: object, name: Name) -> str:
        table = column.table  # type: ignore[attr-defined]  # a column of one of the two tables
        with self._database.read() as state:
            found = state.value(
                table.select().with_only_columns(column).where(table.c.id == name.id)
            )
        if found is None:
            raise missing(str(name))
        return str(found)
